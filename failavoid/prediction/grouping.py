"""Statistics of groups of any sizes, for all groups at once; NaN is left out everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]


class Grouping:
    """Which column is in which group (``ids``: 0..number of groups - 1).

    Groups of like sizes are the rows of one matrix of column numbers, padded to the widest: sorting rows is several
    times faster than sorting all columns by group and value.
    """

    def __init__(self, ids: Ints) -> None:
        self.ids = ids
        self.sizes: Ints = np.bincount(ids) if len(ids) else np.zeros(0, dtype=np.intp)
        starts = np.concatenate(([0], np.cumsum(self.sizes)))[:-1]
        order = np.argsort(ids, kind="stable")
        self._blocks: list[tuple[Ints, Ints]] = []
        for widest in 2 ** np.unique(np.ceil(np.log2(np.maximum(1, self.sizes))).astype(int)):
            groups = np.flatnonzero((self.sizes > widest // 2) & (self.sizes <= widest))
            width = int(self.sizes[groups].max())
            places = starts[groups][:, None] + np.arange(width)
            inside = np.arange(width) < self.sizes[groups][:, None]
            padded = np.append(order, len(ids))  # the last stands for nobody
            self._blocks.append((groups, padded[np.where(inside, places, len(ids))]))

    def spread(self, of_groups: Any) -> Any:
        """Each column's value of its group."""
        return of_groups[self.ids]

    def count(self, which: Bools) -> Ints:
        """For each group, how many of its columns are true."""
        return np.bincount(self.ids, weights=which, minlength=len(self.sizes)).astype(np.intp)

    def total(self, values: Floats) -> Floats:
        """For each group, the sum."""
        sums = np.bincount(self.ids, weights=np.nan_to_num(values), minlength=len(self.sizes))
        return sums.astype(np.float64)

    def median(self, values: Floats) -> Floats:
        """For each group, the median; NaN if it has no value."""
        result = np.full(len(self.sizes), np.nan)
        padded = np.append(values, np.nan)
        for groups, columns in self._blocks:
            result[groups] = median_of_rows(padded[columns])
        return result

    def small(self, largest: int) -> list[tuple[Ints, Ints]]:
        """(groups, their columns in rows, padded with the number of columns) of up to ``largest`` columns."""
        found = []
        for groups, columns in self._blocks:
            few = self.sizes[groups] <= largest
            if few.any():
                found.append((groups[few], columns[few, :largest]))
        return found


def median_of_rows(rows: Floats) -> Floats:
    """Each row's median, NaN left out."""
    ordered = np.sort(rows, axis=1)  # NaN comes last
    known = np.isfinite(ordered).sum(axis=1)
    row = np.arange(len(rows))
    low, high = np.maximum(0, known - 1) // 2, np.minimum(known // 2, rows.shape[1] - 1)
    return np.where(known > 0, (ordered[row, low] + ordered[row, high]) / 2, np.nan)
