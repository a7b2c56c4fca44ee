"""An evacuation under way: what its steps share, and what they wait for."""

from __future__ import annotations

import logging
from collections.abc import Callable

from failavoid.controller.clock import NEVER
from failavoid.controller.fleet import Fleet, destinations
from failavoid.controller.manager import ManagerError
from failavoid.controller.moving import Move
from failavoid.controller.playbooks import MoveOrder
from failavoid.controller.ranks import Ranks
from failavoid.controller.reach import Reach
from failavoid.controller.spare import Spare, SpareFailedError
from failavoid.controller.steps import Steps
from failavoid.controller.surroundings import Surroundings
from failavoid.controller.verification import MOVED, STAYED
from failavoid.shared.messages import Evacuation, Migration

log = logging.getLogger(__name__)


class CancelledEvacuation(Exception):
    """Nothing moves any more, and nothing has moved that did not arrive: the reason."""


class FailedEvacuation(Exception):
    """The move did not come out as it should: what is known, and what a person must decide."""


class UnderWay:
    """What the steps of ``evacuation`` work with, in its thread.

    ``move`` is the present attempt's playbook. ``opened``: the gate may be open, ``ready_for_notice``: it waits for the
    job's notice.
    """

    def __init__(self, evacuation: Evacuation, around: Surroundings, fleet: Fleet, steps: Steps, ranks: Ranks) -> None:
        self.opened = False  # also after a restart, until the spare is known to be ours
        self.ready_for_notice = False
        self.evacuation = evacuation
        self.around = around
        self.fleet = fleet
        self.steps = steps
        self.ranks = ranks
        self.move: Move | None = None
        self.spare = Spare(evacuation, fleet, around.manager, around.journal, around.limits, around.clock)
        self.reach = Reach(evacuation, around, self.spare)

    def know_cluster(self) -> None:
        """See to it that hosts, guests and the job are known: a controller that was just started knows nothing of them.

        Raises CancelledEvacuation.
        """
        evacuation, around = self.evacuation, self.around
        around.cluster.wait_until_known(around.clock, around.limits.retry_s, lambda: evacuation.cancel)
        if around.cluster.membership is None:
            raise CancelledEvacuation(evacuation.cancel)

    def interrupted(self) -> bool:
        """Whether something keeps the evacuation from going on as it was planned."""
        evacuation = self.evacuation
        return bool(evacuation.cancel) or self.job_over() or bool(self.lost())

    def lost(self) -> list[str]:
        """Return the hosts, of those that guests are to go to, that must not be gone to any more."""
        return [host for host in destinations(self.evacuation) if host in self.evacuation.failed_spares]

    def give_way(self) -> None:
        """Raise what ends the evacuation, or this attempt, before the move."""
        evacuation = self.evacuation
        if evacuation.cancel:
            raise CancelledEvacuation(evacuation.cancel)
        if self.job_over():
            raise CancelledEvacuation(f"job {evacuation.job} has ended")
        if lost := self.lost():
            raise SpareFailedError("; ".join(evacuation.failed_spares[host] for host in lost), dead=True)
        if self.move is not None and self.move.result is not None:
            failures = "; ".join(self.move.result.failures) or "it ended before the guests were allowed to move"
            dead = self.reach.spare_is_dead()
            raise SpareFailedError(f"the destination could not be prepared: {failures}", dead)

    def wait(self, happened: Callable[[], object], until: float = NEVER) -> None:
        """Wait until ``happened``, at the latest until that time, and keep the lease meanwhile.

        Raises SpareFailedError if it was lost.
        """
        clock, moving = self.around.clock, self.evacuation.state == "MIGRATING"
        while True:
            wake = max(self.spare.renew_at, clock.now() + 1.0) if self.evacuation.lease else NEVER
            if clock.wait(happened, min(until, wake)) or clock.now() >= until:
                return
            self.spare.keep(guests_move=moving)
            self.around.news.bump()  # who waits at the gate while that was not known asks again

    def start_move(self) -> Move:
        """Start this attempt's playbook, or go on hearing it."""
        if self.move is None:
            around, evacuation = self.around, self.evacuation
            membership, moves = around.cluster.refresh(), self.moves()
            hosts, moving = {host.name: host for host in membership.hosts}, {move.guest for move in moves}
            memory_kb = sum(guest.memory_kb for guest in membership.guests if guest.name in moving)
            order = MoveOrder(evacuation.id, evacuation.attempt, moves, hosts, memory_kb)
            self.move = Move(order, around.migrate, around.abort, around.changed, around.clock)
            self.move.start()
        return self.move

    def playbook_ended(self) -> bool:
        """Whether this attempt's playbook was started and has ended."""
        return self.move is not None and self.move.result is not None

    def moves(self) -> list[Migration]:
        """Return the migrations of the present attempt."""
        return [m for m in self.evacuation.migrations if m.attempt == self.evacuation.attempt]

    def job_over(self) -> bool:
        """Whether the job has ended."""
        return self.around.cluster.job_is_over(self.evacuation.job)

    def in_state(self, state: str) -> list[str]:
        """Return the guests whose migrations of the present attempt are in that state."""
        return sorted(m.guest for m in self.moves() if m.state == state)

    def cause(self) -> str:
        """Return why the host is left, as the resource manager keeps it."""
        alarm = self.evacuation.alarm
        return f"evacuated as {self.evacuation.id}: " + (
            f"rule {alarm.rule}, {alarm.metric} {alarm.value:.2f}" if alarm else self.evacuation.reason
        )

    def try_to(self, what: str, act: Callable[[], bool]) -> bool:
        """Do what can still be done; a refusal is said, and the rest goes on. False if nobody has heard."""
        try:
            return act()
        except (FailedEvacuation, ManagerError) as refusal:
            log.error("%s: could not %s: %s", self.evacuation.id, what, refusal)
            words = f"could not {what}: {refusal}"
            self.evacuation.error = "; ".join(filter(None, [self.evacuation.error, words]))
            return True

    def unmoved(self, reason: str) -> Exception:
        """Return what ends an evacuation whose guests can't all move: a person is needed once moves have failed."""
        tried = any(m.state in (MOVED, STAYED) for m in self.evacuation.migrations)
        return FailedEvacuation(reason) if tried else CancelledEvacuation(reason)
