"""The way to NOTICED: a person has confirmed, the job's notice is free, and it is posted."""

from __future__ import annotations

from failavoid.controller.way.under_way import CancelledEvacuation, UnderWay


def notice(way: UnderWay) -> None:
    """Post the notice to all ranks that it concerns, once somebody has confirmed where that is asked for."""
    evacuation, around = way.evacuation, way.around
    if not evacuation.epoch:
        _wait_for_confirmation(way)
        _take_epoch(way)
    way.give_way()
    way.steps.begin("noticed")
    with around.changed:
        affected, (left, spares) = way.fleet.affected(evacuation), way.fleet.places(evacuation)
        around.board.post(evacuation.job, evacuation.epoch, affected, evacuation.kind, left, spares)
    way.steps.done("noticed", "NOTICED", f"epoch {evacuation.epoch}, {evacuation.kind}")


def _wait_for_confirmation(way: UnderWay) -> None:
    evacuation = way.evacuation
    if not evacuation.needs_confirmation or evacuation.confirmed_by:
        return
    way.steps.begin("confirmed")
    asked = next(step.begun for step in evacuation.steps if step.name == "confirmed")
    until = asked + way.around.limits.confirm_timeout_s
    way.wait(lambda: evacuation.confirmed_by or way.interrupted(), until)
    way.give_way()
    if not evacuation.confirmed_by:
        raise CancelledEvacuation(f"nobody confirmed it within {way.around.limits.confirm_timeout_s:.0f} s")
    way.steps.done("confirmed", None, f"by {evacuation.confirmed_by}")


def _take_epoch(way: UnderWay) -> None:
    """Wait for the job's notice to be free, and give its next epoch to all that are ready for it."""
    evacuation, around, fleet = way.evacuation, way.around, way.fleet
    with around.changed:
        way.ready_for_notice = True
        around.changed.notify_all()
    soon = around.clock.now() + around.limits.join_timeout_s

    def settled() -> object:
        return way.interrupted() or evacuation.epoch

    way.wait(lambda: settled() or fleet.others_are_ready(evacuation), soon)
    while not evacuation.epoch:
        way.wait(lambda: settled() or fleet.epoch_is_free(evacuation))
        with around.changed:
            way.give_way()
            if evacuation.epoch or not fleet.epoch_is_free(evacuation):  # somebody else was faster
                continue
            around.journal.save(*fleet.joined(evacuation))
            around.changed.notify_all()
