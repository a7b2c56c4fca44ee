"""What the agents sent: each node's last sample, the recent past, and the hosts' values side by side."""

from __future__ import annotations

import json
import math
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from failavoid.prediction.grouping import Floats, Ints
from failavoid.shared.messages import METRICS, NodeHealth, Sample

_KEPT = 4  # samples of each host that a collection may lie between
_CLOCK_OFF_S = 0.5  # more than a network delays
_DISORDER_S = 5.0  # several sources bring samples, each in its own order
_ENTRY_BYTES = 250  # of an entry of the past, besides its JSON
_WINDOW = 60  # samples, in which loss and delay are looked at
_SILENT = 3  # samples that a node owes
_HELD = 2.5  # intervals of a host's own that its last value counts for, as in back-tests
_PLACE = {name: place for place, name in enumerate(METRICS)}


@dataclass(frozen=True)
class Collection:
    """All hosts' values at one moment, interpolated; NaN where a host is silent.

    ``values`` has one row a metric of METRICS, one column a host.
    """

    time: float
    hosts: dict[str, int]  # column of each host; columns are never given away again
    values: Floats

    def metric(self, name: str) -> Floats:
        """One metric of all hosts."""
        row: Floats = self.values[_PLACE[name]]
        return row

    def shares(self, metric: str) -> Floats:
        """Memory in use as shares of each host's: ``unavailable``, ``active``, or ``guests`` (held by their QEMUs)."""
        total = self.metric("mem_total_kb")
        with np.errstate(divide="ignore", invalid="ignore"):
            if metric == "unavailable":
                return 1 - self.metric("mem_available_kb") / total
            if metric == "active":
                return self.metric("mem_active_kb") / total
            return np.where(total > 0, np.nan_to_num(self.metric("guests_rss_kb")) / total, np.nan)


class _Node:
    """How one node's samples arrive, over all of its time and over the last one or two windows."""

    __slots__ = ("arrived", "before", "delay", "intervals", "lost", "now", "received", "sample")

    def __init__(self) -> None:
        self.received = self.lost = 0
        self.arrived = self.delay = 0.0
        self.intervals = (0.0, 0.0)  # between its last samples: the shorter is its own, the longer may be an outage
        self.sample: Sample | None = None
        self.now = self.before = (0, 0, math.inf)  # received, lost, least delay

    def take(self, sample: Sample, arrived: float, lost: int) -> None:
        if self.sample is not None:
            self.intervals = (self.intervals[1], (sample.time - self.sample.time) / (lost + 1))
        self.sample, self.arrived, self.delay = sample, arrived, arrived - sample.time
        self.received += 1
        self.lost += lost
        received, lost_before, least = self.now
        self.now = (received + 1, lost_before + lost, min(least, self.delay))
        if self.now[0] == _WINDOW:
            self.before, self.now = self.now, (0, 0, math.inf)

    def on_this_clock(self) -> float:
        """When the last sample was made: by this host's clock, if the node's is off."""
        assert self.sample is not None
        quickest = min(self.now[2], self.before[2])
        return self.sample.time + (quickest if abs(quickest) > _CLOCK_OFF_S else 0.0)

    def health(self, now: float, stale_s: float) -> NodeHealth:
        assert self.sample is not None
        (received, lost, least), (received_before, lost_before, least_before) = self.now, self.before
        sent = received + lost + received_before + lost_before
        quickest = min(least, least_before)
        return NodeHealth(
            node=self.sample.node,
            kind=self.sample.kind,
            last=self.arrived,
            received=self.received,
            lost=self.lost,
            recent_loss=(lost + lost_before) / sent if sent else 0.0,
            delay_s=self.delay - quickest,
            skew_s=-quickest,
            silent=now - self.arrived > max(stale_s, _SILENT * min(self.intervals)),
        )


