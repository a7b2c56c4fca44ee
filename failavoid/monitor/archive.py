"""Keeps samples on disk, within a limit: what the monitor knows after a restart, and what back-tests replay."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from failavoid.monitor.groups import Group
from failavoid.monitor.store import Collection
from failavoid.prediction.archives import GroupRow, Segment, read_segment, write_segment
from failavoid.prediction.traces import TraceError
from failavoid.shared.messages import METRICS

log = logging.getLogger(__name__)
SEGMENT_S = 60.0
MIB = 1 << 20


class Archive:
    """Collections go into a file a minute, written by a thread of its own; the oldest files go beyond the limit."""

    def __init__(self, folder: Path, limit_mb: int) -> None:
        self._folder = folder
        self._limit = limit_mb * MIB
        self._rows: list[Collection] = []
        self._groups: list[tuple[float, tuple[GroupRow, ...]]] = []
        self._queue: queue.Queue[Segment | None] = queue.Queue(maxsize=4)
        self._thread = threading.Thread(target=self._run, name="archive")
        self._trouble = ""
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, and end the thread."""
        self._close()
        self._queue.put(None)
        self._thread.join()

    def add(self, collection: Collection, groups: Sequence[Group]) -> None:
        """Take one collection."""
        rows = tuple((one.job, one.application, one.hardware, one.hosts) for one in groups)
        if not self._groups or self._groups[-1][1] != rows:
            self._groups.append((collection.time, rows))
        self._rows.append(collection)
        if collection.time - self._rows[0].time >= SEGMENT_S:
            self._close()

    def _close(self) -> None:
        """Hand on what has gathered."""
        if not self._rows or not self._rows[-1].hosts:
            self._rows, self._groups = [], self._groups[-1:]
            return
        hosts = tuple(self._rows[-1].hosts)
        values = np.full((len(self._rows), len(METRICS), len(hosts)), np.nan, dtype=np.float32)
        for place, row in enumerate(self._rows):
            values[place, :, : row.values.shape[1]] = row.values
        segment = Segment(np.array([row.time for row in self._rows]), hosts, METRICS, values, tuple(self._groups))
        try:
            self._queue.put_nowait(segment)
        except queue.Full:
            log.error("the disk is too slow for the archive in %s: a minute of samples is lost", self._folder)
        end = self._rows[-1].time
        self._groups = [(end, self._groups[-1][1])] if self._groups else []
        self._rows = []

    def _run(self) -> None:
        while (segment := self._queue.get()) is not None:
            try:
                write_segment(self._folder / f"{_stem(segment.times[0])}.npz", segment)
                self._make_room()
                trouble = ""
            except OSError as error:
                trouble = f"the archive in {self._folder} cannot be written: {error}; trying on"
            if trouble and trouble != self._trouble:
                log.error(trouble)
            self._trouble = trouble

    def _make_room(self) -> None:
        files = sorted(self._folder.glob("*.npz"))
        sizes = [path.stat().st_size for path in files]
        total = sum(sizes)
        for path, size in zip(files, sizes):
            if total <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= size

    def recent(self, since: float, until: float = math.inf) -> Iterator[tuple[Collection, list[Group]]]:
        """What was kept of this time, the oldest first; a damaged file is left out, and said."""
        first = _stem(since - SEGMENT_S)
        last = _stem(until) if math.isfinite(until) else ""
        for path in sorted(self._folder.glob("*.npz")):
            if path.stem < first or (last and path.stem > last):
                continue
            try:
                segment = read_segment(path)
            except TraceError as error:
                log.warning("%s", error)
                continue
            yield from _collections(segment, since, until)


def _stem(when: float) -> str:
    """The name of a file that begins then."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(when))


def _collections(segment: Segment, since: float, until: float) -> Iterator[tuple[Collection, list[Group]]]:
    hosts = {host: column for column, host in enumerate(segment.hosts)}
    place = {name: row for row, name in enumerate(segment.metrics)}
    order = [place.get(name, -1) for name in METRICS]  # another version's file may lack some
    for when, values in zip(segment.times, segment.values.astype(np.float64)):
        if since <= when <= until:
            rows = next((rows for begin, rows in reversed(segment.groups) if begin <= when), ())
            known = np.array([values[row] if row >= 0 else np.full(len(hosts), np.nan) for row in order])
            yield Collection(float(when), hosts, known), [Group(*row) for row in rows]
