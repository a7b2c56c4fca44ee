"""Recorded memory of hosts: LDMS CSV files, as they are, made into values at even steps.

What is wrong with a recording is mended where that is safe, and said: `Trace.notes`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from failavoid.prediction.grouping import Bools, Floats, Ints

STALE_S = 5.0  # a value counts for this long
LONGEST_GAP_S = 900.0  # in which nobody is heard of: longer than all that the rules remember
_NEVER_S = 1e15  # no time of a sample, and of too few digits to tell two samples apart
METRICS = {"unavailable": ("MemTotal", "MemAvailable"), "active": ("Active",)}
_TIME, _PRODUCER = "Time", "ProducerName"


class TraceError(Exception):
    """A recording that can't be used: the message names the file, what is wrong, and the way out."""


class UnusableError(TraceError):
    """A file that can be read and holds no recording of what is asked for."""


@dataclass
class Trace:
    """One host's recording: ``values`` are shares of the capacity at ``times`` (s, growing)."""

    host: str
    times: Floats
    values: Floats
    notes: list[str] = field(default_factory=list)

    @property
    def interval_s(self) -> float:
        """Seconds from one sample to the next, as a rule; 0 if there is but one."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.0

    def at(self, times: Floats, stale_s: float = STALE_S) -> Floats:
        """The value at each time: the last one known; NaN if that is older than ``stale_s``, or before the first."""
        place: Ints = np.searchsorted(self.times, times + 1e-6, side="right") - 1
        held = np.maximum(place, 0)
        return np.where((place >= 0) & (times - self.times[held] <= stale_s), self.values[held], np.nan)


def read_ldms(files: Sequence[Path], capacity_kb: float, metric: str = "unavailable") -> list[Trace]:
    """Read LDMS CSV files; a producer found in several of them is one host. Raises TraceError.

    ``capacity_kb`` is what counts as all of a host's memory; ``metric`` is one of `METRICS`. Of several files those
    that cannot be used are left out, which the first trace's notes say.
    """
    rows: dict[str, list[tuple[float, float]]] = {}
    notes: list[str] = []
    for path in files:
        try:
            for producer, time, value in _rows(path, metric, notes):
                rows.setdefault(producer, []).append((time, value / capacity_kb))
        except UnusableError as error:
            if len(files) == 1:
                raise
            notes.append(f"left out: {error}")
    if not rows:
        why = "; ".join(notes) or "there is nothing in them"
        raise TraceError(f"no sample was found in {', '.join(map(str, files))}: {why}")
    traces = [_trace(producer, found) for producer, found in rows.items()]
    traces[0].notes[:0] = notes
    return traces


def _rows(path: Path, metric: str, notes: list[str]) -> Iterator[tuple[str, float, float]]:
    """(producer, time, kB in use) of each row that holds them."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    places: dict[str, int] = {}
    bad = 0
    for line in text.replace("\0", "").splitlines():
        row = _cells(line)
        if not row:
            bad += row is None
            continue
        if _TIME in line and _TIME in (names := [name.lstrip("#").strip().rpartition(":")[2] for name in row]):
            places = {name: place for place, name in enumerate(names)}
            missing = [name for name in METRICS[metric] if name not in places]
            if missing:
                other = "active" if metric == "unavailable" else "unavailable"
                raise UnusableError(
                    f"{path}: column {missing[0]!r} is missing, which metric {metric!r} needs; the file has "
                    f"{', '.join(places)}. Try --metric {other}"
                )
            continue
        if not places:
            raise UnusableError(
                f"{path}: its first line names no columns; an LDMS CSV file begins with '#Time,ProducerName,...'"
            )
        try:
            time, *figures = (float(row[places[name]]) for name in (_TIME, *METRICS[metric]))
            # one figure is what is in use; of two the first is the total, the second what is available of it
            possible = 0 <= figures[-1] <= (figures[0] if len(figures) > 1 else math.inf) and 0 < figures[0] < math.inf
            if not (possible and abs(time) < _NEVER_S):
                raise ValueError
        except (ValueError, IndexError):
            bad += 1
            continue
        producer = row[places[_PRODUCER]] if _PRODUCER in places else path.stem
        yield producer, time, figures[0] - figures[1] if len(figures) > 1 else figures[0]
    if bad:
        cut = "" if text.endswith("\n") else ", the last one cut short"
        notes.append(f"{path.name}: {bad} rows left out that are incomplete or no numbers{cut}")


