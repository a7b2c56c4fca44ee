"""What one rank does at an eligible barrier. Knows no MPI: shim/barrier.c follows the same steps, byte by byte.

The check *is* the barrier: one Allreduce(MAX) of an 8-byte word, the epoch of a notice that
the rank has not handled yet, else 0. Nobody knows the result before everybody has entered.
It is 0: go on. It is an epoch:

1. The ranks agree on who is affected: the lowest rank that brought this epoch tells it, by
   the list it had read *before* the Allreduce. Guests see a notice at different
   moments; had each rank gone by its own page alone, the first guest's ranks would wait for
   a move that the second guest's, held as unaffected, would keep from beginning.
2. Ranks on affected guests mark their slot stopped and sleep outside MPI until their page
   says that the epoch is done or cancelled, or until the local limit has passed.
3. The others only receive: the leader, which is the lowest affected rank, tells them how it
   ended once it has woken. Nothing is sent to a rank whose guest moves.

A limit that passed marks nothing as handled: at the next eligible barrier the ranks stop again.
A notice that asks for a checkpoint stops nobody after its first step: the application is told.

``Rank.hold`` is a generator of requests: what it does between them depends on their answers alone.
That is how the tests check every order of events with this code, and not with a copy of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

from failavoid.shared.page import Page, PageError, Posted, Slot

POLL_S = 0.05  # of a stopped rank: on an emulated processor waking up costs, and the other guests move meanwhile
LOOK_AGAIN_S = 1.0  # for a page that is not there yet

# How an epoch ended, as the leader tells it.
MOVED, CANCELLED, LIMIT, NO_PAGE = 1, 2, 3, 4
OUTCOMES = {MOVED: "moved", CANCELLED: "cancelled", LIMIT: "limit", NO_PAGE: "no page"}
_HANDLED = (MOVED, CANCELLED)


class Record(NamedTuple):
    """What each rank brings to the agreement."""

    word: int
    guest: str


class Agreed(NamedTuple):
    """What the lowest rank that brought the epoch tells the others: its kind, and who is affected."""

    kind: str
    affected: tuple[bool, ...]


class Channel(Protocol):
    """What the protocol needs of a communicator; each method is collective over it."""

    @property
    def rank(self) -> int:
        """This rank's number in it."""

    def highest(self, word: int) -> int:
        """Allreduce(MAX) of a word of 64 bits."""

    def exchange(self, record: Record) -> Sequence[Record]:
        """Allgather of every rank's record, in the order of ranks."""

    def share(self, root: int, agreed: Agreed | None, ranks: int) -> Agreed:
        """Bcast of what ``root`` says; the others bring None."""

    def tell(self, root: int, outcome: int) -> int:
        """Send ``outcome`` from ``root`` to the others, which wait for it asleep and send nothing."""


class Exchange(NamedTuple):
    """A request of a hold: Channel.exchange."""

    record: Record


class Share(NamedTuple):
    """A request of a hold: Channel.share."""

    root: int
    agreed: Agreed | None
    ranks: int


class Sleep(NamedTuple):
    """A request of a hold: wait outside MPI until the epoch has ended; answered with how."""

    epoch: int


class Tell(NamedTuple):
    """A request of a hold: Channel.tell."""

    root: int
    outcome: int


class Held(NamedTuple):
    """What one rank can say of a hold. ``guests`` are affected and have ranks here, ``ranks`` are those, ascending."""

    epoch: int
    kind: str
    guests: tuple[str, ...]
    ranks: tuple[int, ...]
    outcome: int  # 0 of a checkpoint
    seconds: float
    source: str = ""
    destination: str = ""
    told: bool = True  # of a checkpoint: whether the application was


class Callbacks(NamedTuple):
    """What the application wants to be told: ``before(kind)`` and ``after(outcome)``, in the words of the API."""

    before: Callable[[str], object] | None = None
    after: Callable[[str], object] | None = None


