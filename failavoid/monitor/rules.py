"""The rules that tell a failing host from its job's other hosts.

Pure functions on arrays: they know nothing of samples, jobs or time of day, so that the
live monitor and a replay of an archive judge alike. One call judges all hosts of all
groups at one collection. A host that runs guests of two jobs is in two columns.

``paper``      value > mean + sigma standard deviations of its group, and over the threshold
``threshold``  over the threshold
``robust``     an outlier by median and MAD (with 3 to 5 hosts: by the others' mean and
               standard deviation), and over the threshold or about to fail by its trend

While most of a host's peers are over the threshold, or soon will be where it is, the application is at
work and not a failure: `paper` and `robust` then stay silent. Below 3 hosts nobody can say
who is the outlier: `robust` stays silent too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

RULES = ("robust", "paper", "threshold")
MIN_HOSTS = 3
SMALL_GROUP = 5
MAD_TO_SIGMA = 1.4826  # of normally distributed values
_BEYOND = 16.0  # a share of memory that no host has
_Z90 = 1.2815515655446004  # quantile of the normal distribution that leaves 10 % on each side


@dataclass(frozen=True)
class RuleSettings:
    """What the rules can be told. Values of the metric are shares of a host's memory, 0..1."""

    threshold: float = 0.75  # danger
    failure: float = 0.90  # where the OOM killer is expected
    sigma: float = 2.0  # `paper`: standard deviations over the mean
    z: float = 5.0  # `robust`: scales over the centre
    scale_floor: float = 0.01  # `robust`: the scale is at least this
    skew_s: float = 2.0  # and at least what the group's trend makes of a start this much earlier
    horizon_s: float = 60.0  # a failure predicted within this time is danger
    trend_floor: float = 0.50  # from this value on a trend counts
    slope_window_s: float = 10.0
    persistence_s: float = 5.0  # `robust` must hold this long
    application_share: float = 0.5  # more of the peers than this in danger: it is the application
    application_within_s: float = 10.0  # or where the host is now so soon, by their own trend
    hysteresis: float = 0.05  # below the threshold, before a host can be alarmed about again

    def __post_init__(self) -> None:
        for name in ("threshold", "failure", "scale_floor", "trend_floor", "hysteresis", "application_share"):
            _check(self, name, 0.0, 1.0)
        for name in ("sigma", "z"):
            _check(self, name, 0.1, 1000.0)
        _check(self, "slope_window_s", 3.0, 3600.0)
        _check(self, "horizon_s", 1.0, 86400.0)
        for name in ("skew_s", "persistence_s", "application_within_s"):
            _check(self, name, 0.0, 3600.0)
        if self.threshold >= self.failure:
            raise ValueError(f"setting 'threshold' ({self.threshold}) must be below 'failure' ({self.failure})")


def _check(settings: RuleSettings, name: str, low: float, high: float) -> None:
    value = getattr(settings, name)
    if not low <= value <= high:
        raise ValueError(f"setting {name!r} is {value}; it must be from {low:g} to {high:g}")


@dataclass(frozen=True)
class Window:
    """The last collections of all groups, one row a collection, one column a host in a group.

    ``times`` (seconds, evenly spaced, the last is now), ``values`` (NaN: no sample),
    ``groups`` (each column's group, 0..number of groups - 1).
    """

    times: Floats
    values: Floats
    groups: Ints

    @property
    def now(self) -> Floats:
        """The values of the last collection."""
        row: Floats = self.values[-1]
        return row


@dataclass(frozen=True)
class Trend:
    """Each host's slope (1/s) and when it will reach failure by it (s from now on, inf: never).

    ``earliest`` and ``latest`` enclose the true time with a probability of 80 %, if the
    growth goes on as it was.
    """

    slope: Floats
    recent_slope: Floats
    failure: Floats
    earliest: Floats
    latest: Floats


@dataclass(frozen=True)
class Verdict:
    """What one rule says of each host: ``fires``, or ``clears`` (can be armed again), and its figures."""

    fires: Bools
    clears: Bools
    centre: Floats
    scale: Floats
    z: Floats


@dataclass(frozen=True)
class Judgement:
    """What all rules say of one window, and what they have in common."""

    verdicts: dict[str, Verdict]
    trend: Trend
    application: Bools  # most peers of this host are in danger too
    peers: Ints  # other hosts of the group with a value


def judge(window: Window, settings: RuleSettings) -> Judgement:
    """Let every rule judge the window's last collection."""
    with np.errstate(divide="ignore", invalid="ignore"):
        now, groups = window.now, window.groups
        count = _count(now, groups)
        trend = find_trend(window, settings)
        application = application_at_work(now, trend, groups, settings)
        return Judgement(
            verdicts={
                "robust": robust(now, trend, groups, application, settings),
                "paper": paper(now, groups, application, settings),
                "threshold": threshold(now, groups, settings),
            },
            trend=trend,
            application=application,
            peers=np.maximum(0, count - np.isfinite(now)),
        )


