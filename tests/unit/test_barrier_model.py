"""The protocol in every order of events, for small numbers of ranks, guests and requests."""

import itertools

import pytest

from failavoid.mpi.protocol import MOVED, Agreed, Exchange, Rank, Share, Sleep, Tell
from tests.unit.barrier_model import Found, Job, explore

PAIRS = [*itertools.product(("A", "B", "AB"), repeat=2)]


@pytest.mark.parametrize("requests", PAIRS, ids="-".join)
def test_two_guests_and_two_requests(requests):
    assert explore(Job("AB", requests)) > 1000
    assert explore(Job("AB", requests, cancels=False)) > 300


@pytest.mark.parametrize("requests", [("A", "B"), ("B", "A"), ("AB",)], ids="-".join)
def test_several_ranks_on_a_guest(requests):
    assert explore(Job("AAB", requests)) > 1000


@pytest.mark.parametrize("request_", ["A", "C", "AB", "AC", "ABC"])
def test_three_guests(request_):
    assert explore(Job("ABC", (request_,))) > 1000


def test_three_guests_and_two_requests():
    assert explore(Job("ABC", ("AB", "C"), cancels=False)) > 1000


def test_three_requests():
    assert explore(Job("AB", ("A", "B", "AB"))) > 40_000


def test_four_ranks():
    assert explore(Job("ABAB", ("B",))) > 20_000
    assert explore(Job("AABB", ("A", "B"), cancels=False)) > 30_000


@pytest.mark.parametrize("requests", [("A",), ("B",), ("AB",), ("A", "B")], ids="-".join)
def test_guests_may_move_after_the_deadline_though_ranks_run(requests):
    assert explore(Job("AB", requests, deadline=True)) > 100


@pytest.mark.parametrize("requests", [("A",), ("AB",), ("A", "AB")], ids="-".join)
def test_ranks_that_finalize_leave_nobody_behind(requests):
    assert explore(Job("AAB", requests[:1], barriers=2, deadline=True)) > 100
    assert explore(Job("AB", requests, barriers=2)) > 100


@pytest.mark.parametrize("requests", [("A",), ("AB",), ("A", "AB")], ids="-".join)
def test_ranks_that_give_up_waiting_strand_nobody(requests):
    assert explore(Job("AB", requests, limit=True)) > 100


class OwnPageAlone(Rank):
    """As if each rank went by what its own page says, without agreeing on the list."""

    def hold(self, rank, epoch, notice):
        records = yield Exchange(None)
        mine = notice is not None and self.guest in notice.affected
        if mine:
            yield Sleep(epoch)
        self.handled = max(self.handled, epoch)
        yield Share(0, Agreed("move", ()), len(records))


class SecondBarrier(Rank):
    """As in the paper: those that need not wait go on into the next collective."""

    def hold(self, rank, epoch, notice):
        hold = super().hold(rank, epoch, notice)
        answer = None
        while True:
            try:
                request = hold.send(answer)
            except StopIteration:
                return
            if isinstance(request, Tell):
                yield Share(0, Agreed("move", ()), 0)
                answer = MOVED
            else:
                answer = yield request


class TellsFirst(Rank):
    """The leader tells before it has slept."""

    def _stop(self, rank, held, began):
        yield Tell(held.ranks[0], MOVED)
        if rank in held.ranks:
            yield Sleep(held.epoch)
        self.handled = max(self.handled, held.epoch)


class GivesUpForGood(Rank):
    """A limit that has passed counts as the end of the epoch."""

    def _stop(self, rank, held, began):
        yield from super()._stop(rank, held, began)
        self.handled = max(self.handled, held.epoch)


class OthersGoOn(Rank):
    """Ranks that are not affected wait for nobody."""

    def _stop(self, rank, held, began):
        if rank in held.ranks:
            yield from super()._stop(rank, held, began)
        self.handled = max(self.handled, held.epoch)


class EveryoneTells(Rank):
    """Each affected rank tells, and not the leader alone: ranks of one guest wake at different moments."""

    def _stop(self, rank, held, began):
        own = (yield Sleep(held.epoch)) if rank in held.ranks else 0
        yield Tell(rank if own else held.ranks[0], own)
        self.handled = max(self.handled, held.epoch)


@pytest.mark.parametrize(
    ("rank", "job", "what"),
    [
        (OwnPageAlone, Job("AB", ("AB",), cancels=False), "never come to rest"),
        (SecondBarrier, Job("AB", ("A",), cancels=False), "enters a collective, which sends to guests that are moving"),
        (TellsFirst, Job("AB", ("A",), cancels=False), "moving"),
        (GivesUpForGood, Job("AB", ("AB",), cancels=False, limit=True), "never come to rest"),
        (OthersGoOn, Job("AB", ("A",), cancels=False), "enters a collective, which sends to guests that are moving"),
        (EveryoneTells, Job("AB", ("AB", "A"), cancels=False), "a message is on its way"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_search_finds_what_is_wrong_with_other_protocols(rank, job, what):
    with pytest.raises(Found, match=what):
        explore(job._replace(rank=rank))
