"""The ways to MIGRATING and VERIFIED: the gate opens, guests move, and where they are is found out."""

from __future__ import annotations

import logging
from collections.abc import Callable

from failavoid.controller.fleet import destinations
from failavoid.controller.moving import Move
from failavoid.controller.playbooks import preparation
from failavoid.controller.spare import SpareFailedError
from failavoid.controller.verification import MOVED, STAYED, UNCLEAR
from failavoid.controller.way.under_way import CancelledEvacuation, FailedEvacuation, UnderWay
from failavoid.playbook_runner import PlaybookResult

log = logging.getLogger(__name__)


def open_gate(way: UnderWay) -> None:
    """From here on guests move; who asked to cancel before has been heard, who asks later is too late."""
    way.start_move()
    _be_sure_of_spare(way, False, lambda: way.interrupted() or way.playbook_ended())
    with way.around.changed:
        way.give_way()
        way.evacuation.state = "MIGRATING"
        for migration in way.moves():
            migration.state = "running"
        way.steps.begin("migrating")
        way.opened = True
    log.info("%s: MIGRATING %d guests", way.evacuation.id, len(way.moves()))
    way.around.news.bump()


def migrate(way: UnderWay) -> None:
    """Have the guests moved, and find out where each of them is, whatever the playbook says."""
    evacuation = way.evacuation
    move = way.start_move()
    try:
        _open_again(way)
        _hear_out(way, move)
        while way.playbook_ended() and not move.has_verified_all() and way.reach.wait_while_cut_off():
            way.move = None  # the moves went on without their playbook: the next one attaches to them
            move = way.start_move()
            _hear_out(way, move)
    except SpareFailedError as loss:
        log.error("%s: %s; what still moves is given up", evacuation.id, loss)
    result, unnamed = move.settle()
    _note_preparation(way, result)
    way.steps.done("migrating", None, f"the playbook: {result.status}, {len(unnamed)} guests not named")
    way.steps.begin("verified")
    troubles = way.around.verifier.verify(evacuation, way.moves())
    troubles += [f"the playbook says nothing of {guest}" for guest in unnamed]
    troubles += [f"the playbook: {failure}" for failure in result.failures]
    moved = way.in_state(MOVED)
    if way.job_over() and not way.in_state(UNCLEAR):
        # nobody's ranks are left to care for, and where the guests are is known
        if not way.ranks.has_moved:
            raise CancelledEvacuation("; ".join([f"job {evacuation.job} has ended, nothing has moved", *troubles]))
        words = "; ".join([f"job {evacuation.job} has ended; {', '.join(moved) or 'none'} moved", *troubles])
    elif way.in_state(STAYED) and not way.in_state(UNCLEAR):
        dead = not moved and way.reach.spare_is_dead()
        raise SpareFailedError("; ".join(troubles), dead)
    elif troubles:
        raise FailedEvacuation("; ".join(troubles))
    else:
        words = f"{len(moved)} guests run on {', '.join(destinations(evacuation))}"
    way.steps.done("verified", "VERIFIED", words)


def _hear_out(way: UnderWay, move: Move) -> None:
    """Wait for all that the playbook says; while it verifies guests that have moved, agents look at them too."""
    way.wait(lambda: move.all_have_moved() or move.has_said_all())
    if move.all_have_moved():
        way.around.verifier.ask(way.evacuation, way.moves())
    way.wait(move.has_said_all)


def _open_again(way: UnderWay) -> None:
    """After a restart: open the gate again. Raises SpareFailedError if the spare was given to somebody else."""
    if not way.opened:
        _be_sure_of_spare(way, True, way.playbook_ended)
        way.opened = True
        way.around.news.bump()


def _be_sure_of_spare(way: UnderWay, guests_move: bool, over: Callable[[], object]) -> None:
    """Wait until the spare is known to be ours, or until ``over``. Raises SpareFailedError if it was lost.

    A resource manager that is silent now may have given it to somebody else before.
    """
    while True:
        way.spare.keep(guests_move)
        if way.spare.is_ours or over():
            return
        way.around.clock.wait(over, way.spare.renew_at)


def _note_preparation(way: UnderWay, result: PlaybookResult) -> None:
    if times := preparation(result):
        way.steps.begin("prepare_destination", at=times[0])
        way.steps.done("prepare_destination", at=times[1])