def _cells(line: str) -> list[str] | None:
    """A line's values; None if they cannot be told apart. A quote that is not closed ends with its line."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return None


def _trace(host: str, rows: list[tuple[float, float]]) -> Trace:
    """One host's rows in order, each time once; a clock that was set back goes on from where it was."""
    times, values = np.array([time for time, _ in rows]), np.array([value for _, value in rows])
    notes = []
    stray = _stray(times)
    if stray.any():
        notes.append(f"{host}: {int(stray.sum())} rows left out whose time is far from that of the rows around them")
        times, values = times[~stray], values[~stray]
    steps = np.diff(times)
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0
    for place in np.flatnonzero(steps < -60 * usual):
        # a late row comes back to the old time at once; a clock set back stays behind
        if times[place + 1 : place + 4].max() < times[place]:
            times[place + 1 :] += times[place] - times[place + 1] + usual
            notes.append(f"{host}: the clock was set back by {-steps[place]:.0f} s; it is taken to go on")
    if (np.diff(times) < 0).any():
        notes.append(f"{host}: {int((np.diff(times) < 0).sum())} rows out of order, sorted")
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    last = np.append(np.diff(times) > 0, True)
    if not last.all():
        notes.append(f"{host}: {int((~last).sum())} times given twice; the later row counts")
    times, values = times[last], values[last]
    gaps = np.diff(times)
    long = gaps > max(STALE_S, 2.5 * usual)
    if long.any():
        notes.append(f"{host}: {int(long.sum())} gaps, the longest {gaps.max():.0f} s; its value is unknown there")
    return Trace(host, times, values, notes)


def _stray(times: Floats) -> Bools:
    """Which rows have a time far from both neighbours', while those are near each other: a digit is wrong."""
    stray = np.zeros(len(times), dtype=bool)
    before, own, after = times[:-2], times[1:-1], times[2:]
    far = np.minimum(np.abs(own - before), np.abs(after - own)) > LONGEST_GAP_S
    stray[1:-1] = far & (np.abs(after - before) <= LONGEST_GAP_S)
    return stray


def shorten(traces: Sequence[Trace]) -> Callable[[float], float]:
    """Take the time out of gaps in which no host of a recording is heard of: days may lie between two of its rows.

    Returns what became of a time (s).
    """
    known = np.unique(np.concatenate([trace.times for trace in traces]))
    gaps = np.diff(known)
    long = np.flatnonzero(gaps > LONGEST_GAP_S)
    ends, cut = known[long + 1], np.concatenate(([0.0], np.cumsum(gaps[long] - LONGEST_GAP_S)))

    def moved(times: Floats) -> Floats:
        result: Floats = times - cut[np.searchsorted(ends, times, side="right")]
        return result

    for trace in traces:
        trace.times = moved(trace.times)
    if len(long):
        traces[0].notes.append(
            f"{len(long)} gaps of up to {gaps.max():.0f} s without any sample are taken as {LONGEST_GAP_S:.0f} s each"
        )
    return lambda time: float(moved(np.array([time]))[0])


@dataclass(frozen=True)
class Label:
    """What is known of a run: its application and when it leaked (seconds from its first sample)."""

    file: str
    application: str
    leaks: tuple[tuple[float, float], ...]


def read_labels(path: Path) -> list[Label]:
    """Read ``file,application,leak_intervals_s``; intervals are ``246-721;800-900``. Raises TraceError."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from error
    labels = []
    for number, row in enumerate(rows, 2):
        try:
            spans = [span.split("-") for span in (row["leak_intervals_s"] or "").split(";") if span.strip()]
            leaks = tuple((float(begin), float(end)) for begin, end in spans)
            labels.append(Label(row["file"], row.get("application") or "", leaks))
        except (KeyError, ValueError, TypeError) as error:
            raise TraceError(
                f"{path}, line {number}: {row} is no label; give file,application,leak_intervals_s, the last as "
                "246-721;800-900"
            ) from error
    return labels
