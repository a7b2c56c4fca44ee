"""The way to LEASED: what is to be done is planned, and a spare is held for it."""

from __future__ import annotations

import logging

from failavoid.controller.fleet import WITHOUT_RANKS, destinations
from failavoid.controller.manager import ManagerError
from failavoid.controller.planning import CHECKPOINT, NOTHING, OFF, lead_of
from failavoid.controller.spare import NoSpareError
from failavoid.controller.verification import MOVED
from failavoid.controller.way.under_way import CancelledEvacuation, UnderWay
from failavoid.shared.messages import Guest, Migration

log = logging.getLogger(__name__)


def lease(way: UnderWay) -> None:
    """Plan what is to be done; then, called again, hold a spare with places for the guests."""
    evacuation, policy = way.evacuation, way.around.policy
    if evacuation.plan is None:
        way.wait(lambda: way.interrupted() or not way.fleet.waits_for_arrivals(evacuation))
        _plan(way)
        return
    way.wait(lambda: way.interrupted() or way.fleet.may_lease(evacuation))
    way.give_way()
    guests = _guests_to_move(way)
    way.steps.begin("leased")
    try:
        placements = way.spare.take(sorted(guests), policy.on_no_spare == "pack")
    except NoSpareError as refusal:
        raise _no_spare(way, sorted(guests), str(refusal)) from refusal
    except ManagerError as silence:
        raise CancelledEvacuation(str(silence)) from silence
    with way.around.changed:
        evacuation.migrations = [m for m in evacuation.migrations if m.attempt != evacuation.attempt] + [
            Migration(
                *(p.guest, evacuation.host, p.host, p.cores, p.numa_node),
                address=guests[p.guest].address,
                attempt=evacuation.attempt,
                devices=p.devices,
            )
            for p in placements
        ]
    words = f"{', '.join(destinations(evacuation))} for {', '.join(sorted(guests))}"
    way.steps.done("leased", "LEASED", words)


def _plan(way: UnderWay) -> None:
    evacuation, around = way.evacuation, way.around
    way.give_way()
    way.steps.begin("planned")
    job, host = around.cluster.job(evacuation.job), around.cluster.host(evacuation.host)
    if job is None or host is None:
        raise CancelledEvacuation(f"there is no {'host ' + evacuation.host if job else 'job ' + evacuation.job}")
    guests: dict[str, Guest] = {} if job.resource == "hosts" else _guests_to_move(way)
    past = [run.evacuation for run in way.fleet.runs.values()]
    lead = lead_of(evacuation.alarm, around.clock.now())
    others = [other for other in around.cluster.refresh().hosts if other.name != host.name]
    plan = around.planner.plan(host, job, list(guests.values()), lead, past, others)
    words = f"{plan.decision}: {'; '.join(plan.reasons)}"
    with around.changed:
        evacuation.plan = plan
        evacuation.kind = CHECKPOINT if plan.decision == CHECKPOINT else "move"
    if plan.decision != OFF:
        _suspect(way)
    way.steps.done("planned", None, words)
    if plan.decision == OFF:
        raise CancelledEvacuation(words)
    if plan.decision == NOTHING:
        log.error("%s: NOTHING HELPS the guests on %s: %s", evacuation.id, evacuation.host, words)
        if around.policy.on_short_lead == "cancel":
            raise CancelledEvacuation(words)


def _suspect(way: UnderWay) -> None:
    """Have the host get no new work; an evacuation goes on without that too."""
    evacuation, suspect = way.evacuation, way.around.manager.suspect
    way.steps.begin("suspected")
    heard = way.try_to(
        f"have {evacuation.host} suspected",
        lambda: way.spare.insist(
            lambda: suspect(evacuation.host, way.cause(), evacuation.id, evacuation.job), attempts=1
        ),
    )
    way.steps.done("suspected", None, "" if heard else "the resource manager did not answer")


def _guests_to_move(way: UnderWay) -> dict[str, Guest]:
    """Return the guests that are to leave, as the resource manager knows them now, by name."""
    evacuation = way.evacuation
    membership = way.around.cluster.refresh()
    # its last word, where it does not answer now, may be older than an earlier attempt
    moved = {migration.guest for migration in evacuation.migrations if migration.state == MOVED}
    found = {
        guest.name: guest
        for guest in membership.guests
        if (guest.host, guest.job) == (evacuation.host, evacuation.job)
        and guest.state not in WITHOUT_RANKS
        and guest.name not in moved
    }
    if not found:
        raise CancelledEvacuation(f"no guest of job {evacuation.job} is on {evacuation.host} any more")
    return found


def _no_spare(way: UnderWay, guests: list[str], refusal: str) -> Exception:
    """Return what follows from there being no spare; say it loudly."""
    evacuation = way.evacuation
    words = f"no spare to move to: {refusal}"
    words = "; ".join([words, *(f"{host} failed: {why}" for host, why in evacuation.failed_spares.items())])
    log.error("%s: NO SPARE for %s: %s", evacuation.id, evacuation.host, words)
    return way.unmoved(f"{', '.join(guests)} stay on {evacuation.host}: {words}")