def persistence_s(rule: str, settings: RuleSettings) -> float:
    """How long a rule must hold before it counts; the paper's rule looks at each collection by itself."""
    return settings.persistence_s if rule == "robust" else 0.0


def paper(now: Floats, groups: Ints, application: Bools, settings: RuleSettings) -> Verdict:
    """The published rule, per collection; each host counts in its own group's mean and deviation.

    Mind its masking: with n hosts z cannot exceed (n-1)/sqrt(n), so below 6 hosts it is silent.
    """
    centre, scale = _mean_and_deviation(now, groups)
    z = (now - centre) / scale
    outlier = now > centre + settings.sigma * scale
    return Verdict(
        fires=outlier & (now >= settings.threshold) & ~application,
        clears=~outlier | (now < settings.threshold - settings.hysteresis),
        centre=centre,
        scale=scale,
        z=z,
    )


def threshold(now: Floats, groups: Ints, settings: RuleSettings) -> Verdict:
    """Danger alone, whatever the other hosts do."""
    centre, scale = _mean_and_deviation(now, groups)
    return Verdict(
        fires=now >= settings.threshold,
        clears=now < settings.threshold - settings.hysteresis,
        centre=centre,
        scale=scale,
        z=(now - centre) / scale,
    )


def robust(now: Floats, trend: Trend, groups: Ints, application: Bools, settings: RuleSettings) -> Verdict:
    """An outlier that is in danger or heading for it; the default."""
    median = _median(now, groups)
    peers_slope = np.nan_to_num(_median(trend.slope, groups))
    # a host that began earlier is ahead of its group for as long as the group grows: that is no outlier
    floor = np.maximum(settings.scale_floor, settings.skew_s * np.abs(peers_slope))
    centre, scale, count = _centre_and_scale(now, median, groups, floor)
    z = (now - centre) / scale
    peers_failure = _time_to(settings.failure, median, peers_slope)
    heading = (
        (now >= settings.trend_floor)
        & (trend.latest < settings.horizon_s)
        & (_time_to(settings.failure, now, trend.recent_slope) < settings.horizon_s)
        & (trend.failure < 0.5 * peers_failure)
    )
    judged = (count >= MIN_HOSTS) & np.isfinite(now)
    danger = (now >= settings.threshold) | heading
    calm = (now < settings.threshold - settings.hysteresis) & ~(trend.failure < 1.5 * settings.horizon_s)
    return Verdict(
        fires=judged & (z >= settings.z) & danger & ~application,
        clears=judged & ((z < 0.6 * settings.z) | calm),
        centre=centre,
        scale=scale,
        z=z,
    )


