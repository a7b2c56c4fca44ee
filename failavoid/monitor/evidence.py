"""Why an alarm was raised: the figures behind a rule's verdict, in the metric's own units."""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np

from failavoid.monitor.panels import Panel, pick
from failavoid.monitor.store import Collection
from failavoid.prediction.grouping import Floats, Ints
from failavoid.prediction.models import Correlative
from failavoid.prediction.watch import Tick
from failavoid.shared.messages import Evidence

# what is looked at together: memory, and what else a host does differently when it is short of it
TOGETHER = ("mem_available_kb", "cpu", "load1", "swap_used_kb", "psi_memory")
_LEAST_SPREAD = 0.01  # of a metric's size: what never moves at all says nothing when it does by a grain


def explain(
    panel: Panel, tick: Tick, rule: str, column: int, horizon_s: float, interval: tuple[float, float] | None
) -> Evidence:
    """The evidence of one host; what is known of memory alone is filled in by `add_memory`."""
    view, normal = tick.view, tick.verdicts[rule].normal
    failure, mode = panel.settings.failure, panel.mode
    slope = float(view.trend.slope[column])
    predicted = float(view.trend.failure[column])
    value, centre, scale = (_finite(of[column]) or 0.0 for of in (view.now, normal.centre, normal.scale))
    threshold = panel.settings.threshold
    if mode:
        value, centre, threshold = (mode.value(share, failure) for share in (value, centre, threshold))
        scale, slope = abs(mode.difference(scale, failure)), mode.difference(slope, failure)
    settings = dataclasses.asdict(panel.settings)
    settings.update(rule=rule, mode=panel.name, horizon_s=horizon_s)
    return Evidence(
        value=value,
        centre=centre,
        scale=scale,
        z=_finite(normal.z[column]) or 0.0,
        threshold=threshold,
        slope_per_s=_finite(slope),
        predicted_failure_s=_finite(predicted),
        predicted_failure_interval_s=list(interval) if interval and np.isfinite(interval).all() else None,
        relative_probability=float(view.relative_probability[column]),
        peers=int(view.peers[column]),
        settings=settings,
    )


def pressure_from(total: Floats, guests: Floats, groups: Ints, column: int) -> str | None:
    """Where a host's excess over its group's median comes from: ``host`` or ``guests``.

    ``total`` is the share of memory in use, ``guests`` the part of it that the guests' QEMU
    processes hold. A leak inside a guest travels with the guest; one outside stays behind.
    """
    mine = groups == groups[column]
    excess = [float(part[column] - np.nanmedian(part[mine])) for part in (total - guests, guests)]
    if not np.isfinite(excess).all():
        return None
    return "host" if excess[0] >= excess[1] else "guests"


def correlative_distance(past: deque[Collection], columns: Ints, column: int) -> float | None:
    """How far one host is from its group by several metrics together (Mahalanobis); None if too little is known.

    ``columns`` are the group's in the collections; the model is fitted on the other hosts of the last ones.
    """
    rows = [
        np.array([pick(collection.metric(name), columns) for name in TOGETHER]).T
        for collection in past
        if (columns < collection.values.shape[1]).all()
    ]
    if not rows:
        return None
    others = np.concatenate([np.delete(row, column, axis=0) for row in rows])
    own = rows[-1][column : column + 1]
    offered = np.isfinite(own[0]) & np.isfinite(others).any(axis=0)
    size = np.nanmax(np.abs(others[:, offered]), axis=0) if offered.any() else np.zeros(0)
    moves = np.zeros(len(TOGETHER), dtype=bool)
    moves[offered] = size > 0
    if not moves.any():
        return None
    size = np.nanmax(np.abs(others[:, moves]), axis=0)
    grain = np.random.default_rng(0).normal(0, _LEAST_SPREAD, (len(others), int(moves.sum())))
    try:
        model = Correlative.fit(others[:, moves] / size + grain)
    except (ValueError, np.linalg.LinAlgError):
        return None
    return _finite(float(model.distance(own[:, moves] / size)[0]))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
