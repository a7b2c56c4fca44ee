"""What is normal among the hosts of a group: a model gives a centre, a scale and the relative probability of a value.

The relative probability is the density at a value over the density at the most likely one, as in OVIS: 1 where the
model expects a host, exp(-z^2 / 2) for a normal distribution. It speaks of values above the centre; below it is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from failavoid.prediction.grouping import Floats, Grouping, Ints, median_of_rows

SMALL_GROUP = 5  # up to here a group's own median and MAD are drawn along by one host: leave it out
MAD_TO_SIGMA = 1.4826  # of normally distributed values
# Croux and Rousseeuw (1992): what else a MAD of so few values needs to be unbiased
_FEW = np.array([1.0, 1.0, 1.196, 1.495, 1.363, 1.206, 1.200, 1.140, 1.129, 1.107])
BINS = 200


@dataclass(frozen=True)
class Normal:
    """For each column, the centre and scale of what is normal in its group, and how far off it is."""

    centre: Floats
    scale: Floats
    z: Floats


def descriptive(now: Floats, grouping: Grouping) -> Normal:
    """Mean and standard deviation; each host counts in its own group's."""
    known = np.isfinite(now)
    count = grouping.count(known)
    mean = grouping.spread(grouping.total(now) / count)
    apart = np.where(known, now - mean, 0.0)
    scale = grouping.spread(np.sqrt(grouping.total(apart**2) / (count - 1)))
    return Normal(mean, scale, (now - mean) / scale)


def robust(now: Floats, grouping: Grouping) -> Normal:
    """Median and MAD; in groups of up to `SMALL_GROUP` those of the other hosts alone."""
    known = np.isfinite(now)
    middle = grouping.median(now)
    centre = grouping.spread(middle)
    spread = grouping.median(np.abs(now - centre)) * mad_factor(grouping.count(known))
    scale = grouping.spread(spread)
    padded = np.append(now, np.nan)
    for _, columns in grouping.small(SMALL_GROUP):
        for place in range(columns.shape[1]):
            own = columns[:, place]
            there = own < len(now)
            others = np.delete(padded[columns], place, axis=1)
            if not others.shape[1]:
                continue
            median = median_of_rows(others)
            mad = median_of_rows(np.abs(others - median[:, None])) * mad_factor(np.isfinite(others).sum(axis=1))
            centre[own[there]], scale[own[there]] = median[there], mad[there]
    return Normal(centre, scale, (now - centre) / scale)


def mad_factor(count: Ints) -> Floats:
    """What a MAD of so many values is multiplied by to be a standard deviation of normally distributed ones."""
    few = _FEW[np.minimum(count, len(_FEW) - 1)]
    factor: Floats = MAD_TO_SIGMA * np.where(count < len(_FEW), few, count / np.maximum(1.0, count - 0.8))
    return factor


def relative_probability(z: Floats) -> Floats:
    """Of a value that is ``z`` scales above the centre of a normal distribution."""
    result: Floats = np.exp(-0.5 * np.maximum(0.0, z) ** 2)
    return result


@dataclass
class Distribution:
    """The learned distribution of a share among the hosts of an application, over all of its runs.

    ``counts`` are host-seconds in `BINS` bins from 0 to 1; a run weighs like any other, however long it was.
    """

    counts: Floats
    runs: int = 0

    @classmethod
    def empty(cls) -> Distribution:
        """Before anything was learned."""
        return cls(np.zeros(BINS))

    def add(self, values: Floats) -> None:
        """Take up values, of any shape."""
        inside = values[np.isfinite(values)]
        places = np.clip((inside * BINS).astype(np.intp), 0, BINS - 1)
        self.counts += np.bincount(places, minlength=BINS)

    def merge(self, run: Distribution, kept_runs: int = 20) -> None:
        """Take up a whole run; what is older than ``kept_runs`` runs fades."""
        if run.counts.sum() <= 0:
            return
        if self.runs >= kept_runs:
            self.counts *= 1 - 1 / kept_runs
        self.counts += run.counts / run.counts.sum()
        self.runs += 1

    def relative_probability(self, values: Floats, width: float = 0.01) -> Floats:
        """Of each value, the density smoothed over ``width``; 1 below the most likely value, and for NaN."""
        if self.counts.sum() <= 0:
            return np.ones(len(values))
        middles = (np.arange(BINS) + 0.5) / BINS
        steps = np.arange(-int(4 * width * BINS), int(4 * width * BINS) + 1)
        kernel = np.exp(-0.5 * (steps / (width * BINS)) ** 2)
        density = np.convolve(self.counts, kernel, mode="same")
        found = np.interp(np.nan_to_num(values), middles, density / density.max(), right=0.0)
        mode = middles[int(np.argmax(density))]
        return np.where(values > mode, found, 1.0)


@dataclass(frozen=True)
class Correlative:
    """Several metrics together: their mean and the Cholesky factor of their covariance among healthy hosts.

    Fitted rarely, scored every collection. The covariance is shrunk towards its diagonal (Ledoit and Wolf, 2004), so
    that few hosts suffice.
    """

    mean: Floats
    factor: Floats

    @classmethod
    def fit(cls, rows: Floats) -> Correlative:
        """From rows of metrics, those with NaN left out. Raises ValueError if fewer than metrics + 2 are left."""
        rows = rows[np.isfinite(rows).all(axis=1)]
        count, metrics = rows.shape
        if count < metrics + 2:
            raise ValueError(f"{count} complete rows are too few for {metrics} metrics; {metrics + 2} are needed")
        mean = np.median(rows, axis=0)
        apart = rows - rows.mean(axis=0)
        sample = apart.T @ apart / count
        target = np.diag(np.diag(sample) + 1e-12)
        distance = ((sample - target) ** 2).sum()
        noise = (((apart**2).T @ apart**2) / count - sample**2).sum() / count
        shrinkage = 1.0 if distance <= 0 else min(1.0, max(0.0, noise / distance))
        return cls(mean, np.linalg.cholesky((1 - shrinkage) * sample + shrinkage * target))

    def distance(self, rows: Floats) -> Floats:
        """Mahalanobis distance of each row; NaN where a metric is."""
        scored = np.linalg.solve(self.factor, np.nan_to_num(rows - self.mean).T)
        result: Floats = np.where(np.isfinite(rows).all(axis=1), np.sqrt((scored**2).sum(axis=0)), np.nan)
        return result
