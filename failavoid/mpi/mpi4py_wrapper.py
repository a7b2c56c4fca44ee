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
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from failavoid.mpi.protocol import CANCELLED, LIMIT, MOVED, NO_PAGE, POLL_S, Held, Rank, View
from failavoid.shared.page import RUN_DIR, job_folder

LIMIT_S = 900.0

# Methods that make a communicator of mpi4py's own class. Dup, Clone and Idup keep the class.
_DERIVING = (
    *("Split", "Split_type", "Create", "Create_group"),
    *("Create_cart", "Create_graph", "Create_dist_graph", "Create_dist_graph_adjacent", "Sub"),
    *("Create_intercomm", "Merge"),
)
_WRAPPED = ("Intracomm", "Cartcomm", "Graphcomm", "Distgraphcomm", "Intercomm")


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
    """What is remembered of one communicator. ``rank`` is None where barriers are mpi4py's own."""

    __slots__ = ("count", "every", "rank", "receive", "send")

    def __init__(self, rank: Rank | None = None, every: int = 1) -> None:
        self.rank = rank
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

    def exchange(self, view: View) -> list[View]:
        return [View(*other) for other in self._comm.allgather(tuple(view))]

    def tell(self, root: int, outcome: int) -> int:
        word = bytearray([outcome])
        request = self._comm.Ibcast((word, 1, self._mpi.BYTE), root)
        while not request.Test():
            time.sleep(POLL_S)
        return word[0]


def install(mpi: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Wrap the barriers of ``mpi``, the module mpi4py.MPI; a second call changes nothing.

    Raises ValueError if an environment variable FAILAVOID_* can't be used.
    """
    if getattr(mpi, "_failavoid", None) is not None:
        return
    settings = Settings(environment)
    say = _Voice(settings)
    folder = job_folder(settings.job, settings.run_dir) if settings.job else None
    rank = Rank(settings.guest, folder, settings.limit_s, say.held)
    mpi._failavoid = rank
    classes = _make_classes(mpi, _make_barrier(mpi, rank, settings, say))
    mpi.COMM_WORLD = classes["Intracomm"](mpi.COMM_WORLD)
    _wrap_functions(mpi, rank)
    atexit.register(rank.deregister)  # MPI_Finalize follows, unless the program has called it


def _make_barrier(mpi: Any, rank: Rank, settings: Settings, say: _Voice) -> Callable[[Any], None]:
    plain = mpi.Comm.Barrier
    keyval: int | None = None

    def begin(comm: Any) -> _Barriers:
        """Decide how this communicator's barriers are to be: on all its ranks alike."""
        barriers = _Barriers()
        if comm.Get_size() == mpi.COMM_WORLD.Get_size():
            wanted, every = comm.allreduce((bool(settings.job), settings.every), mpi.MAX)
            if wanted:
                barriers = _Barriers(rank, every)
                if not rank.find_page() and mpi.COMM_WORLD.Get_rank() == 0:
                    say.no_page(rank)
        comm.Set_attr(keyval, barriers)
        return barriers

    def barrier(comm: Any) -> None:
        """Barrier synchronization, at which a notice of a move is looked for."""
        nonlocal keyval
        if keyval is None:
            keyval = mpi.Comm.Create_keyval()
        barriers = comm.Get_attr(keyval) or begin(comm)
        barriers.count += 1
        if barriers.rank is None or barriers.count % barriers.every:
            plain(comm)
        else:
            barriers.rank.barrier(_Channel(mpi, comm, barriers))

    return barrier


def _make_classes(mpi: Any, barrier: Callable[[Any], None]) -> dict[str, Any]:
    """Make the subclasses of mpi4py's communicators."""
    classes: dict[str, Any] = {}

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
        guests, ranks = held.agreement
        who = f"guest{'s' * (len(guests) > 1)} {', '.join(guests)}"
        outcome = {
            MOVED: "moved",
            CANCELLED: "did not move (cancelled)",
            LIMIT: f"did not move within {self._settings.limit_s:g} s (FAILAVOID_LIMIT_S), the ranks run on",
            NO_PAGE: "may move now; without a page the ranks can't wait for it",
        }[held.outcome]
        count = f"{len(ranks)} rank{'s' * (len(ranks) > 1)}"
        self._say(f"{who} {outcome}; {count} stopped for {held.seconds:.2f} s (epoch {held.epoch})")

    def _say(self, text: str) -> None:
        print(f"failavoid: job {self._settings.job}: {text}", file=sys.stderr, flush=True)
