"""The controller's figures for Prometheus: evacuations and moves, counted over the whole journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from failavoid.controller.controller import Controller
from failavoid.exposition import histogram
from failavoid.shared.messages import EVACUATION_ENDS, Evacuation

SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
DOWNTIME_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
MODES = ("act", "recommend", "observe")


def collect(controller: Controller) -> Iterator[Metric]:
    """All of it at this moment."""
    with controller.around.changed:
        found = controller.evacuations()
        yield from _of_evacuations(found)
        yield from _of_moves(found)
        status = controller.status
    yield GaugeMetricFamily(
        "failavoid_evacuations_stopped", "1 while an operator has stopped new evacuations.", value=float(status.stopped)
    )
    mode = GaugeMetricFamily("failavoid_controller_mode", "1 for the mode the controller is in.", labels=["mode"])
    for name in MODES:
        mode.add_metric([name], float(name == status.mode))
    yield mode


def _of_evacuations(found: list[Evacuation]) -> Iterator[Metric]:
    states = Counter(one.state for one in found)
    ended = CounterMetricFamily("failavoid_evacuations", "Evacuations that have ended, by outcome.", labels=["outcome"])
    for outcome in EVACUATION_ENDS:
        ended.add_metric([outcome.lower()], states.pop(outcome, 0))
    yield ended
    yield GaugeMetricFamily("failavoid_evacuations_open", "Evacuations under way.", value=sum(states.values()))
    waiting = [one for one in found if one.needs_confirmation and not one.confirmed_by]
    yield GaugeMetricFamily(
        "failavoid_evacuations_unconfirmed",
        "Evacuations under way that wait for an operator's word.",
        value=sum(one.state not in EVACUATION_ENDS for one in waiting),
    )
    yield histogram(
        "failavoid_evacuation_seconds",
        "From the alarm, or from the first step, until all affected ranks ran again.",
        SECONDS,
        [done - begun for one in found if (begun := _begun(one)) and (done := _done(one, "released"))],
    )
    yield histogram(
        "failavoid_barrier_hold_seconds",
        "How long the affected ranks stood at the barrier, once the last of them had stopped.",
        SECONDS,
        [done - begun for one in found if (begun := _done(one, "gathered")) and (done := _done(one, "released"))],
    )


def _of_moves(found: list[Evacuation]) -> Iterator[Metric]:
    moves = [move for one in found for move in one.migrations]
    states = Counter(move.state for move in moves)
    counted = CounterMetricFamily(
        "failavoid_migrations", "Guests' moves that have ended, by outcome.", labels=["outcome"]
    )
    for outcome in ("moved", "failed", "cancelled"):
        counted.add_metric([outcome], states[outcome])
    yield counted
    moved = [move for move in moves if move.state == "moved"]
    yield histogram(
        "failavoid_migration_seconds",
        "Duration of the moves of guests, by libvirt's own statistics.",
        SECONDS,
        [move.elapsed_s for move in moved if move.elapsed_s is not None],
    )
    yield histogram(
        "failavoid_migration_downtime_seconds",
        "How long guests stood still while they moved.",
        DOWNTIME_S,
        [move.downtime_ms / 1000 for move in moved if move.downtime_ms is not None],
    )
    yield CounterMetricFamily(
        "failavoid_migration_bytes",
        "Bytes that moves of guests have sent.",
        value=sum(move.bytes or 0 for move in moved),
    )
    yield CounterMetricFamily(
        "failavoid_migrations_unpinned",
        "Guests that have moved and were not found on the cores they were to be pinned to.",
        value=sum(move.pin_verified is False for move in moved),
    )


def _begun(evacuation: Evacuation) -> float | None:
    if evacuation.alarm:
        return evacuation.alarm.time
    return min((step.begun for step in evacuation.steps), default=None)


def _done(evacuation: Evacuation, name: str) -> float | None:
    return next((step.done for step in evacuation.steps if step.name == name), None)
