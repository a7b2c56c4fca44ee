"""Keeps the board and the values that browsers are sent, in a thread of its own, while somebody looks."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from failavoid.monitor.archive import Archive
from failavoid.monitor.display.board import Board
from failavoid.monitor.display.values import NAMES, SHOWN, Recent, band, encode, numbers, scaled
from failavoid.monitor.evacuations import EvacuationFollower
from failavoid.monitor.evaluation import Evaluator
from failavoid.monitor.groups import Follower, application_of
from failavoid.monitor.scores import score
from failavoid.monitor.settings import Settings
from failavoid.monitor.state import State
from failavoid.monitor.store import Collection
from failavoid.prediction.grouping import Floats
from failavoid.prediction.models import BINS
from failavoid.services import Changes
from failavoid.shared.messages import Guest, Host, HostHistory, Job, Membership, Prediction, Recording, to_dict

log = logging.getLogger(__name__)
SLOW_S = 30.0  # between looks at what changes slowly: scores, learned distributions
ALARMS = 200
BEFORE_S, AFTER_S, FRAMES = 30.0, 15.0, 600  # of a recording
NEVER = 1 << 30  # the column of a host that was never heard of: beyond all
_SILENT = Collection(0.0, {}, np.zeros((0, 0)))


class Display:
    """What browsers are sent. `take` is called by the judging thread and costs it nothing to speak of.

    ``news`` grows with every collection, ``watchers`` are the browsers; without any only the recent past is kept.
    """

    def __init__(
        self,
        settings: Settings,
        state: State,
        follower: Follower,
        evaluator: Evaluator,
        evacuations: EvacuationFollower,
        archive: Archive | None,
    ) -> None:
        self.settings = settings
        self.board, self.recent, self.news = Board(), Recent(settings.history_s), Changes()
        self.watchers = 0
        self._state, self._follower = state, follower
        self._evaluator, self._evacuations, self._archive = evaluator, evacuations, archive
        self._collection = _SILENT
        self._shown = (0.0, np.zeros((len(NAMES), 0)))  # time and values of the last collection that was worked up
        self._frames: dict[str, tuple[float, str]] = {}
        self._membership: Membership | None = None
        self._heard_of = -1
        self._slow = -SLOW_S
        self._ready = threading.Event()
        self.running = False
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self.running = True
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and have browsers come back to the next monitor."""
        self.running = False
        self._ready.set()
        self.news.bump()
        self._thread.join()

    def take(self, collection: Collection) -> None:
        """Have one more collection shown."""
        self._collection = collection
        self._ready.set()

    def watch(self, count: int) -> None:
        """A browser has come (1) or gone (-1)."""
        self.watchers += count
        self._ready.set()

    def frame(self, metric: str) -> str:
        """The last values of a metric, as an event's JSON; made once for all browsers."""
        made = self._frames.get(metric)
        time, values = self._shown
        if made is None or made[0] != time:
            document = {"time": round(time, 2), "metric": metric, "values": encode(values[NAMES.index(metric)])}
            made = self._frames[metric] = (time, json.dumps(document, separators=(",", ":")))
        return made[1]

    def history(self, host: str, metric: str, since: float) -> HostHistory:
        """A host's values over time, with the centre and the band of the hosts it is compared with."""
        group = next((one for one in self._follower.groups() if host in one.hosts), None)
        hosts = [host, *(name for name in (group.hosts if group else ()) if name != host)]
        times, values = self._past(hosts, metric, since, np.inf)
        rules = self.settings.rules_of(group.application if group else "")
        centre, low, high = band(values if group else values[:, :0], rules.z, rules.scale_floor)
        judged = metric == self.settings.metric
        return HostHistory(
            host=host,
            metric=metric,
            times=[round(float(time), 2) for time in times],
            values=numbers(values[:, 0]),
            centre=numbers(centre),
            low=numbers(low),
            high=numbers(high),
            peers=len(hosts) - 1,
            threshold=rules.threshold if judged else None,
            failure=rules.failure if judged else None,
        )

    def recording(self, evacuation: str, metric: str) -> Recording:
        """What was seen of all hosts during an evacuation. Raises KeyError for one that is not known."""
        first, last = _span(self._evacuations.evacuations()[evacuation])
        hosts = sorted(self._collection.hosts)
        times, values = self._past(hosts, metric, first - BEFORE_S, last + AFTER_S)
        every = max(1, len(times) // FRAMES)
        return Recording(
            evacuation=evacuation,
            metric=metric,
            hosts=hosts,
            times=[round(float(time), 2) for time in times[::every]],
            frames=[encode(row) for row in values[::every]],
        )

    def _past(self, hosts: Sequence[str], metric: str, since: float, until: float) -> tuple[Floats, Floats]:
        """(times, values: times x hosts), from the archive as far as it is before this process's own memory."""
        known = self._collection.hosts
        columns = np.array([known.get(host, NEVER) for host in hosts], dtype=np.intp)
        times, values = self.recent.of(metric, columns, since, until)
        begin = self.recent.begin()
        if self._archive is None or begin <= since:
            return times, values
        kept = [
            (collection.time, [row[collection.hosts[host]] if host in collection.hosts else np.nan for host in hosts])
            for collection, _groups in self._archive.recent(since, min(until, begin - self.settings.interval_s / 2))
            for row in [scaled(collection)[NAMES.index(metric)]]
        ]
        if not kept:
            return times, values
        before = np.array([time for time, _ in kept])
        return np.concatenate([before, times]), np.concatenate([np.array([row for _, row in kept]), values])

    def _run(self) -> None:
        while self.running:
            self._ready.wait()
            self._ready.clear()
            try:
                collection = self._collection
                if collection.time != self._shown[0]:
                    self._shown = (collection.time, scaled(collection))
                    self.recent.add(*self._shown)
                if self.watchers:
                    self.write_board()
                self.news.bump()
            except Exception:  # one that fails must not end the display
                log.exception("the display could not be brought up to date")

    def write_board(self) -> None:
        """Bring the documents up to date."""
        membership, columns = self._follower.membership(), self._collection.hosts
        if membership is not self._membership or len(columns) != self._heard_of:
            self._membership, self._heard_of = membership, len(columns)
            ranks = {name: rank for job in membership.jobs for rank, name in enumerate(job.guests or job.hosts)}
            self.board.set("host", {one.name: _host(one, columns.get(one.name, -1)) for one in membership.hosts})
            self.board.set("guest", {one.name: _guest(one, ranks.get(one.name)) for one in membership.guests})
            self.board.set("job", {one.id: _job(one) for one in membership.jobs})
            self.board.set("difference", {f"{d.host} {d.guest}": to_dict(d) for d in membership.differences})
        self.board.set("alarm", {one.id: to_dict(one) for one in list(self._evaluator.alarms)[-ALARMS:]})
        findings = self._evaluator.findings.open()
        self.board.set("finding", {f"{one.kind} {one.subject}": to_dict(one) for one in findings})
        self.board.set("evacuation", self._evacuations.evacuations())
        self.board.set("progress", self._evacuations.progress())
        self.board.set("service", {"controller": self._evacuations.status(), "monitor": self._itself()})
        if time.monotonic() - self._slow >= SLOW_S:
            self._slow = time.monotonic()
            self._write_slow()

    def _itself(self) -> dict[str, Any]:
        return {
            "metrics": [vars(shown) for shown in SHOWN],
            "metric": self.settings.metric,
            "threshold": self.settings.rules.threshold,
            "failure": self.settings.rules.failure,
            "interval_s": self.settings.interval_s,
            "rule": self.settings.rule,
        }

    def _write_slow(self) -> None:
        scores = score(self._state.all(Prediction))
        self.board.set("score", {f"{one.mode} {one.rule}": to_dict(one) for one in scores})
        metric = self.settings.metric
        learned = {name: self._state.distribution(name, metric) for name in self._state.applications(metric)}
        self.board.set(
            "distribution",
            {
                name: {"metric": metric, "runs": one.runs, "bins": BINS, "counts": one.counts.round(4).tolist()}
                for name, one in learned.items()
            },
        )


def _span(evacuation: dict[str, Any]) -> tuple[float, float]:
    """When an evacuation began, and when its last step so far ended."""
    steps = evacuation["steps"]
    begun = [step["begun"] for step in steps] + ([evacuation["alarm"]["time"]] if evacuation["alarm"] else [])
    ended = [step["done"] or step["begun"] for step in steps]
    return min(begun, default=0.0), max(ended, default=0.0)


def _host(host: Host, column: int) -> dict[str, Any]:
    return {
        "pool": host.pool,
        "reason": host.reason,
        "column": column,  # in the values of each collection; -1 if it was never heard of
        "cores": sum(map(len, host.numa.values())),
        "memory_kb": host.memory_kb,
        "domains": host.domains,
        "hardware": host.hardware_class,
        "reserved": host.reserved_spare,
        "marks": [to_dict(mark) for mark in host.marks],
        "warnings": host.warnings,
    }


def _guest(guest: Guest, rank: int | None) -> dict[str, Any]:
    return {
        "host": guest.host,
        "job": guest.job,
        "rank": rank if guest.job else None,
        "state": guest.state,
        "memory_kb": guest.memory_kb,
        "cores": guest.cores,
        "numa_node": guest.numa_node,
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "name": job.request.name,
        "application": application_of(job),
        "user": job.request.user,
        "state": job.state,
        "policy": job.request.policy,
        "resource": job.resource,
        "guests": job.guests,
        "hosts": job.hosts,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "exit_status": job.exit_status,
        "message": job.message,
    }
