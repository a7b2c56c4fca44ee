"""The ranks of a job while guests leave a host: how long they are waited for, and their release."""

from __future__ import annotations

import logging

from failavoid.controller.fleet import Fleet
from failavoid.controller.notices import Reports
from failavoid.controller.planning import CHECKPOINT
from failavoid.controller.steps import Steps
from failavoid.controller.surroundings import Surroundings
from failavoid.controller.verification import MOVED, UNCLEAR
from failavoid.shared.messages import Evacuation

log = logging.getLogger(__name__)


class Ranks:
    """The ranks that ``evacuation`` stops, in an epoch that it may share with others of the job."""

    def __init__(self, evacuation: Evacuation, around: Surroundings, fleet: Fleet, steps: Steps) -> None:
        self._evacuation = evacuation
        self._around = around
        self._fleet = fleet
        self._steps = steps

    @property
    def affected(self) -> list[str]:
        """The guests the evacuation's notice is about."""
        evacuation = self._evacuation
        if evacuation.kind == CHECKPOINT and evacuation.plan:
            return sorted(one.guest for one in evacuation.plan.guests)
        return sorted({migration.guest for migration in evacuation.migrations})

    @property
    def has_moved(self) -> bool:
        """Whether a guest moved or may have; of a checkpoint, whether there was time for it."""
        if self._evacuation.kind == CHECKPOINT:
            return self._steps.begun("released")
        return any(migration.state in (MOVED, UNCLEAR) for migration in self._evacuation.migrations)

    def ready(self, guests: list[str]) -> list[str]:
        """Return those of the guests whose ranks have all stopped."""
        ready = self._reports().ready
        return [guest for guest in guests if guest in ready]

    def deadline(self) -> float:
        """When guests must move, ready or not: before the predicted failure, by the time a move takes."""
        evacuation, limits = self._evacuation, self._around.limits
        noticed = self._steps.first("noticed").begun  # ranks wait since then
        alarm, plan, wait = evacuation.alarm, evacuation.plan, limits.gather_timeout_s
        if alarm is not None and alarm.evidence.predicted_failure_s is not None:
            failure, move = alarm.time + alarm.evidence.predicted_failure_s, 0.0
            if evacuation.kind != CHECKPOINT:
                move = max(limits.expected_migration_s, plan.needed_s if plan else 0.0)
            wait = min(wait, failure - move - noticed)
        return noticed + max(wait, limits.gather_minimum_s)

    def on_deadline(self) -> str:
        """Return what the job wants when not all ranks have stopped in time, or else the site."""
        job = self._around.cluster.job(self._evacuation.job)
        return (job.request.on_deadline if job else "") or self._around.limits.on_deadline

    def leave_epoch(self) -> None:
        """Let the ranks run, unless another evacuation shares the notice: the last one does it."""
        evacuation, board = self._evacuation, self._around.board
        with self._around.changed:
            if evacuation.epoch and not self._fleet.others_in_epoch(evacuation):
                end = board.finish if self._fleet.anything_moved(evacuation) else board.cancel
                end(evacuation.job, evacuation.epoch)
            self._around.changed.notify_all()

    def release(self) -> None:
        """Release the ranks, and wait for each guest's word that its ranks run again."""
        evacuation, clock, cluster = self._evacuation, self._around.clock, self._around.cluster
        if not evacuation.epoch or self._steps.is_done("released"):
            return
        self._steps.begin("released")
        self.leave_epoch()
        clock.wait(lambda: not self._fleet.others_in_epoch(evacuation))
        until = clock.now() + self._around.limits.resume_timeout_s
        clock.wait(lambda: not self._silent() or cluster.job_is_over(evacuation.job), until)
        with self._around.changed:
            reports, waiting = self._reports(), self._silent()
            resumed = [at for guest, at in reports.resumed.items() if guest in self.affected]
        words = f"{len(resumed)} of {len(self.affected)} guests resumed"
        if waiting:
            words += f", no word from {', '.join(waiting)}"
            log.warning("%s: %s", evacuation.id, words)
        begun = next(step.begun for step in evacuation.steps if step.name == "released")
        arrived = max(resumed, default=begun) if not waiting else clock.now()
        self._steps.done("released", None, words, at=max(begun, arrived))

    def _reports(self) -> Reports:
        return self._around.board.reports(self._evacuation.job, self._evacuation.epoch)

    def _silent(self) -> list[str]:
        resumed = self._reports().resumed
        return [guest for guest in self.affected if guest not in resumed]