class Rank:
    """The state of one rank: its guest, its page and slot, and the last epoch it has handled.

    ``folder`` is that of the job; without one the rank brings no notice but takes part in
    whatever the others bring. ``limit_s`` ends a hold that nobody else ends. ``on_held`` is called
    on one rank of each hold: the leader, or rank 0 of a checkpoint.
    """

    def __init__(
        self,
        guest: str,
        folder: str | None,
        limit_s: float,
        on_held: Callable[[Held], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.guest = guest
        self.folder = folder
        self.enabled = True  # MPI_Pcontrol
        self.handled = 0
        self.asked = 0  # the last epoch that the application knows of because it asked
        self.callbacks = Callbacks()
        self.page: Page | None = None
        self._slot: Slot | None = None
        self._limit_s = limit_s
        self._on_held = on_held
        self._clock = clock
        self._sleep = sleep
        self._next_look = clock()
        self._gone = folder is None
        self._thread = threading.local()

    @property
    def inside(self) -> bool:
        """Whether this thread is in a hold: a barrier that a callback enters is MPI's own."""
        return getattr(self._thread, "inside", False)

    def barrier(self, channel: Channel) -> None:
        """Be the barrier, and the hold if a notice is there."""
        notice = self.look()
        epoch = channel.highest(notice.epoch if notice else 0)
        if epoch:
            self._thread.inside = True
            try:
                self._perform(self.hold(channel.rank, epoch, notice), channel)
            finally:
                self._thread.inside = False

    def ask(self, channel: Channel) -> bool:
        """Return whether one of the channel's ranks has a notice: on all of them alike."""
        notice = self.look()
        epoch = channel.highest(notice.epoch if notice else 0)
        self.asked = max(self.asked, epoch)
        return epoch != 0

    def find_page(self) -> bool:
        """Look for the page if there was none yet, and take a slot; return whether there is one."""
        if self.page is None and not self._gone and self._clock() >= self._next_look:
            assert self.folder is not None
            self._next_look = self._clock() + LOOK_AGAIN_S
            try:
                page = Page(self.folder)
                self._slot = Slot(self.folder)
                self.page = page
            except (PageError, OSError):
                pass  # the agent is late, or there is none
        return self.page is not None

    def deregister(self) -> None:
        """Take no part any more, whatever is pending: MPI ends."""
        self._gone = True
        self.page = None
        if self._slot:
            self._slot.deregister()
            self._slot = None

    def look(self) -> Posted | None:
        """Return the open notice that this rank has not handled, as it stands on the page now."""
        if (self.page is None and not self.find_page()) or not self.enabled:
            return None
        assert self.page is not None
        if self.page.epoch <= self.handled:
            return None
        posted = self.page.read()
        if posted is None or posted.epoch <= self.handled:
            return None
        if not posted.open:
            self.handled = posted.epoch
            return None
        return posted

    def hold(self, rank: int, epoch: int, notice: Posted | None) -> Generator[Any, Any, None]:
        """What follows a barrier that found ``epoch``; ``notice`` is what this rank brought to it."""
        began = self._clock()
        records: Sequence[Record] = yield Exchange(Record(notice.epoch if notice else 0, self.guest))
        teller = next(number for number, record in enumerate(records) if record.word == epoch)
        agreed = None
        if rank == teller:
            assert notice is not None
            agreed = Agreed(notice.kind, tuple(record.guest in notice.affected for record in records))
        kind, affected = yield Share(teller, agreed, len(records))
        ranks = tuple(number for number, is_affected in enumerate(affected) if is_affected)
        guests = tuple(dict.fromkeys(records[number].guest for number in ranks))
        held = Held(epoch, kind, guests, ranks, 0, 0.0)
        if kind == "move" and not ranks:  # the affected guests run none of these ranks
            self._mark_handled(epoch)
            return
        if self.callbacks.before:
            self.callbacks.before(kind)
        if kind == "checkpoint":
            self._checkpoint(rank, held, began)
        else:
            yield from self._stop(rank, held, began)

    def _stop(self, rank: int, held: Held, began: float) -> Generator[Any, Any, None]:
        """Stop the affected ranks until their guests have moved; the others wait for the leader and send nothing."""
        leader, own = held.ranks[0], 0
        if rank in held.ranks:
            own = yield Sleep(held.epoch)
        told = yield Tell(leader, own)
        outcome = own or told  # an affected rank's own page counts for itself
        if outcome in _HANDLED:
            self._mark_handled(held.epoch)
        if rank == leader:
            self._report(held, outcome, began)
        if self.callbacks.after:
            self.callbacks.after(OUTCOMES[told])

    def _checkpoint(self, rank: int, held: Held, began: float) -> None:
        """Nothing moves: the application was told, and the agent hears what came of it."""
        told = self.callbacks.before is not None or self.asked >= held.epoch
        if told and self._slot:
            self._slot.checkpointed(held.epoch)
        if rank == 0:
            self._on_held(held._replace(seconds=self._clock() - began, told=told))
        self._mark_handled(held.epoch)

    def _mark_handled(self, epoch: int) -> None:
        self.handled = max(self.handled, epoch)

    def _report(self, held: Held, outcome: int, began: float) -> None:
        seconds = self._clock() - began
        posted = self.page.read() if self.page and outcome == MOVED else None
        if posted and posted.epoch == held.epoch:
            held = held._replace(source=posted.source, destination=posted.destination)
        self._on_held(held._replace(outcome=outcome, seconds=seconds))

    def _perform(self, hold: Generator[Any, Any, None], channel: Channel) -> None:
        answer: Any = None
        while True:
            try:
                request = hold.send(answer)
            except StopIteration:
                return
            if isinstance(request, Exchange):
                answer = channel.exchange(request.record)
            elif isinstance(request, Share):
                answer = channel.share(*request)
            elif isinstance(request, Sleep):
                answer = self._sleep_until_ended(request.epoch)
            else:
                answer = channel.tell(*request)

    def _sleep_until_ended(self, epoch: int) -> int:
        if self.page is None or self._slot is None:
            return NO_PAGE
        deadline = self._clock() + self._limit_s
        self._slot.stop(epoch)
        try:
            while True:
                if self.page.done >= epoch:
                    return MOVED
                if self.page.cancelled >= epoch:
                    return CANCELLED
                if self._clock() >= deadline:
                    return LIMIT
                self._sleep(POLL_S)
        finally:
            self._slot.resume()
