"""How good predictions were, and what they teach about the next."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np

KEPT = 400
_ALIKE = 10.0  # times longer or shorter: predictions within this teach about each other
_NEIGHBOURS = 19  # of them, that the 10 % and the 90 % quantile are no extremes
_ENOUGH = 9  # the extremes of so many hold the next one with a probability of 80 %
# What is believed before that: quantiles of a normal distribution of this width
_PRIOR = 5
_PRIOR_WIDTH = 1.0
_MISSES = 0.2  # of the intervals are to miss
_STEP = 0.1  # by which what came true, less or more than that share of it, moves the aim

Seen = tuple[float, float, bool]  # predicted time (s), deviation, whether the interval held
Came = tuple[float, float, float, bool]  # predicted time (s), doubt, actual time (s), whether the interval held


class Calibration:
    """Learns from predictions that came true how far off they are, in units of their own doubt.

    Conformal prediction, localised (Guan, 2023): the 80 % interval of the next one spans the 10 % and the 90 % quantile
    of log(actual / predicted) / doubt among those of the last `KEPT` that foresaw a time like its own. A leak that has
    hours to go is told in other ways than one that has seconds.

    And adaptive (Gibbs and Candès, 2021): what comes is not always like what was. Each interval that missed lets the
    next ones aim at fewer misses than a fifth, each that held at more, so that in the long run a fifth miss. Of n hosts
    that failed together no interval could know of the others': all n together move the aim by n misses over sqrt(n),
    which is how far the sum of n independent ones wanders.
    """

    def __init__(self, seen: Iterable[Seen] = ()) -> None:
        places = (np.arange(_PRIOR) + 0.5) / _PRIOR
        self._prior = [_PRIOR_WIDTH * NormalDist().inv_cdf(place) for place in places]
        self._seen: deque[Seen] = deque(maxlen=KEPT)
        self._aim = _MISSES
        for one in seen:
            self._take([one])

    @property
    def seen(self) -> list[Seen]:
        """What was learned, the oldest first."""
        return list(self._seen)

    def learn(self, came: Sequence[Came]) -> None:
        """Take up predictions that came true together, so that none of them could be known to another."""
        self._take(
            [
                (predicted_s, _deviation(predicted_s, doubt, actual_s), held)
                for predicted_s, doubt, actual_s, held in came
                if 0 < predicted_s < math.inf and actual_s > 0 and doubt > 0
            ]
        )

    def _take(self, together: list[Seen]) -> None:
        if together:
            self._seen.extend(together)
            missed = sum(not held for _, _, held in together)
            moved = _STEP * (_MISSES * len(together) - missed) / math.sqrt(len(together))
            self._aim = min(2 * _MISSES, max(0.0, self._aim + moved))

    def holds(self, predicted_s: float, doubt: float, actual_s: float) -> bool:
        """Whether the interval holds what came: not by its ends in seconds, which rounding moves."""
        low, high = self.quantiles(predicted_s)
        return low <= _deviation(predicted_s, doubt, actual_s) <= high

    def quantiles(self, predicted_s: float) -> tuple[float, float]:
        """(low, high) deviations that enclose that of a prediction of this time with a probability of 80 %."""
        seen = self.seen
        if len(seen) > _NEIGHBOURS and 0 < predicted_s < math.inf:
            apart = np.abs(np.log([one[0] for one in seen]) - math.log(predicted_s))
            count = max(_NEIGHBOURS, int((apart <= math.log(_ALIKE)).sum()))
            seen = [seen[place] for place in np.argsort(apart, kind="stable")[:count]]
        prior = self._prior if len(seen) < _ENOUGH else []
        # Weibull's ranks, p (n + 1), are the conformal ones: the next observation is one more than was seen
        tails = [self._aim / 2, 1 - self._aim / 2]
        low, high = np.quantile([*prior, *(one[1] for one in seen)], tails, method="weibull")
        return float(low), float(high)

    def interval(self, predicted_s: float, doubt: float) -> tuple[float, float]:
        """[earliest, latest] time of failure in seconds from now, 80 %."""
        low, high = self.quantiles(predicted_s)
        return predicted_s * math.exp(low * doubt), predicted_s * math.exp(high * doubt)


def _deviation(predicted_s: float, doubt: float, actual_s: float) -> float:
    return math.log(actual_s / predicted_s) / doubt


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