def find_trend(window: Window, settings: RuleSettings) -> Trend:
    """Fit a line to each host's last ``slope_window_s``, and one to the later half of them.

    A host with less than half of the window has no trend (NaN): its guests have just come.
    """
    inside = window.times >= window.times[-1] - settings.slope_window_s - 1e-6
    times, values = window.times[inside] - window.times[-1], window.values[inside]
    least = max(3, (len(times) + 1) // 2)
    slope, error, free = _fit(times, values, least)
    recent_slope, _, _ = _fit(times[-least:], values[-least:], least)
    margin = _t90(free) * error
    now = window.now
    return Trend(
        slope=slope,
        recent_slope=recent_slope,
        failure=_time_to(settings.failure, now, slope),
        earliest=_time_to(settings.failure, now, slope + margin),
        latest=_time_to(settings.failure, now, slope - margin),
    )


def application_at_work(now: Floats, trend: Trend, groups: Ints, settings: RuleSettings) -> Bools:
    """Whether most of a host's peers are over the threshold, or about to be where this host is now.

    The latter by their own trend, within ``application_within_s``: the host is ahead of them
    in time, which is no reason to leave it. A host far beyond what they will reach is another matter.
    """
    slope = np.fmax(np.nan_to_num(trend.slope), np.nan_to_num(trend.recent_slope))
    soon = now + np.maximum(0.0, slope) * settings.application_within_s
    reach = np.nan_to_num(np.where(now >= settings.threshold, _BEYOND, np.minimum(soon, _BEYOND)))
    level = np.fmax(now, settings.threshold)
    # how many of a group reach a level, for all groups in one search: each has a range of keys of its own
    keys = np.sort(groups * 2 * _BEYOND + reach)
    ends = np.searchsorted(keys, groups * 2 * _BEYOND + 1.5 * _BEYOND)
    reaching = ends - np.searchsorted(keys, groups * 2 * _BEYOND + level) - (reach >= level)
    others = _count(now, groups) - np.isfinite(now)
    result: Bools = (others > 0) & (reaching > settings.application_share * others)
    return result


def explain(window: Window, judgement: Judgement, rule: str, column: int, settings: RuleSettings) -> dict[str, Any]:
    """The figures behind a verdict on one host, as the fields of messages.Evidence."""
    verdict, trend = judgement.verdicts[rule], judgement.trend
    interval = [float(trend.earliest[column]), float(trend.latest[column])]
    return {
        "value": float(window.now[column]),
        "centre": _finite(verdict.centre[column]) or 0.0,
        "scale": _finite(verdict.scale[column]) or 0.0,
        "z": _finite(verdict.z[column]) or 0.0,
        "threshold": settings.threshold,
        "slope_per_s": _finite(trend.slope[column]),
        "predicted_failure_s": _finite(trend.failure[column]),
        "predicted_failure_interval_s": interval if np.isfinite(interval).all() else None,
        "peers": int(judgement.peers[column]),
    }


def pressure_from(total: Floats, guests: Floats, groups: Ints, column: int) -> str | None:
    """Where a host's excess over its group's median comes from: ``host`` or ``guests``.

    ``total`` is the share of memory in use, ``guests`` the part of it that the guests' QEMU
    processes hold. A leak inside a guest travels with the guest; one outside stays behind.
    """
    mine = groups == groups[column]
    outside = total - guests
    excess = [float(part[column] - np.nanmedian(part[mine])) for part in (outside, guests)]
    if not np.isfinite(excess).all():
        return None
    return "host" if excess[0] >= excess[1] else "guests"


def _time_to(level: float, now: Floats, slope: Floats) -> Floats:
    """Seconds until ``level`` is reached: 0 if it is, inf if the slope never leads there or is unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rising: Floats = np.where(slope > 0, (level - now) / slope, np.inf)
    return np.where(now >= level, 0.0, rising)


def _fit(times: Floats, values: Floats, least: int) -> tuple[Floats, Floats, Floats]:
    """Least squares for each column, NaN left out: slope, its standard error, degrees of freedom."""
    known = np.isfinite(values)
    count: Floats = known.sum(axis=0).astype(np.float64)
    count[count < least] = np.nan
    filled = np.where(known, values, 0.0)
    weighted = np.where(known, times[:, None], 0.0)
    time_mean, value_mean = weighted.sum(axis=0) / count, filled.sum(axis=0) / count
    apart = np.where(known, times[:, None] - time_mean, 0.0)
    spread = (apart**2).sum(axis=0)
    slope = (apart * filled).sum(axis=0) / spread
    residual = np.where(known, filled - value_mean - slope * apart, 0.0)
    free: Floats = np.maximum(1.0, count - 2)
    error = np.sqrt((residual**2).sum(axis=0) / free / spread)
    return slope, error, free


def _t90(free: Floats) -> Floats:
    """Student's t that leaves 10 % on each side (Cornish-Fisher; right to 1 % from 3 degrees of freedom)."""
    z = _Z90
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / free + second / free**2


def _centre_and_scale(now: Floats, median: Floats, groups: Ints, floor: Floats) -> tuple[Floats, Floats, Ints]:
    """Centre and scale of each host's group, not drawn along by the host itself; hosts in the group."""
    count = _count(now, groups)
    spread = MAD_TO_SIGMA * _median(np.abs(now - median), groups)
    # leave-one-out: in a small group a median of deviations says too little
    others = np.maximum(1, count - 1)
    own = np.nan_to_num(now)
    mean_of_others = (_sum(own, groups) - own) / others
    square_of_others = (_sum(own**2, groups) - own**2) / others
    variance = np.maximum(0.0, square_of_others - mean_of_others**2) * others / np.maximum(1, others - 1)
    prediction = np.sqrt(1 + 1 / others)
    small = count <= SMALL_GROUP
    centre = np.where(small, mean_of_others, median)
    scale = np.where(small, np.sqrt(variance) * prediction, spread)
    return centre, np.maximum(scale, floor), count


def _mean_and_deviation(now: Floats, groups: Ints) -> tuple[Floats, Floats]:
    count = _count(now, groups)
    mean = _sum(np.nan_to_num(now), groups) / count
    apart = np.where(np.isfinite(now), now - mean, 0.0)
    return mean, np.sqrt(_sum(apart**2, groups) / (count - 1))


def _count(now: Floats, groups: Ints) -> Ints:
    """For each host, how many of its group have a value."""
    return np.bincount(groups, weights=np.isfinite(now))[groups].astype(np.intp)


def _sum(values: Floats, groups: Ints) -> Floats:
    """For each host, the sum over its group."""
    sums: Floats = np.bincount(groups, weights=values).astype(np.float64)
    return sums[groups]


def _median(values: Floats, groups: Ints) -> Floats:
    """For each host, its group's median, NaN left out; groups may be of any sizes."""
    order = np.lexsort((values, groups))  # NaN comes last in each group
    ordered = values[order]
    sizes = np.bincount(groups)
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    known = np.bincount(groups, weights=np.isfinite(values)).astype(np.intp)
    last = len(values) - 1
    low = np.minimum(starts + np.maximum(0, known - 1) // 2, last)
    high = np.minimum(starts + known // 2, last)
    medians = np.where(known > 0, (ordered[low] + ordered[high]) / 2, np.nan)
    result: Floats = medians[groups]
    return result


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
