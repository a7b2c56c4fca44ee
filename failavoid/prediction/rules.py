"""The rules that tell a failing host from its job's other hosts, at one collection.

``paper``          more than sigma standard deviations over the mean of its group, and over the threshold
``paper-learned``  less likely than relative_probability by what was learned of the application, and over the threshold
``threshold``      over the threshold
``robust``         an outlier by median and MAD (groups of 3 to 5: by the other hosts'), and in danger: over the
                   threshold, about to fail by its trend, or leaking slowly

While most of a host's peers are over the threshold, or soon will be where it is, the application is at work and not a
failure: all but `threshold` then stay silent. Below 3 hosts peers cannot say who is the outlier, and neither can they
when half of them fail: there `robust` asks what was learned of the application, if anything was. Where that speaks
against a host over the threshold as well, `robust` does not wait either: soon most of its peers may be as far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from failavoid.prediction.grouping import Bools, Floats, Grouping, Ints
from failavoid.prediction.models import Normal, descriptive
from failavoid.prediction.settings import RuleSettings
from failavoid.prediction.trend import Trend, time_to

MIN_HOSTS = 3
_BEYOND = 16.0  # a share of memory that no host has
_WEAKEST = 0.5  # of z: what is evidence enough for a host that is about to fail


@dataclass(frozen=True)
class View:
    """What the rules look at: one collection, one entry a column (a host in its group).

    ``trend`` is infinite or NaN for columns that are out of the question, ``relative_probability`` 1 where nothing was
    learned, ``age`` the seconds since a host joined its group, ``peak`` its highest value before just now, ``ahead``
    whether it is far above its peers' (of those below the threshold that what was learned speaks against), and
    ``peers_slope`` the group's growth (1/s) of now or over the window of the host's trend, whichever is faster.
    """

    now: Floats
    grouping: Grouping
    peers: Ints
    normal: Normal
    trend: Trend
    leaking: Bools
    peers_slope: Floats
    application: Bools
    relative_probability: Floats
    age: Floats
    peak: Floats
    ahead: Bools
    horizon_s: float


@dataclass(frozen=True)
class Verdict:
    """What one rule says of each column: ``fires``, ``urgent`` (no time to wait), ``clears`` (can be armed again)."""

    fires: Bools
    clears: Bools
    urgent: Bools
    normal: Normal


def needed_z(now: Floats, settings: RuleSettings) -> Floats:
    """How many scales make an outlier: the nearer to failure, the less evidence is asked for."""
    way = np.clip((now - settings.threshold) / (settings.failure - settings.threshold), 0.0, 1.0)
    needed: Floats = settings.z * (1 - (1 - _WEAKEST) * way)
    return needed


def judge(view: View, settings: RuleSettings, rules: tuple[str, ...]) -> dict[str, Verdict]:
    """Let the rules named judge."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {rule: _JUDGES[rule](view, settings) for rule in rules}


def paper(view: View, settings: RuleSettings) -> Verdict:
    """The published rule, per collection; each host counts in its own group's mean and deviation.

    Mind its masking: with n hosts z cannot exceed (n-1)/sqrt(n), so below 6 hosts it is silent.
    """
    normal = descriptive(view.now, view.grouping)
    return _published(view, settings, view.now > normal.centre + settings.sigma * normal.scale, normal)


def paper_learned(view: View, settings: RuleSettings) -> Verdict:
    """The published rule in its other reading: against the learned and stored distribution."""
    return _published(view, settings, view.relative_probability < settings.relative_probability, view.normal)


def _published(view: View, settings: RuleSettings, outlier: Bools, normal: Normal) -> Verdict:
    return Verdict(
        fires=outlier & (view.now >= settings.threshold) & ~view.application,
        clears=~outlier | (view.now < settings.threshold - settings.hysteresis),
        urgent=np.zeros(len(view.now), dtype=bool),
        normal=normal,
    )


