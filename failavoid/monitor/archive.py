"""Keeps samples on disk, within a limit: what the monitor knows after a restart, and what back-tests replay."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from failavoid.monitor.groups import Group
from failavoid.monitor.store import Collection
from failavoid.prediction.archives import GroupRow, Segment, read_segment, write_segment
from failavoid.prediction.traces import TraceError
from failavoid.shared.messages import METRICS

log = logging.getLogger(__name__)
SEGMENT_S = 60.0
PIECE_S = 3.0  # what a monitor that is killed may lose
_OF = "+"  # between the name of a minute and the number of its piece
MIB = 1 << 20


@dataclass(frozen=True)
class _Part:
    """Collections to be written: a file's, or a piece of what will be the next one's."""

    path: Path
    rows: list[Collection]
    groups: tuple[tuple[float, tuple[GroupRow, ...]], ...]


class Archive:
    """Collections go into a file a minute, written by a thread of its own; the oldest files go beyond the limit.

    Until a minute is full, pieces of it are kept in the folder ``open``: if the monitor is killed, the next one takes
    them up as files of their own. Raises OSError.
    """

    def __init__(self, folder: Path, limit_mb: int) -> None:
        self._folder = folder
        self._open = folder / "open"
        self._limit = limit_mb * MIB
        self._rows: list[Collection] = []
        self._in_pieces = 0  # of these rows
        self._pieces = 0
        self._groups: list[tuple[float, tuple[GroupRow, ...]]] = []
        self._queue: queue.Queue[_Part | None] = queue.Queue(maxsize=4)
        self._thread = threading.Thread(target=self._run, name="archive")
        self._trouble = ""
        self._open.mkdir(parents=True, exist_ok=True)
        self._take_up_pieces()

    def _take_up_pieces(self) -> None:
        """Make files of the pieces that a killed monitor left; of a minute that was written they are not needed."""
        for path in sorted(self._open.glob("*.npz")):
            if (self._folder / f"{path.stem.partition(_OF)[0]}.npz").exists():
                path.unlink()
            else:
                path.replace(self._folder / path.name)

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
        if not 0 <= collection.time - self._rows[0].time < SEGMENT_S:  # over, or the clock was set back
            self._close()
        elif collection.hosts and collection.time - self._rows[self._in_pieces].time >= PIECE_S:
            self._close_piece()

    def _close_piece(self) -> None:
        """Hand on what is in no piece yet; while the disk is busy it waits for the next time."""
        if not self._queue.empty():
            return
        path = self._open / f"{_stamp(self._rows[0].time)}{_OF}{self._pieces:02d}.npz"
        self._queue.put_nowait(_Part(path, self._rows[self._in_pieces :], tuple(self._groups)))
        self._in_pieces = len(self._rows)
        self._pieces += 1

    def _close(self) -> None:
        """Hand on the whole minute."""
        if self._rows and self._rows[-1].hosts:
            try:
                path = self._folder / f"{_stamp(self._rows[0].time)}.npz"
                self._queue.put_nowait(_Part(path, self._rows, tuple(self._groups)))
            except queue.Full:
                log.error("the disk is too slow for the archive in %s: a minute of samples is lost", self._folder)
        if self._rows:
            self._groups = [(self._rows[-1].time, self._groups[-1][1])]
        self._rows, self._in_pieces, self._pieces = [], 0, 0

    def _run(self) -> None:
        while (part := self._queue.get()) is not None:
            whole = part.path.parent == self._folder
            try:
                write_segment(part.path, _segment(part), compressed=whole)
                if whole:
                    for path in self._open.glob("*.npz"):
                        path.unlink()
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
        first = _stamp(since - SEGMENT_S)
        last = _stamp(until) if math.isfinite(until) else ""
        for path in sorted(self._folder.glob("*.npz")):
            if path.stem < first or (last and path.stem > last):
                continue
            try:
                segment = read_segment(path)
            except TraceError as error:
                log.warning("%s", error)
                continue
            yield from _collections(segment, since, until)


def _stamp(when: float) -> str:
    """The name of a file that begins then."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(when))


def _segment(part: _Part) -> Segment:
    hosts = tuple(part.rows[-1].hosts)
    values = np.full((len(part.rows), len(METRICS), len(hosts)), np.nan, dtype=np.float32)
    for place, row in enumerate(part.rows):
        values[place, :, : row.values.shape[1]] = row.values
    return Segment(np.array([row.time for row in part.rows]), hosts, METRICS, values, part.groups)


def _collections(segment: Segment, since: float, until: float) -> Iterator[tuple[Collection, list[Group]]]:
    hosts = {host: column for column, host in enumerate(segment.hosts)}
    place = {name: row for row, name in enumerate(segment.metrics)}
    order = [place.get(name, -1) for name in METRICS]  # another version's file may lack some
    groups = [(begin, [Group(*row) for row in rows]) for begin, rows in segment.groups]
    for when, values in zip(segment.times, segment.values.astype(np.float64)):
        if since <= when <= until:
            mine = next((of for begin, of in reversed(groups) if begin <= when), [])
            known = np.array([values[row] if row >= 0 else np.full(len(hosts), np.nan) for row in order])
            yield Collection(float(when), hosts, known), mine
