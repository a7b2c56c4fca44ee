"""What the rules can be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

RULES = ("robust", "paper", "paper-learned", "threshold")


@dataclass(frozen=True)
class RuleSettings:
    """Levels are shares: of a host's memory, or of a failure mode's way from normal (0) to failure (`modes.Mode`)."""

    threshold: float = 0.75  # danger
    failure: float = 0.90  # where the OOM killer is expected
    sigma: float = 2.0  # `paper`: standard deviations over the mean
    relative_probability: float = 0.135  # `paper-learned`: less likely than this is an outlier; 2 sigma of a normal one
    z: float = 5.0  # `robust`: scales over the centre
    scale_floor: float = 0.01  # `robust`: the scale is at least this
    scale_memory_s: float = 30.0  # half-life of a wider scale that was seen before
    skew_s: float = 2.0  # and at least what the group's trend makes of a start this much earlier
    horizon_s: float = 60.0  # a failure predicted within this time is danger
    trend_floor: float = 0.50  # from this value on a trend counts
    slope_window_s: float = 10.0  # short: growth now
    long_window_s: float = 600.0  # long: growth of slow leaks, and a host's own highest value so far
    leak_floor: float = 0.55  # from this value on a slow leak is danger, however far off the failure is
    leak_horizon_s: float = 10800.0  # within this
    settle_s: float = 90.0  # a host's first growth in its job is its start: a trend counts only after this
    persistence_s: float = 5.0  # `robust` must hold this long, or until a failure is nearer than this
    application_share: float = 0.5  # more of the peers than this in danger: it is the application
    application_within_s: float = 10.0  # or where the host is now so soon, by their own trend
    hysteresis: float = 0.05  # below the threshold, before a host can be alarmed about again

    def __post_init__(self) -> None:
        shares = ("threshold", "failure", "relative_probability", "scale_floor", "trend_floor", "leak_floor")
        for name in (*shares, "hysteresis", "application_share"):
            _check(self, name, 0.0, 1.0)
        for name in ("sigma", "z"):
            _check(self, name, 0.1, 1000.0)
        for name in ("slope_window_s", "long_window_s"):
            _check(self, name, 3.0, 3600.0)
        for name in ("horizon_s", "leak_horizon_s", "scale_memory_s"):
            _check(self, name, 1.0, 86400.0)
        for name in ("skew_s", "persistence_s", "application_within_s", "settle_s"):
            _check(self, name, 0.0, 3600.0)
        if self.threshold >= self.failure:
            raise ValueError(f"setting 'threshold' ({self.threshold}) must be below 'failure' ({self.failure})")

    def changed_by(self, changes: Mapping[str, float]) -> RuleSettings:
        """These settings with some of them changed. Raises ValueError that names a setting that is none."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ValueError(f"unknown setting {name!r}; known are {', '.join(known)}")
        return dataclasses.replace(self, **changes)


def _check(settings: RuleSettings, name: str, low: float, high: float) -> None:
    value = getattr(settings, name)
    if not low <= value <= high:
        raise ValueError(f"setting {name!r} is {value}; it must be from {low:g} to {high:g}")