class Store:
    """Filled by the sources' threads, read by all others.

    The past is kept as JSON, in about a kilobyte a sample, for ``history_s`` seconds and in ``history_mb`` MiB at most.
    """

    def __init__(self, history_s: float, stale_s: float, history_mb: int = 1024) -> None:
        self._history_s = history_s
        self._history_bytes = history_mb << 20
        self._past_bytes = 0
        self._stale_s = stale_s
        self._lock = threading.Lock()
        self._nodes: dict[str, _Node] = {}
        self._received = self._lost = 0  # since the start, of nodes that were forgotten too
        self._past: deque[tuple[float, str, str, float, bytes]] = deque()
        self._columns: dict[str, int] = {}
        self._hosts: dict[str, int] = {}  # the columns as collections have them: the same object until a host is new
        # each host's last samples, the oldest overwritten by the next
        self._times = np.full((_KEPT, 64), -np.inf)
        self._rows = np.full((_KEPT, 64, len(METRICS)), np.nan)
        self._next = [0] * 64
        self._held = np.full(64, stale_s)  # s, that each host's last value counts

    def take(self, sample: Sample, arrived: float, body: bytes | None = None, lost: int = 0) -> None:
        """Keep a sample that arrived at ``arrived``; ``lost`` of its sender before it did not. ``body`` is its JSON."""
        if body is None:
            body = json.dumps({"metrics": sample.metrics, "cores": sample.cores}).encode()
        get = sample.metrics.get
        row = [get(name, np.nan) for name in METRICS] if sample.kind == "host" else None
        with self._lock:
            node = self._nodes.get(sample.node)
            if node is None:
                node = self._nodes[sample.node] = _Node()
            node.take(sample, arrived, lost)
            self._received += 1
            self._lost += lost
            self._remember(arrived, sample.node, sample.kind, sample.time, body)
            if row is not None:
                column = self._columns.get(sample.node)
                if column is None:
                    column = self._new_column(sample.node)
                place = self._next[column]
                self._next[column] = (place + 1) % _KEPT
                self._times[place, column] = node.on_this_clock()
                self._held[column] = max(self._stale_s, _HELD * min(node.intervals))
                self._rows[place, column] = row

    def recall(self, collection: Collection) -> None:
        """Take up hosts' samples of before a restart: they are history, not news."""
        for host, column in collection.hosts.items():
            row = collection.values[:, column]
            metrics = {name: float(value) for name, value in zip(METRICS, row) if np.isfinite(value)}
            if metrics:
                body = json.dumps({"metrics": metrics, "cores": []}).encode()
                with self._lock:
                    self._remember(collection.time, host, "host", collection.time, body)

    def _remember(self, arrived: float, node: str, kind: str, time: float, body: bytes) -> None:
        self._past.append((arrived, node, kind, time, body))
        self._past_bytes += len(body) + _ENTRY_BYTES
        while self._past[0][0] < arrived - self._history_s or self._past_bytes > self._history_bytes:
            self._past_bytes -= len(self._past.popleft()[4]) + _ENTRY_BYTES

    def _new_column(self, host: str) -> int:
        column = self._columns[host] = len(self._columns)
        if column == self._times.shape[1]:
            self._times = np.concatenate([self._times, np.full_like(self._times, -np.inf)], axis=1)
            self._rows = np.concatenate([self._rows, np.full_like(self._rows, np.nan)], axis=1)
            self._next += [0] * len(self._next)
            self._held = np.concatenate([self._held, np.full_like(self._held, self._stale_s)])
        return column

    def last(self) -> list[Sample]:
        """The last sample of each node, by name."""
        with self._lock:
            found = [node.sample for _, node in sorted(self._nodes.items())]
        return [sample for sample in found if sample is not None]

    def cores(self, hosts: Iterable[str]) -> dict[str, list[float]]:
        """Share of each core in use, by the last sample of each of these hosts that has sent one."""
        with self._lock:
            return {host: node.sample.cores for host in hosts if (node := self._nodes.get(host)) and node.sample}

    def history(self, since: float) -> str:
        """All samples that arrived since then, oldest first, as the JSON of a list of Sample."""
        with self._lock:
            found = list(takewhile(lambda entry: entry[0] >= since - _DISORDER_S, reversed(self._past)))
        wanted = [entry for entry in reversed(found) if entry[0] >= since]
        return "[" + ",".join(_json(*entry[1:]) for entry in wanted) + "]"

    def collect(self, when: float) -> Collection:
        """Every host's values at the same moment, although each samples at its own."""
        with self._lock:
            count = len(self._columns)
            if len(self._hosts) != count:
                self._hosts = dict(self._columns)
            hosts = self._hosts
            times, rows = self._times[:, :count].copy(), self._rows[:, :count].copy()
            held = self._held[:count].copy()
        return Collection(when, hosts, interpolate(times, rows, when, held))

    def health(self, now: float) -> list[NodeHealth]:
        """How each node's samples arrive, by name."""
        with self._lock:
            found = sorted(self._nodes.items())
        return [node.health(now, self._stale_s) for _, node in found]

    def counts(self) -> tuple[int, int]:
        """Samples received and lost since the start."""
        with self._lock:
            return self._received, self._lost

    def drop_silent(self, now: float) -> list[tuple[str, str]]:
        """Forget nodes not heard of for ``history_s``; return (kind, name) of each."""
        with self._lock:
            gone = [
                (node.sample.kind, name)
                for name, node in self._nodes.items()
                if node.sample and node.arrived < now - self._history_s
            ]
            for _, name in gone:
                del self._nodes[name]
                if name in self._columns:
                    self._times[:, self._columns[name]] = -np.inf
        return gone


def interpolate(times: Floats, rows: Floats, when: float, held_s: Floats) -> Floats:
    """Each host's values at ``when`` (metrics x hosts), between two samples or held from the last; NaN if too old.

    ``times`` is samples x hosts, in any order; ``rows`` samples x hosts x metrics; ``held_s`` how long each host's last
    value counts.
    """
    hosts: Ints = np.arange(times.shape[1])
    earlier = np.where(times <= when, times, -np.inf)
    later = np.where(times > when, times, np.inf)
    before, after = earlier.argmax(axis=0), later.argmin(axis=0)
    begin, end = earlier[before, hosts], later[after, hosts]
    first, second = rows[before, hosts], rows[after, hosts]
    between = np.isfinite(begin) & (end - begin <= held_s)
    with np.errstate(invalid="ignore"):
        part = np.where(between, (when - begin) / (end - begin), 0.0)
        values = np.where(between[:, None], first + part[:, None] * (second - first), first)
    values[~(between | (when - begin <= held_s))] = np.nan
    result: Floats = values.T
    return result


def _json(node: str, kind: str, time: float, body: bytes) -> str:
    start = json.dumps({"node": node, "kind": kind, "time": time})
    return f"{start[:-1]},{body.decode()[1:]}"
