"""Puts the barrier wrapper into mpi4py's module MPI, without a compiler.

Methods of mpi4py's classes can't be assigned, so ``MPI.COMM_WORLD`` is replaced by an object of
a subclass whose Barrier is the protocol's. mpi4py makes derived communicators (Split, Create, ...)
of its own classes; the subclasses make them theirs again, so that these are covered too.

What is remembered of a communicator (how many barriers, whether it is eligible) is an MPI attribute,
because several Python objects may stand for one communicator, and ranks that counted
differently would wait for each other for ever.
"""

from __future__ import annotations

import atexit
import functools
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from failavoid.mpi.protocol import CANCELLED, LIMIT, MOVED, NO_PAGE, POLL_S, Agreed, Callbacks, Held, Rank, Record
from failavoid.shared.page import KINDS, RUN_DIR, job_folder

LIMIT_S = 900.0

# Methods that make a communicator of mpi4py's own class. Dup, Clone and Idup keep the class.
_DERIVING = (
    *("Split", "Split_type", "Create", "Create_group"),
    *("Create_cart", "Create_graph", "Create_dist_graph", "Create_dist_graph_adjacent", "Sub"),
    *("Create_intercomm", "Merge"),
)
_WRAPPED = ("Intracomm", "Cartcomm", "Graphcomm", "Distgraphcomm", "Intercomm")

_RECORD = struct.Struct("=Q64s")  # as it goes over the wire: word, guest


class Settings:
    """What the environment says. Raises ValueError that names the variable."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.job = environment.get("FAILAVOID_JOB", "")
        self.guest = environment.get("FAILAVOID_GUEST") or socket.gethostname().partition(".")[0]
        self.run_dir = environment.get("FAILAVOID_RUN_DIR") or RUN_DIR
        self.every = int(_number(environment, "FAILAVOID_EVERY", 1))
        self.limit_s = _number(environment, "FAILAVOID_LIMIT_S", LIMIT_S)


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name) or str(default)
    try:
        value = float(text)
        if value >= 1 or (name == "FAILAVOID_LIMIT_S" and value > 0):
            return value
    except ValueError:
        pass
    raise ValueError(f"the environment variable {name} is {text!r}; give a number, at least 1")


class _Barriers:
    """What is remembered of one communicator. Where it is not eligible, barriers are mpi4py's own."""

    __slots__ = ("count", "eligible", "every", "receive", "send")

    def __init__(self, eligible: bool = False, every: int = 1) -> None:
        self.eligible = eligible
        self.every = every
        self.count = 0
        self.send = memoryview(bytearray(8)).cast("Q")
        self.receive = memoryview(bytearray(8)).cast("Q")


class _Channel:
    """The protocol's Channel over an mpi4py communicator."""

    __slots__ = ("_barriers", "_comm", "_mpi")

    def __init__(self, mpi: Any, comm: Any, barriers: _Barriers) -> None:
        self._mpi = mpi
        self._comm = comm
        self._barriers = barriers

    @property
    def rank(self) -> int:
        return int(self._comm.Get_rank())

    def highest(self, word: int) -> int:
        send, receive, kind = self._barriers.send, self._barriers.receive, self._mpi.UINT64_T
        send[0] = word
        self._comm.Allreduce((send, 1, kind), (receive, 1, kind), self._mpi.MAX)
        return receive[0]

    def exchange(self, record: Record) -> Sequence[Record]:
        mine = _RECORD.pack(record.word, record.guest.encode()[:63])
        every = bytearray(len(mine) * self._comm.Get_size())
        byte = self._mpi.BYTE
        self._comm.Allgather((mine, len(mine), byte), (every, len(mine), byte))
        return [Record(word, guest.rstrip(b"\0").decode()) for word, guest in _RECORD.iter_unpack(every)]

    def share(self, root: int, agreed: Agreed | None, ranks: int) -> Agreed:
        told = bytearray(1 + ranks)
        if agreed:
            told[:] = bytes([KINDS.index(agreed.kind) + 1, *agreed.affected])
        self._comm.Bcast((told, len(told), self._mpi.BYTE), root)
        return Agreed(KINDS[told[0] - 1], tuple(bool(flag) for flag in told[1:]))

    def tell(self, root: int, outcome: int) -> int:
        word = bytearray([outcome])
        request = self._comm.Ibcast((word, 1, self._mpi.BYTE), root)
        while not request.Test():
            time.sleep(POLL_S)
        return word[0]


