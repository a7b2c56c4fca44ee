"""What evacuations must know of one another: whose turn it is, who shares a notice, which hosts are about to fail.

For threads that hold the lock of the controller's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from failavoid.controller.notices import NoticeBoard
from failavoid.controller.relocations import Relocations
from failavoid.shared.messages import EVACUATION_ENDS, Evacuation

if TYPE_CHECKING:
    from failavoid.controller.evacuation import EvacuationRun

WITHOUT_RANKS = ("lost", "relocating")  # guests of a job that need not leave
_NEVER = float("inf")


def destinations(evacuation: Evacuation) -> list[str]:
    """Return the hosts that guests go to in the present attempt: the spare, or all that they are packed onto."""
    return evacuation.packed_onto or ([evacuation.spare] if evacuation.spare else [])


class Fleet:
    """All evacuations by name, the oldest first."""

    def __init__(self, board: NoticeBoard, relocations: Relocations) -> None:
        self.runs: dict[str, EvacuationRun] = {}
        self._board = board
        self._relocations = relocations

    def open(self) -> list[EvacuationRun]:
        """Return the evacuations that have not ended."""
        return [run for run in list(self.runs.values()) if run.evacuation.state not in EVACUATION_ENDS]

    def open_on(self, host: str, job: str | None = None) -> EvacuationRun | None:
        """Return the open evacuation of a host, or of one job on it."""
        found = (run for run in self.open() if run.evacuation.host == host and job in (None, run.evacuation.job))
        return next(found, None)

    def others_on(self, evacuation: Evacuation) -> bool:
        """Whether another evacuation goes on to leave the same host: several may be cancelled at once."""
        return any(
            run.evacuation.host == evacuation.host and not run.gives_up
            for run in self.open()
            if run.evacuation is not evacuation
        )

    # -- spares ----------------------------------------------------------------------------------------------

    def failing_hosts(self) -> set[str]:
        """Return the hosts that nobody may move to: those that are left."""
        return {run.evacuation.host for run in self.open()}

    def failing_domains(self) -> set[str]:
        """Return the failure domains that are about to fail as a whole."""
        return {run.evacuation.domain for run in self.open() if run.evacuation.domain}

    def ids_beside(self, evacuation: Evacuation) -> list[str]:
        """Return the other evacuations of the same host: one spare may take the guests of several jobs."""
        return sorted(
            run.evacuation.id
            for run in self.open()
            if run.evacuation.host == evacuation.host and run.evacuation is not evacuation
        )

    def may_lease(self, evacuation: Evacuation) -> bool:
        """Whether it is this one's turn to take a spare: the earliest predicted failure comes first."""
        if self.waits_for_arrivals(evacuation):
            return False
        mine = self._urgency(evacuation)
        return not any(
            other.wants_spare
            and not self.waits_for_arrivals(other.evacuation)
            and self._urgency(other.evacuation) < mine
            for other in self.open()
            if other.evacuation is not evacuation
        )

    def waits_for_arrivals(self, evacuation: Evacuation) -> bool:
        """Whether guests are on their way to the host that this evacuation is to empty, or from it to their job."""
        return self._relocations.concern(evacuation.host) or any(
            evacuation.host in destinations(other.evacuation)
            for other in self.open()
            if other.evacuation is not evacuation and other.evacuation.state != "RELEASED"
        )

    def _urgency(self, evacuation: Evacuation) -> tuple[float, int]:
        alarm = evacuation.alarm
        lead = alarm.evidence.predicted_failure_s if alarm else None
        failure = alarm.time + lead if alarm and lead is not None else _NEVER
        return failure, list(self.runs).index(evacuation.id)

    # -- notices: one epoch of a job is open at a time, and evacuations that begin together share it -----------

    def epoch_is_free(self, evacuation: Evacuation) -> bool:
        """Whether the job has no notice open, and all guests' words about the last one have come."""
        job = evacuation.job
        return not self._board.is_open(job) and not any(other.holds_epoch for other in self._of_job(job))

    def others_are_ready(self, evacuation: Evacuation) -> bool:
        """Whether nobody is about to get as far as this one, to share its notice."""
        return not any(
            other.may_join_soon and not self.waits_for_arrivals(other.evacuation)
            for other in self._of_job(evacuation.job)
            if other.evacuation is not evacuation
        )

    def joined(self, evacuation: Evacuation) -> list[Evacuation]:
        """Give the job's next epoch to this evacuation and those that are ready for the same; returns them."""
        job, kind = evacuation.job, evacuation.kind
        known = [self._board.last_epoch(job), *(other.evacuation.epoch for other in self._every(job))]
        together = [
            other.evacuation
            for other in self._of_job(job)
            if other.ready_for_notice and other.evacuation.kind == kind and not other.evacuation.epoch
        ]
        for one in together:
            one.epoch = max(known) + 1
        return together

    def affected(self, evacuation: Evacuation) -> list[str]:
        """Return the guests that an evacuation's epoch is about; the same at any time."""
        return sorted({guest for one in self._sharing(evacuation) for guest in one.affected})

    def places(self, evacuation: Evacuation) -> tuple[str, str]:
        """Return the hosts that an evacuation's epoch leaves and those it goes to, in words."""
        sharing = [run.evacuation for run in self._sharing(evacuation)]
        left, spares = {one.host for one in sharing}, {host for one in sharing for host in destinations(one)}
        return ", ".join(sorted(left)), ", ".join(sorted(spares))

    def others_in_epoch(self, evacuation: Evacuation) -> bool:
        """Whether ranks have to wait for another evacuation of the same epoch."""
        return any(other.in_epoch for other in self._sharing(evacuation) if other.evacuation is not evacuation)

    def anything_moved(self, evacuation: Evacuation) -> bool:
        """Whether a guest moved, or may have, in an evacuation's epoch."""
        return any(one.has_moved for one in self._sharing(evacuation))

    def others_leave(self, evacuation: Evacuation) -> bool:
        """Whether another job's guests are on their way from the same host."""
        return any(
            other.evacuation.host == evacuation.host
            and other.evacuation.kind == "move"
            and other.evacuation.state != "RELEASED"
            for other in self.open()
            if other.evacuation is not evacuation
        )

    def _sharing(self, evacuation: Evacuation) -> Iterator[EvacuationRun]:
        return (run for run in self._every(evacuation.job) if run.evacuation.epoch == evacuation.epoch)

    def _every(self, job: str) -> Iterator[EvacuationRun]:
        return (run for run in list(self.runs.values()) if run.evacuation.job == job)

    def _of_job(self, job: str) -> list[EvacuationRun]:
        return [run for run in self.open() if run.evacuation.job == job]
