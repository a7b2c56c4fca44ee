"""What one rank does at an eligible barrier. Knows no MPI: the later shim in C follows the same steps.

The check *is* the barrier: one Allreduce(MAX) of an 8-byte word, the epoch of a notice that
the rank has not handled yet, else 0. Nobody knows the result before everybody has entered.
It is 0: go on. It is an epoch:

1. The ranks agree on the list of affected guests: the lowest rank that brought this epoch
   tells the list it had read *before* the Allreduce. Guests see a notice at different
   moments; had each rank gone by its own page alone, the first guest's ranks would wait for
   a move that the second guest's, held as unaffected, would keep from beginning.
2. Ranks on affected guests mark their slot stopped and sleep outside MPI until their page
   says that the epoch is done or cancelled, or until the local limit has passed.
3. The others only receive: the leader, which is the lowest affected rank, tells them how it
   ended once it has woken. Nothing is sent to a rank whose guest moves.

A limit that passed marks nothing as handled: at the next eligible barrier the ranks stop again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from failavoid.shared.page import Page, PageError, Slot

POLL_S = 0.05  # of a stopped rank: on an emulated processor waking up costs, and the other guests move meanwhile
LOOK_AGAIN_S = 1.0  # for a page that is not there yet

# How an epoch ended, as the leader tells it.
MOVED, CANCELLED, LIMIT, NO_PAGE = 1, 2, 3, 4
_HANDLED = (MOVED, CANCELLED)


class Channel(Protocol):
    """What the protocol needs of a communicator; each method is collective over it."""

    @property
    def rank(self) -> int:
        """This rank's number in it."""

    def highest(self, word: int) -> int:
        """Allreduce(MAX) of a word of 64 bits."""

    def exchange(self, view: View) -> Sequence[View]:
        """Allgather of every rank's view, in the order of ranks."""

    def tell(self, root: int, outcome: int) -> int:
        """Send ``outcome`` from ``root`` to the others, which wait for it asleep and send nothing."""


class View(NamedTuple):
    """What one rank brings to the agreement. ``affected`` is empty unless it brought the epoch."""

    word: int
    guest: str
    affected: tuple[str, ...]


class Agreement(NamedTuple):
    """What all ranks agree on; the same on all of them, because made from the same views."""

    guests: tuple[str, ...]  # affected, and with ranks in this communicator
    ranks: tuple[int, ...]  # on those guests, ascending: the first is the leader


def agree(epoch: int, views: Sequence[View]) -> Agreement:
    """Derive the affected ranks from every rank's view."""
    listed = next(view.affected for view in views if view.word == epoch)
    ranks = tuple(rank for rank, view in enumerate(views) if view.guest in listed)
    guests = tuple(guest for guest in listed if any(view.guest == guest for view in views))
    return Agreement(guests, ranks)


class Held(NamedTuple):
    """What the leader of a hold can say of it."""

    epoch: int
    agreement: Agreement
    outcome: int
    seconds: float


class Rank:
    """The state of one rank: its guest, its page and slot, and the last epoch it has handled.

    ``folder`` is that of the job; without one the rank brings no notice but takes part in
    whatever the others bring. ``limit_s`` ends a hold that nobody else ends.
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
        self.page: Page | None = None
        self._slot: Slot | None = None
        self._limit_s = limit_s
        self._on_held = on_held
        self._clock = clock
        self._sleep = sleep
        self._next_look = clock()
        self._gone = folder is None

    def barrier(self, channel: Channel) -> None:
        """Be the barrier, and the hold if a notice is there."""
        word, affected = self._look()
        epoch = channel.highest(word)
        if epoch:
            self._hold(channel, epoch, View(word, self.guest, affected if word == epoch else ()))

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

    def _look(self) -> tuple[int, tuple[str, ...]]:
        """Return the epoch to bring, and its affected guests as they stand on the page now."""
        if (self.page is None and not self.find_page()) or not self.enabled:
            return 0, ()
        assert self.page is not None
        if self.page.epoch <= self.handled:
            return 0, ()
        posted = self.page.read()
        if posted is None or posted.epoch <= self.handled:
            return 0, ()
        if not posted.open:
            self.handled = posted.epoch
            return 0, ()
        return posted.epoch, posted.affected

    def _hold(self, channel: Channel, epoch: int, view: View) -> None:
        began = self._clock()
        agreement = agree(epoch, channel.exchange(view))
        if not agreement.ranks:  # the affected guests run none of these ranks
            self.handled = max(self.handled, epoch)
            return
        leader = agreement.ranks[0]
        if channel.rank in agreement.ranks:
            outcome = self._sleep_until_ended(epoch)
            channel.tell(leader, outcome)  # the leader's word; this rank's own page counts for itself
        else:
            outcome = channel.tell(leader, 0)
        if outcome in _HANDLED:
            self.handled = max(self.handled, epoch)
        if channel.rank == leader:
            self._on_held(Held(epoch, agreement, outcome, self._clock() - began))

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