class Wrapper:
    """What stands between a program and the module mpi4py.MPI."""

    def __init__(self, mpi: Any, settings: Settings) -> None:
        self._mpi = mpi
        self._settings = settings
        self._say = _Voice(settings)
        self._plain = mpi.Comm.Barrier
        self._keyval: int | None = None
        folder = job_folder(settings.job, settings.run_dir) if settings.job else None
        self.rank = Rank(settings.guest, folder, settings.limit_s, self._say.held)

    def barrier(self, comm: Any) -> None:
        """Be the barrier of a communicator."""
        barriers = self._barriers_of(comm)
        if self.rank.inside or not barriers.eligible:
            self._plain(comm)
            return
        barriers.count += 1
        if barriers.count % barriers.every:
            self._plain(comm)
        else:
            self.rank.barrier(_Channel(self._mpi, comm, barriers))

    def should_migrate(self) -> bool:
        """See failavoid.mpi.should_migrate."""
        world = self._mpi.COMM_WORLD
        barriers = self._barriers_of(world)
        noticed = barriers.eligible and self.rank.ask(_Channel(self._mpi, world, barriers))
        if noticed:
            barriers.count = barriers.every - 1  # the next barrier looks, whatever FAILAVOID_EVERY says
        return noticed

    def set_callbacks(
        self, before: Callable[[str], object] | None = None, after: Callable[[str], object] | None = None
    ) -> None:
        """See failavoid.mpi.set_callbacks."""
        self.rank.callbacks = Callbacks(before, after)

    def _barriers_of(self, comm: Any) -> _Barriers:
        if self._keyval is None:
            self._keyval = self._mpi.Comm.Create_keyval()
        found: _Barriers | None = comm.Get_attr(self._keyval)
        if found is None:
            found = self._decide(comm)
            comm.Set_attr(self._keyval, found)
        return found

    def _decide(self, comm: Any) -> _Barriers:
        """Decide, on all its ranks alike, how a communicator's barriers are to be."""
        mpi = self._mpi
        if comm.Get_size() != mpi.COMM_WORLD.Get_size():
            return _Barriers()
        mine = struct.pack("=2Q", bool(self._settings.job), self._settings.every)
        every = bytearray(len(mine))
        comm.Allreduce((mine, 2, mpi.UINT64_T), (every, 2, mpi.UINT64_T), mpi.MAX)
        protected, nth = struct.unpack("=2Q", every)
        if protected and not self.rank.find_page() and mpi.COMM_WORLD.Get_rank() == 0:
            self._say.no_page(self.rank)
        return _Barriers(bool(protected), nth)


def install(mpi: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Wrap the barriers of ``mpi``, the module mpi4py.MPI; a second call changes nothing.

    Raises ValueError if an environment variable FAILAVOID_* can't be used.
    """
    if getattr(mpi, "_failavoid", None) is not None:
        return
    wrapper = Wrapper(mpi, Settings(environment))
    mpi._failavoid = wrapper
    classes = _make_classes(mpi, wrapper)
    mpi.COMM_WORLD = classes["Intracomm"](mpi.COMM_WORLD)
    _wrap_functions(mpi, wrapper.rank)
    atexit.register(wrapper.rank.deregister)  # MPI_Finalize follows, unless the program has called it


def _make_classes(mpi: Any, wrapper: Wrapper) -> dict[str, Any]:
    """Make the subclasses of mpi4py's communicators."""
    classes: dict[str, Any] = {}

    def barrier(comm: Any) -> None:
        """Barrier synchronization, at which a notice of a move is looked for."""
        wrapper.barrier(comm)

    def deriving(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def method(comm: Any, *args: Any, **kwargs: Any) -> Any:
            made = original(comm, *args, **kwargs)
            return classes.get(type(made).__name__, type(made))(made)

        return method

    def reduce(base: Any) -> Callable[[Any], Any]:
        def method(comm: Any) -> Any:
            return "COMM_WORLD" if comm is mpi.COMM_WORLD else base.__reduce__(comm)

        return method

    for name in _WRAPPED:
        base = getattr(mpi, name)
        # pickle finds COMM_WORLD in the module that its class claims to be of
        body: dict[str, Any] = {"__module__": mpi.__name__, "__doc__": base.__doc__}
        for method in _DERIVING:
            if hasattr(base, method):
                body[method] = deriving(getattr(base, method))
        if name != "Intercomm":
            body.update(Barrier=barrier, barrier=barrier)
        body["__reduce__"] = reduce(base)
        classes[name] = type(name, (base,), body)
    return classes


def _wrap_functions(mpi: Any, rank: Rank) -> None:
    finalize, pcontrol = mpi.Finalize, mpi.Pcontrol

    def wrapped_finalize() -> None:
        """Terminate the MPI execution environment."""
        rank.deregister()
        finalize()

    def wrapped_pcontrol(level: int) -> None:
        """Control profiling; 0 also switches the search for notices off on this rank, 1 on."""
        rank.enabled = level > 0
        pcontrol(level)

    mpi.Finalize, mpi.Pcontrol = wrapped_finalize, wrapped_pcontrol


class _Voice:
    """The few lines that the user gets to read, from one rank each."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._said_no_page = False

    def no_page(self, rank: Rank) -> None:
        if not self._said_no_page:
            self._say(f"no page in {rank.folder}: no notice can arrive until the guest's agent makes one")
        self._said_no_page = True

    def held(self, held: Held) -> None:
        if held.kind == "checkpoint":
            self._say(
                f"the program was told to write a checkpoint and took {held.seconds:.2f} s for it (epoch {held.epoch})"
                if held.told
                else f"a checkpoint is asked for, but the program has no callback for it (epoch {held.epoch})"
            )
            return
        who = f"guest{'s' * (len(held.guests) > 1)} {', '.join(held.guests)}"
        way = f" from {held.source} to {held.destination}" if held.source and held.destination else ""
        outcome = {
            MOVED: f"moved{way}",
            CANCELLED: "did not move (cancelled)",
            LIMIT: f"did not move within {self._settings.limit_s:g} s (FAILAVOID_LIMIT_S), the ranks run on",
            NO_PAGE: "may move now; without a page the ranks can't wait for it",
        }[held.outcome]
        count = f"{len(held.ranks)} rank{'s' * (len(held.ranks) > 1)}"
        self._say(f"{who} {outcome}; {count} stopped for {held.seconds:.2f} s (epoch {held.epoch})")

    def _say(self, text: str) -> None:
        print(f"failavoid: job {self._settings.job}: {text}", file=sys.stderr, flush=True)
