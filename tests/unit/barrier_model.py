"""Every order of events at the barriers of a small job: an explicit-state search around the code of protocol.py.

What a rank does is Rank.look and Rank.hold themselves, asked for their next request in every state; nothing of the
protocol is written down here a second time. The model supplies the rest, with every interleaving:

- Collectives (Allreduce, Allgather, Bcast): nobody gets a result before all have entered, and each rank gets its own at
  any later time; until then a message to it is under way. A rank that enters one may send to all others.
- The leader's word: the others get it at any time after the leader sends; they send nothing.
- Agents: each guest's page takes up the controller's last notice at any time, and may miss some between.
- The controller: posts an epoch, and the next when it has ended. An epoch is cancelled at any time before the guests
  move; they begin to move when all live ranks on the affected guests have stopped, or at any time once the deadline
  has passed; when they have moved the epoch is done.

A state is a tuple of values. A hold depends on the answers to its requests alone, so the answers so far stand for it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from failavoid.mpi.protocol import CANCELLED, LIMIT, MOVED, Exchange, Rank, Share, Sleep, Tell
from failavoid.shared.page import Posted

RUN, FINALIZED = ("run",), ("finalized",)


class Job(NamedTuple):
    """What is checked: rank i runs on ``guests[i]``; ``requests[k]`` are the affected guests of epoch k + 1.

    ``cancels``: the controller may cancel; where it does not, every evacuation must come to its end by itself.
    ``barriers``: after so many each rank finalizes; 0: it never ends. ``deadline``: guests may move though ranks run.
    ``limit``: a stopped rank may give up waiting at any time; then others may send while guests move.
    """

    guests: str
    requests: tuple[str, ...]
    cancels: bool = True
    barriers: int = 0
    deadline: bool = False
    limit: bool = False
    rank: type[Rank] = Rank


class One(NamedTuple):
    """One rank: what it has handled, barriers it has left, where it is, and the leader's word on its way to it (or 0).

    ``at`` is RUN, FINALIZED, ("enter", word, notice), ("hold", epoch, notice, answers), and with an answer under way
    ("answer", what it is of, answer).
    """

    handled: int
    left: int
    at: tuple[Any, ...]
    mail: int = 0


class State(NamedTuple):
    """``pages``: of each guest (epoch, done, cancelled); ``phase`` of the controller's last epoch: idle, open, moving
    (all ranks had stopped), forced (the deadline had passed)."""

    ranks: tuple[One, ...]
    pages: tuple[tuple[int, int, int], ...]
    board: tuple[int, int, int]
    phase: str


class Found(AssertionError):
    """A state that must not be; the message is the way to it."""


class _Page:
    """A page as Rank reads it."""

    def __init__(self, posted: Posted) -> None:
        self.epoch, self.done, self.cancelled, self._posted = posted.epoch, posted.done, posted.cancelled, posted

    def read(self) -> Posted:
        return self._posted


class Model:
    """The transitions of a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.names = sorted(set(job.guests))
        self.requested = functools.lru_cache(None)(self._requested)
        self.looked = functools.lru_cache(None)(self._looked)

    def first(self) -> State:
        one = One(0, 0, RUN)
        return State((one,) * len(self.job.guests), ((0, 0, 0),) * len(self.names), (0, 0, 0), "idle")

    def notice(self, page: tuple[int, int, int]) -> Posted:
        epoch, done, cancelled = page
        return Posted(epoch, epoch, tuple(self.job.requests[epoch - 1]) if epoch else (), done, cancelled)

    def _looked(self, handled: int, page: tuple[int, int, int]) -> tuple[Posted | None, int]:
        """What Rank.look returns, and what it has marked as handled."""
        rank = self.job.rank("", None, 1.0)
        rank.handled, rank.page = handled, _Page(self.notice(page))
        return rank.look(), rank.handled

    def _requested(self, number: int, handled: int, at: tuple[Any, ...]) -> tuple[Any, int]:
        """The next request of a hold after these answers (None: it has ended), and what it has marked as handled."""
        _, epoch, notice, answers = at
        rank = self.job.rank(self.job.guests[number], None, 1.0)
        rank.handled = handled
        hold = rank.hold(number, epoch, notice)
        try:
            request = next(hold)
            for answer in answers:
                request = hold.send(answer)
        except StopIteration:
            return None, rank.handled
        return request, rank.handled

    def next(self, state: State) -> Iterator[tuple[str, State]]:
        """Every event that can happen, and the state it leads to. Raises Found."""
        yield from self._controller(state)
        for guest, page in enumerate(state.pages):
            if page != state.board:
                pages = (*state.pages[:guest], state.board, *state.pages[guest + 1 :])
                yield f"the page of {self.names[guest]} says {state.board}", state._replace(pages=pages)
        for number, one in enumerate(state.ranks):
            yield from self._rank(state, number, one)

    def _controller(self, state: State) -> Iterator[tuple[str, State]]:
        epoch, done, cancelled = state.board
        if state.phase == "idle" and epoch < len(self.job.requests):
            yield "posted", state._replace(board=(epoch + 1, done, cancelled), phase="open")
        elif state.phase == "open":
            if self.job.cancels:
                yield "cancelled", state._replace(board=(epoch, done, epoch), phase="idle")
            if all(self._ready(state, guest) for guest in self.job.requests[epoch - 1]):
                yield "gathered", state._replace(phase="moving")
            elif self.job.deadline:
                yield "deadline", state._replace(phase="forced")
        elif state.phase in ("moving", "forced"):
            yield "done", state._replace(board=(epoch, epoch, cancelled), phase="idle")

    def _ready(self, state: State, guest: str) -> bool:
        """Whether the guest's agent reports that all live ranks have stopped."""
        epoch = state.board[0]
        live = [
            self._request(number, one)
            for number, one in enumerate(state.ranks)
            if self.job.guests[number] == guest and one.at != FINALIZED
        ]
        return bool(live) and state.pages[self.names.index(guest)][0] == epoch and all(r == Sleep(epoch) for r in live)

    def _request(self, number: int, one: One) -> Any:
        return self.requested(number, one.handled, one.at)[0] if one.at[0] == "hold" else None

    def _rank(self, state: State, number: int, one: One) -> Iterator[tuple[str, State]]:
        page = state.pages[self.names.index(self.job.guests[number])]
        what = f"rank {number}"
        if one.at == RUN:
            if self.job.barriers and one.left == self.job.barriers:
                yield f"{what} finalizes", self._put(state, number, one._replace(at=FINALIZED))
                return
            notice, handled = self.looked(one.handled, page)
            word = notice.epoch if notice else 0
            entered = one._replace(handled=handled, at=("enter", word, notice))
            yield f"{what} enters a barrier with {word}", self._entered(state, number, entered)
        elif one.at[0] == "answer":
            _, before, answer = one.at
            yield f"{what} gets {answer}", self._go_on(state, number, one._replace(at=before), answer)
        elif one.at[0] == "hold":
            request = self._request(number, one)
            if isinstance(request, Sleep):
                yield from self._wake(state, number, one, request.epoch, page)
            elif isinstance(request, Tell) and one.mail:
                yield f"{what} hears the leader", self._go_on(state, number, one._replace(mail=0), one.mail)

    def _wake(
        self, state: State, number: int, one: One, epoch: int, page: tuple[int, int, int]
    ) -> Iterator[tuple[str, State]]:
        _, done, cancelled = page
        if done >= epoch:
            yield f"rank {number} wakes: done", self._go_on(state, number, one, MOVED)
        elif cancelled >= epoch:
            yield f"rank {number} wakes: cancelled", self._go_on(state, number, one, CANCELLED)
        elif self.job.limit:
            yield f"rank {number} gives up", self._go_on(state, number, one, LIMIT)

    def _go_on(self, state: State, number: int, one: One, answer: Any) -> State:
        """The rank has an answer: it runs up to its next request."""
        if one.at[0] == "enter":
            _, _, notice = one.at
            at = ("hold", answer, notice, ()) if answer else None
        else:
            _, epoch, notice, answers = one.at
            at = ("hold", epoch, notice, (*answers, answer))
        request, handled = self.requested(number, one.handled, at) if at else (None, one.handled)
        if request is None:
            left = one.left + 1 if self.job.barriers else 0
            return self._put(state, number, one._replace(at=RUN, handled=handled, left=left))
        state = self._put(state, number, one._replace(at=at))
        if isinstance(request, Tell) and request.root == number:
            return self._told(state, number, request)
        if isinstance(request, (Exchange, Share)):
            return self._entered(state, number, state.ranks[number])
        return state

    def _told(self, state: State, number: int, request: Tell) -> State:
        """The leader sends, and goes on."""
        self._sends(state, f"rank {number} tells")
        ranks = tuple(
            one if rank == number else one._replace(mail=request.outcome) for rank, one in enumerate(state.ranks)
        )
        return self._go_on(state._replace(ranks=ranks), number, ranks[number], request.outcome)

    def _entered(self, state: State, number: int, one: One) -> State:
        """The rank is in a collective; if it was the last, all get their answers."""
        self._sends(state, f"rank {number} enters a collective")
        state = self._put(state, number, one)
        brought = [self._brought(rank, each) for rank, each in enumerate(state.ranks)]
        if None in brought:
            return state
        kinds = {type(each) for each in brought}
        if len(kinds) != 1:
            raise Found(f"ranks are in different collectives: {brought}")
        if kinds == {Exchange}:
            answer: Any = tuple(each.record for each in brought)
        elif kinds == {Share}:
            (root,) = {each.root for each in brought}
            answer = brought[root].agreed
        else:
            answer = max(brought)
        ranks = tuple(each._replace(at=("answer", each.at, answer)) for each in state.ranks)
        return state._replace(ranks=ranks)

    def _brought(self, number: int, one: One) -> Any:
        """What a rank has brought to the collective it is in: a word, or its request; None if it is in none."""
        if one.at[0] == "enter":
            return one.at[1]
        request = self._request(number, one)
        return request if isinstance(request, (Exchange, Share)) else None

    def _sends(self, state: State, what: str) -> None:
        if state.phase == "moving" and not self.job.limit:
            raise Found(f"{what}, which sends to guests that are moving")

    def _put(self, state: State, number: int, one: One) -> State:
        return state._replace(ranks=(*state.ranks[:number], one, *state.ranks[number + 1 :]))

    def check(self, state: State) -> None:
        """Raise Found if a message is under way to a guest that moves with all its ranks stopped."""
        if state.phase == "moving" and not self.job.limit:
            moving = self.job.requests[state.board[0] - 1]
            for number, (guest, one) in enumerate(zip(self.job.guests, state.ranks)):
                if guest in moving and (one.at[0] == "answer" or one.mail):
                    raise Found(f"a message is on its way to rank {number} on a guest that is moving")

    def at_rest(self, state: State) -> bool:
        """Whether nothing is left to be done: no epoch is open, every rank runs or has finalized."""
        everywhere = all(one.at in (RUN, FINALIZED) for one in state.ranks)
        return everywhere and state.phase == "idle" and state.board[0] == len(self.job.requests)


