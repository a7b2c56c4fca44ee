"""Which step comes next, by the state in the journal."""

from __future__ import annotations

from collections.abc import Callable

from failavoid.controller.planning import CHECKPOINT
from failavoid.controller.spare import SpareFailedError
from failavoid.controller.way.gathered import gather
from failavoid.controller.way.leased import lease
from failavoid.controller.way.noticed import notice
from failavoid.controller.way.released import checkpointed, finish, release
from failavoid.controller.way.under_way import CancelledEvacuation, FailedEvacuation, UnderWay
from failavoid.controller.way.verified import migrate, open_gate


def go_on(way: UnderWay) -> None:
    """Take the step that comes next. Raises what ends the evacuation, or its present attempt."""
    if way.steps.begun("failed"):
        raise FailedEvacuation(way.evacuation.error)
    if way.steps.begun("cancelled"):
        raise CancelledEvacuation(way.evacuation.error)
    way.know_cluster()
    if begun := way.steps.find("attempt_failed"):
        raise SpareFailedError(begun.detail, way.reach.spare_is_dead())
    checkpoint = way.evacuation.kind == CHECKPOINT
    steps: dict[str, Callable[[UnderWay], None]] = {
        "PREDICTED": notice if checkpoint else lease,
        "LEASED": notice,
        "NOTICED": gather,
        "GATHERED": checkpointed if checkpoint else open_gate,
        "MIGRATING": migrate,
        "VERIFIED": release,
        "RELEASED": finish,
    }
    steps[way.evacuation.state](way)
