"""How good predictions were, and what they teach about the next."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import NormalDist

import numpy as np

KEPT = 200
# What is believed before anything came true: quantiles of a normal distribution of this width
_PRIOR = 5
_PRIOR_WIDTH = 1.0


class Calibration:
    """Learns from predictions that came true how far off they are, in units of their own doubt.

    Conformal prediction: the 80 % interval of the next one spans the 10 % and the 90 % quantile of the deviations so
    far, log(actual / predicted) / doubt, of the last `KEPT`.
    """

    def __init__(self, deviations: Iterable[float] = ()) -> None:
        places = (np.arange(_PRIOR) + 0.5) / _PRIOR
        self._prior = [_PRIOR_WIDTH * NormalDist().inv_cdf(place) for place in places]
        self._seen: deque[float] = deque(deviations, maxlen=KEPT)

    @property
    def deviations(self) -> list[float]:
        """What was learned, the oldest first."""
        return list(self._seen)

    def learn(self, predicted_s: float, doubt: float, actual_s: float) -> None:
        """Take up a prediction that came true ``actual_s`` after it was made."""
        if 0 < predicted_s < math.inf and actual_s > 0 and doubt > 0:
            self._seen.append(math.log(actual_s / predicted_s) / doubt)

    def quantiles(self) -> tuple[float, float]:
        """(low, high) deviations that enclose the next one with a probability of 80 %."""
        known = np.sort([*self._prior, *self._seen])
        count = len(known)
        # the conformal ranks: one observation more than was seen
        low, high = math.floor(0.1 * (count + 1)), math.ceil(0.9 * (count + 1))
        return float(known[max(0, low - 1)]), float(known[min(count, high) - 1])

    def interval(self, predicted_s: float, doubt: float) -> tuple[float, float]:
        """[earliest, latest] time of failure in seconds from now, 80 %."""
        low, high = self.quantiles()
        return predicted_s * math.exp(low * doubt), predicted_s * math.exp(high * doubt)


def wilson(successes: int, trials: int, z: float = 1.959964) -> list[float] | None:
    """The 95 % confidence interval of a share (Wilson, 1927); None without trials."""
    if not trials:
        return None
    share = successes / trials
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def upper_bound_of_rate(events: int, exposure: float) -> float:
    """The upper 95 % bound of a Poisson rate: 3 / exposure without any event (exact, one-sided)."""
    low, high = 0.0, 10.0 + 3.0 * events
    for _ in range(100):  # the mean at which so few events have a probability of 5 %
        mean = (low + high) / 2
        probability = math.fsum(math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1)) for k in range(events + 1))
        low, high = (mean, high) if probability > 0.05 else (low, mean)
    return high / exposure