def threshold(view: View, settings: RuleSettings) -> Verdict:
    """Danger alone, whatever the other hosts do."""
    return Verdict(
        fires=view.now >= settings.threshold,
        clears=view.now < settings.threshold - settings.hysteresis,
        urgent=np.zeros(len(view.now), dtype=bool),
        normal=view.normal,
    )


def robust(view: View, settings: RuleSettings) -> Verdict:
    """An outlier that is in danger or heading for it; the default."""
    now, normal, trend = view.now, view.normal, view.trend
    # peers that differ so much that only a host in danger would stand out among them tell too little
    reach = settings.z * normal.scale
    alike = (reach < settings.failure - settings.threshold) | (normal.centre + reach < settings.threshold)
    able = (view.peers >= MIN_HOSTS - 1) & alike
    strange = view.relative_probability < settings.relative_probability
    # hosts most of which use what the application never did are no measure of each other
    astray = view.grouping.spread(view.grouping.count(strange)) >= 0.5 * (view.peers + 1)
    # hosts out of step are no measure by where they are now, but by how far they went lately
    alone = (view.peers < MIN_HOSTS - 1) | view.ahead
    unlike = strange & np.where(now >= settings.threshold, ~able | astray, ~able & alone)
    outlier = (view.peers >= MIN_HOSTS - 1) & (normal.z >= needed_z(now, settings)) | unlike
    peers_failure = time_to(settings.failure, normal.centre, view.peers_slope)
    grows = (now >= view.peak) & (view.age >= settings.settle_s)
    apart = trend.apart & (trend.failure < 0.5 * peers_failure)
    heading = grows & trend.sure & (now >= settings.trend_floor) & (trend.failure < view.horizon_s) & apart
    slowly = view.leaking | (trend.lasting & apart)
    leaks = grows & slowly & (now >= settings.leak_floor) & (trend.failure < settings.leak_horizon_s)
    fires = outlier & ((now >= settings.threshold) | heading | leaks) & ~view.application
    calm = (now < settings.threshold - settings.hysteresis) & ~(trend.failure < 1.5 * view.horizon_s) & ~leaks
    return Verdict(
        fires=fires,
        clears=(normal.z < 0.4 * settings.z) & ~unlike | calm,
        # where the application's past speaks against it too, there is nothing to wait for
        urgent=fires & ((trend.sustained < settings.persistence_s) | strange & (now >= settings.threshold)),
        normal=normal,
    )


_JUDGES = {"robust": robust, "paper": paper, "paper-learned": paper_learned, "threshold": threshold}


def persistence_s(rule: str, settings: RuleSettings) -> float:
    """How long a rule must hold before it counts; the published ones look at each collection by itself."""
    return settings.persistence_s if rule == "robust" else 0.0


def application_at_work(now: Floats, growth: Floats, ids: Ints, settings: RuleSettings) -> Bools:
    """Whether most of a host's peers are over the threshold, or about to be where this host is now.

    ``ids`` are the columns' groups. The latter by their own ``growth`` (1/s; NaN: unknown), within
    ``application_within_s``: the host is ahead of them in time, which is no reason to leave it. A host far beyond what
    they will reach is another matter.
    """
    ids = np.unique(ids, return_inverse=True)[1]
    soon = now + np.maximum(0.0, np.nan_to_num(growth)) * settings.application_within_s
    reach = np.nan_to_num(np.where(now >= settings.threshold, _BEYOND, np.minimum(soon, _BEYOND)))
    level = np.nan_to_num(np.fmax(now, settings.threshold))
    # how many of a group reach a level, for all groups in one search: each has a range of keys of its own
    keys = np.sort(ids * 2 * _BEYOND + reach)
    ends = np.searchsorted(keys, ids * 2 * _BEYOND + 1.5 * _BEYOND)
    reaching = ends - np.searchsorted(keys, ids * 2 * _BEYOND + level) - (reach >= level)
    known = np.isfinite(now)
    others = np.bincount(ids, weights=known)[ids] - known
    result: Bools = (others > 0) & (reaching > settings.application_share * others)
    return result
