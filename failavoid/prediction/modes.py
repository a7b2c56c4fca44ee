"""Failure modes: what may go wrong with a host, on one scale for all rules.

Every mode is a way from normal (0) to failure (`RuleSettings.failure`, 0.90). Memory is on that scale by itself: the
share in use. A temperature, a fan's speed or a rate of memory errors is put on it by two of its values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from failavoid.prediction.grouping import Floats
from failavoid.prediction.settings import RuleSettings
from failavoid.shared.messages import METRICS
from failavoid.shared.names import check_name

T = TypeVar("T", float, Floats)
MEMORY = "memory"


@dataclass(frozen=True)
class Mode:
    """A failure mode besides memory: ``metric`` is ``normal`` on a healthy host and ``failure`` on one that fails.

    ``failure`` may be less than ``normal``, as for a fan that stops. ``rules`` changes the site's rule settings.
    """

    name: str
    metric: str
    normal: float
    failure: float
    rules: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("mode", self.name)
        if self.name == MEMORY:
            raise ValueError(f"setting 'name' is {MEMORY!r}: memory is watched already, by 'rules'")
        if self.metric not in METRICS:
            raise ValueError(f"setting 'metric' is {self.metric!r}; use one of {', '.join(METRICS)}")
        if self.normal == self.failure:
            raise ValueError(f"setting 'failure' of mode {self.name!r} is {self.failure}, the same as 'normal'")

    def settings(self, site: RuleSettings) -> RuleSettings:
        """The rules' settings for this mode."""
        return site.changed_by(self.rules)

    def share(self, value: T, failure: float) -> T:
        """A value of the metric on the rules' scale, on which the host fails at ``failure``."""
        return failure * (value - self.normal) / (self.failure - self.normal)

    def value(self, share: float, failure: float) -> float:
        """The metric's value at a share."""
        return self.normal + share / failure * (self.failure - self.normal)

    def difference(self, shares: float, failure: float) -> float:
        """How far apart two values are whose shares are ``shares`` apart."""
        return self.value(shares, failure) - self.normal
