"""The ways back: the next attempt with another spare, CANCELLED and FAILED."""

from __future__ import annotations

import logging

from failavoid.controller.fleet import destinations
from failavoid.controller.verification import MOVED, STAYED, UNCLEAR
from failavoid.controller.way.released import commit, retire, staying
from failavoid.controller.way.under_way import FailedEvacuation, UnderWay

log = logging.getLogger(__name__)

_TRIES = 3  # to reach the resource manager, while ranks wait


def end_attempt(way: UnderWay, reason: str, dead: bool) -> None:
    """Give up the spare, not the evacuation: guests that moved stay moved, the others go to the next spare."""
    evacuation = way.evacuation
    spares = destinations(evacuation)
    log.error("%s: attempt %d, spare %s: %s", evacuation.id, evacuation.attempt, ", ".join(spares), reason)
    blamed = _to_blame(way)
    with way.around.changed:
        evacuation.failed_spares.update(dict.fromkeys(blamed, reason))
        way.steps.begin("attempt_failed", reason)
    way.around.news.bump()  # who waits at the gate is sent home
    cut_off = way.reach.wait_while_cut_off()
    end = way.around.clock.now() + way.around.limits.give_back_timeout_s
    if way.move is not None:
        way.move.end(end, way.around.clock.wait)
        way.move = None
    if way.in_state(MOVED):
        if not commit(way, _TRIES):
            raise FailedEvacuation(f"{reason}; the resource manager does not answer")
    else:
        if dead and not evacuation.packed_onto:  # a host of a job is not set aside: it has guests of its own
            words = f"{evacuation.id} could not move guests here: {reason}"
            way.try_to(f"keep {evacuation.spare} from others", lambda: way.spare.set_aside(words, _TRIES))
        way.spare.give_back(end)
    with way.around.changed:
        for migration in way.moves():
            if migration.state != MOVED:
                migration.state = STAYED if migration.state in (STAYED, UNCLEAR) else "cancelled"
        last = evacuation.attempt >= way.around.policy.attempts
        if not last:
            way.opened = False
            for host in blamed if cut_off and not dead else []:
                del evacuation.failed_spares[host]  # the next attempt may well go there
            way.steps.next_attempt(reason)
    if last:
        raise way.unmoved(f"{reason}; {evacuation.attempt} spares were tried")


def _to_blame(way: UnderWay) -> list[str]:
    """Return the hosts that a failed attempt is put down to: none if one is known to fail itself.

    Of several, those that guests did not come to, or that are silent: there is nowhere else to go.
    """
    if way.lost():
        return []
    spares = destinations(way.evacuation)
    if len(spares) < 2:
        return spares
    missed = {m.destination for m in way.moves() if m.state in (STAYED, UNCLEAR)}
    return [host for host in spares if host in missed or not way.around.verifier.can_be_asked(host)]


def cancelled(way: UnderWay, reason: str) -> None:
    """Release the ranks, end the playbook, return the spare: nothing moves any more."""
    evacuation = way.evacuation
    with way.around.changed:
        moved = sorted(f"{m.guest} moved to {m.destination}" for m in evacuation.migrations if m.state == MOVED)
        if not way.steps.begun("cancelled"):
            evacuation.error = "; ".join([reason, *moved])
        for migration in way.moves():
            if migration.state != MOVED:
                migration.state = "cancelled"
        way.steps.begin("cancelled", evacuation.error)
    way.around.news.bump()
    way.ranks.leave_epoch()
    end = way.around.clock.now() + way.around.limits.give_back_timeout_s
    if way.move is not None:
        way.move.end(end, way.around.clock.wait)
    if _holds_lease(way):
        way.spare.give_back(end)
    if way.steps.begun("suspected"):
        way.try_to(f"trust {evacuation.host} again", lambda: way.spare.insist(lambda: _trust(way), _TRIES))
    log.warning("%s: cancelled: %s", evacuation.id, evacuation.error)
    way.steps.done("cancelled", "CANCELLED")


def _trust(way: UnderWay) -> None:
    """Take back that the host is suspected, unless somebody goes on to leave it.

    Of several that are cancelled at once each may do it: none of them can know which is the last.
    """
    with way.around.changed:
        left_by_others = way.fleet.others_on(way.evacuation)
    if not left_by_others:
        way.around.manager.trust(way.evacuation.host)


def failed(way: UnderWay, reason: str) -> None:
    """Keep what is known: moved guests are committed, ranks released; a person decides the rest."""
    evacuation = way.evacuation
    log.error("%s: FAILED: %s", evacuation.id, reason)
    with way.around.changed:
        evacuation.error = reason
        way.steps.begin("failed", reason)
    moved, unclear = way.in_state(MOVED), way.in_state(UNCLEAR)
    told = not moved or way.try_to("tell where the guests run", lambda: commit(way, 1))
    way.ranks.release()
    if not told:
        way.try_to("tell where the guests run", lambda: commit(way, None))
    if unclear and not moved and not evacuation.packed_onto:  # where a guest might be, nobody else is placed
        words = f"guests of {evacuation.id} may run here: look"
        way.try_to(f"keep {evacuation.spare} from others", lambda: way.spare.set_aside(words, None))
    elif not moved and not unclear and _holds_lease(way):
        way.spare.give_back(way.around.clock.now() + way.around.limits.give_back_timeout_s)
    elif moved and not way.in_state(STAYED) and not unclear and not staying(way):
        way.try_to(f"retire {evacuation.host}", lambda: retire(way, None))
    way.steps.done("failed", "FAILED", evacuation.error)


def _holds_lease(way: UnderWay) -> bool:
    """Whether a spare was asked for in this attempt."""
    return way.evacuation.lease is not None or way.steps.begun("leased")
