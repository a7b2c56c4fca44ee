"""The way to GATHERED: the ranks wait at their barrier, or the deadline has passed."""

from __future__ import annotations

import logging

from failavoid.controller.planning import CHECKPOINT
from failavoid.controller.way.under_way import CancelledEvacuation, UnderWay

log = logging.getLogger(__name__)


def gather(way: UnderWay) -> None:
    """Wait for the ranks at the barrier while the playbook prepares the destination, until the deadline."""
    evacuation = way.evacuation
    way.steps.begin("gathered")
    if evacuation.kind != CHECKPOINT:
        way.start_move()
    guests, deadline = _guests(way), way.ranks.deadline()

    def settled() -> object:
        return way.interrupted() or way.playbook_ended() or way.ranks.ready(guests) == guests

    began = way.around.clock.now()
    way.wait(settled, deadline)
    if not settled() and way.reach.wait_while_cut_off():  # nobody could be heard: they get the same time again
        way.wait(settled, way.around.clock.now() + max(deadline - began, way.around.limits.gather_minimum_s))
    with way.around.changed:
        ready = way.ranks.ready(guests)
    way.give_way()
    words = f"{len(ready)} of {len(guests)} guests ready"
    if len(ready) < len(guests):
        words = f"at the deadline {words}"
        if evacuation.kind == CHECKPOINT:
            log.warning("%s: %s; the job goes on", evacuation.id, words)
        elif way.ranks.on_deadline() == "cancel" and evacuation.attempt == 1:
            raise CancelledEvacuation(f"{words}, and the policy is to cancel then")
        else:
            log.warning("%s: %s; they are moved all the same", evacuation.id, words)
    way.steps.done("gathered", "GATHERED", words)


def _guests(way: UnderWay) -> list[str]:
    return way.ranks.affected if way.evacuation.kind == CHECKPOINT else sorted(m.guest for m in way.moves())
