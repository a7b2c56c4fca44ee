"""What the agents sent: each node's last sample, the recent past, and the hosts' values side by side."""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from failavoid.monitor.rules import Floats
from failavoid.shared.messages import Sample
from failavoid.shared.samples import Received

_KEPT = 4  # samples of each host that a collection may lie between


@dataclass(frozen=True)
class _Values:
    """A host's sample as shares of its memory."""

    time: float
    metric: float
    unavailable: float
    guests: float


@dataclass(frozen=True)
class Collection:
    """All hosts' values at one moment, interpolated; NaN where a host is silent."""

    time: float
    hosts: dict[str, int]  # column of each host; columns are never given away again
    metric: Floats
    unavailable: Floats
    guests: Floats


class Store:
    """Filled by the receiver's thread, read by all others.

    The past is kept as it came, in about 300 bytes a sample, for ``history_s`` seconds.
    """

    def __init__(self, metric: str, history_s: float, stale_s: float) -> None:
        self._metric = metric
        self._history_s = history_s
        self._stale_s = stale_s
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, Sample]] = {}
        self._past: deque[tuple[float, Received]] = deque()
        self._recent: dict[str, deque[_Values]] = {}
        self._columns: dict[str, int] = {}

    def take(self, received: Received, arrived: float) -> None:
        """Keep a sample that arrived at ``arrived``. Raises RefusedError if its content is malformed."""
        metrics, cores = received.content()
        sample = Sample(received.subject, received.role, received.time, metrics, cores)
        values = shares(sample, self._metric) if received.role == "host" else None
        with self._lock:
            self._last[sample.node] = (arrived, sample)
            self._past.append((arrived, received))
            while self._past and self._past[0][0] < arrived - self._history_s:
                self._past.popleft()
            if values:
                self._columns.setdefault(sample.node, len(self._columns))
                self._recent.setdefault(sample.node, deque(maxlen=_KEPT)).append(values)

    def last(self) -> list[Sample]:
        """The last sample of each node, by name."""
        with self._lock:
            return [self._last[node][1] for node in sorted(self._last)]

    def history(self, since: float) -> str:
        """All samples that arrived since then, oldest first, as the JSON of a list of Sample."""
        with self._lock:
            wanted = list(takewhile(lambda entry: entry[0] >= since, reversed(self._past)))
        return "[" + ",".join(_json(received) for _, received in reversed(wanted)) + "]"

    def collect(self, when: float) -> Collection:
        """Every host's values at the same moment, although each samples at its own."""
        with self._lock:
            recent = [tuple(self._recent[host]) for host in self._columns]
            hosts = dict(self._columns)
        rows = np.full((3, len(recent)), np.nan)
        for column, values in enumerate(recent):
            at = interpolate(values, when, self._stale_s)
            if at:
                rows[:, column] = at
        return Collection(when, hosts, rows[0], rows[1], rows[2])

    def drop_silent(self, now: float) -> list[tuple[str, str]]:
        """Forget nodes not heard of for ``history_s``; return (kind, name) of each."""
        with self._lock:
            gone = [s for arrived, s in self._last.values() if arrived < now - self._history_s]
            for sample in gone:
                del self._last[sample.node]
                if sample.node in self._recent:
                    self._recent[sample.node].clear()
        return [(sample.kind, sample.node) for sample in gone]


def shares(sample: Sample, metric: str) -> _Values | None:
    """The sample as shares of the host's memory; None if it lacks what is needed."""
    kb = sample.metrics
    total = kb.get("mem_total_kb", 0)
    available, active = kb.get("mem_available_kb"), kb.get("mem_active_kb")
    if total <= 0 or available is None or (metric == "active" and active is None):
        return None
    unavailable = 1 - available / total
    return _Values(
        time=sample.time,
        metric=unavailable if metric == "unavailable" or active is None else active / total,
        unavailable=unavailable,
        guests=kb.get("guests_rss_kb", 0) / total,
    )


def interpolate(values: tuple[_Values, ...], when: float, stale_s: float) -> tuple[float, float, float] | None:
    """The values at ``when``, between two samples or held from the last; None if that is too old."""
    after = None
    for sample in reversed(values):
        if sample.time <= when:
            if after is None or after.time - sample.time > stale_s:
                if when - sample.time > stale_s:
                    return None
                return sample.metric, sample.unavailable, sample.guests
            part = (when - sample.time) / (after.time - sample.time)
            return (
                sample.metric + part * (after.metric - sample.metric),
                sample.unavailable + part * (after.unavailable - sample.unavailable),
                sample.guests + part * (after.guests - sample.guests),
            )
        after = sample
    return None


def _json(received: Received) -> str:
    start = json.dumps({"node": received.subject, "kind": received.role, "time": received.time})
    return f"{start[:-1]},{received.body.decode()[1:]}"
