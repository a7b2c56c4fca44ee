"""The hosts' values as the display draws them: each metric on a scale of 0..1, a byte a host, and the recent past."""

from __future__ import annotations

import base64
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from failavoid.monitor.store import Collection
from failavoid.prediction.grouping import Floats, Ints

UNKNOWN = 255  # the byte of a host that is silent, or does not offer the metric
_STEPS = 254
_RECENT_BYTES = 64 << 20
MAD_TO_DEVIATION = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Shown:
    """A metric that can be drawn: ``low`` is 0 on its scale and ``high`` is 1. ``unit`` is % for shares."""

    name: str
    label: str
    unit: str = "%"
    low: float = 0.0
    high: float = 1.0


SHOWN = (
    Shown("unavailable", "memory in use"),
    Shown("active", "active memory"),
    Shown("guests", "memory of guests"),
    Shown("cpu", "CPU in use"),
    Shown("swap", "swap in use, of memory"),
    Shown("psi_memory", "waiting for memory"),
    Shown("psi_cpu", "waiting for CPU"),
    Shown("psi_io", "waiting for input and output"),
    Shown("temperature_c", "temperature", "°C", 20.0, 100.0),
)
NAMES = tuple(shown.name for shown in SHOWN)


def scaled(collection: Collection) -> Floats:
    """All of SHOWN (rows) for all hosts (columns), on scales of 0..1; NaN where nothing is known."""
    rows = []
    for shown in SHOWN:
        if shown.name in ("unavailable", "active", "guests"):
            rows.append(collection.shares(shown.name))
        elif shown.name == "swap":
            with np.errstate(divide="ignore", invalid="ignore"):
                rows.append(collection.metric("swap_used_kb") / collection.metric("mem_total_kb"))
        else:
            rows.append((collection.metric(shown.name) - shown.low) / (shown.high - shown.low))
    values: Floats = np.array(rows)
    return values


def encode(values: Floats) -> str:
    """A row of shares as base64 of a byte each."""
    known = np.isfinite(values)
    steps = np.clip(np.where(known, values, 0.0), 0.0, 1.0) * _STEPS
    return base64.b64encode(np.where(known, np.rint(steps), UNKNOWN).astype(np.uint8).tobytes()).decode()


class Recent:
    """The last collections within a limit of memory: an hour of ten hosts, minutes of ten thousand. For any thread."""

    def __init__(self, history_s: float, limit_bytes: int = _RECENT_BYTES) -> None:
        self._history_s, self._limit = history_s, limit_bytes
        self._lock = threading.Lock()
        self._rows: deque[tuple[float, np.ndarray[tuple[int, ...], np.dtype[np.float16]]]] = deque()
        self._bytes = 0

    def add(self, time: float, values: Floats) -> None:
        """Take one collection, as `scaled` gives it."""
        row = values.astype(np.float16)
        with self._lock:
            self._rows.append((time, row))
            self._bytes += row.nbytes
            while len(self._rows) > 1 and (
                self._bytes > self._limit or self._rows[0][0] < time - self._history_s or self._rows[0][0] > time
            ):
                self._bytes -= self._rows.popleft()[1].nbytes

    def begin(self) -> float:
        """When the first that is still known was; infinity if nothing is."""
        with self._lock:
            return self._rows[0][0] if self._rows else np.inf

    def of(self, metric: str, columns: Ints, since: float, until: float = np.inf) -> tuple[Floats, Floats]:
        """(times, values: times x columns) of some hosts."""
        place = NAMES.index(metric)
        with self._lock:
            rows = [row for row in self._rows if since <= row[0] <= until]
        values = np.full((len(rows), len(columns)), np.nan)
        for number, (_, row) in enumerate(rows):
            known = columns < row.shape[1]
            values[number, known] = row[place, columns[known]]
        return np.array([time for time, _ in rows]), values


def band(values: Floats, scales: float, floor: float) -> tuple[Floats, Floats, Floats]:
    """(centre, low, high) of a group over time (times x hosts): beyond the band a host is an outlier.

    The centre is the median, the scale the median absolute deviation, as of a normal distribution, and at least
    ``floor``.
    """
    if not values.size:
        nothing: Floats = np.full(len(values), np.nan)
        return nothing, nothing, nothing
    heard = np.isfinite(values).any(axis=1)
    centre, scale = np.full(len(values), np.nan), np.full(len(values), np.nan)
    centre[heard] = np.nanmedian(values[heard], axis=1)
    away = np.abs(values[heard] - centre[heard, None])
    scale[heard] = np.maximum(MAD_TO_DEVIATION * np.nanmedian(away, axis=1), floor)
    return centre, centre - scales * scale, centre + scales * scale


def numbers(values: Floats) -> list[float | None]:
    """For JSON, which knows no NaN."""
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]