def explore(job: Job) -> int:
    """Visit every state of the job and return how many there are. Raises Found with the events that lead to a bad one.

    Bad are: a message to a moving guest, ranks in different collectives, and a state from which the job
    can't come to rest, whatever happens (a deadlock).
    """
    model = Model(job)
    first = model.first()
    came_from: dict[State, tuple[State, str] | None] = {first: None}
    before: dict[State, list[State]] = {}
    todo = [first]
    while todo:
        state = todo.pop()
        try:
            model.check(state)
            for event, after in model.next(state):
                before.setdefault(after, []).append(state)
                if after not in came_from:
                    came_from[after] = (state, event)
                    todo.append(after)
        except Found as found:
            raise Found(f"{found}\n{_way(came_from, state)}") from None
    good = {state for state in came_from if model.at_rest(state)}
    todo = list(good)
    while todo:
        for state in before.get(todo.pop(), ()):
            if state not in good:
                good.add(state)
                todo.append(state)
    for state in came_from:
        if state not in good:
            raise Found(f"the job can never come to rest from here: {state}\n{_way(came_from, state)}")
    return len(came_from)


def _way(came_from: dict[State, tuple[State, str] | None], state: State) -> str:
    events = []
    step = came_from[state]
    while step:
        events.append(step[1])
        step = came_from[step[0]]
    return "\n".join(reversed(events))
