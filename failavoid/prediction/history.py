"""What a watch remembers of its columns: every value of the short window, means over the long one."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from failavoid.prediction.grouping import Floats, Ints

_BLOCKS = 60  # means in the long window
_NEW = 2  # of the latest blocks: what a host has reached just now is not yet its own past


class History:
    """Values of all columns over two windows. Long memory is kept in single precision: 60 means a column."""

    def __init__(self, interval_s: float, short_s: float, long_s: float) -> None:
        self._rows: deque[tuple[float, Floats]] = deque(maxlen=max(5, round(short_s / interval_s) + 1))
        self._block = max(1, round(max(long_s / _BLOCKS, interval_s) / interval_s))
        self._means: deque[tuple[float, npt.NDArray[np.float32]]] = deque(
            maxlen=max(6, round(long_s / interval_s / self._block))
        )
        # of the mean that is being taken, as sums: it costs each collection a little, and none much
        self._times: list[float] = []
        self._sum: Floats = np.zeros(0)
        self._count: Floats = np.zeros(0)

    def append(self, time: float, values: Floats) -> None:
        """Take one collection's values."""
        self._rows.append((time, values))
        known = np.isfinite(values)
        if not self._times:
            self._sum, self._count = np.zeros(len(values)), np.zeros(len(values))
        self._times.append(time)
        self._sum += np.where(known, values, 0.0)
        self._count += known
        if len(self._times) == self._block:
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = self._sum / self._count
            self._means.append((sum(self._times) / self._block, mean.astype(np.float32)))
            self._times = []

    def rearrange(self, index: Ints) -> None:
        """Give each column the past of column ``index``; none where that is -1."""
        self._rows = deque(((time, _moved(row, index)) for time, row in self._rows), self._rows.maxlen)
        self._sum, self._count = np.nan_to_num(_moved(self._sum, index)), np.nan_to_num(_moved(self._count, index))
        self._means = deque(
            ((time, _moved(mean, index).astype(np.float32)) for time, mean in self._means), self._means.maxlen
        )

    def short(self, columns: Ints | None) -> tuple[Floats, Floats]:
        """(times, values of these columns, or of all) of the short window; the last row is now."""
        rows = [row if columns is None else row[columns] for _, row in self._rows]
        return np.array([time for time, _ in self._rows]), np.array(rows)

    def long(self, columns: Ints, last: int | None = None) -> tuple[Floats, Floats]:
        """The same as means, of the last so many or of all the long window; the last row is now's single value."""
        means = list(self._means)[-last:] if last else list(self._means)
        now, row = self._rows[-1]
        times = np.array([*(time for time, _ in means), now])
        return times, np.array([*(mean[columns] for _, mean in means), row[columns]], dtype=np.float64)

    def peak(self, columns: Ints) -> Floats:
        """The highest mean of each of these columns in the long window, the latest moments left out; -inf if none."""
        means = [mean[columns] for _, mean in list(self._means)[:-_NEW]]
        if not means:
            return np.full(len(columns), -np.inf)
        known = np.nan_to_num(np.array(means, dtype=np.float64), nan=-np.inf)
        highest: Floats = known.max(axis=0)
        return highest


def _moved(row: npt.NDArray[Any], index: Ints) -> Floats:
    if not len(row):
        return np.full(len(index), np.nan)
    return np.where(index >= 0, row[index], np.nan)
