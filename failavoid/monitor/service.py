"""The monitor's process: ``failavoid-monitor --settings /etc/failavoid/monitor.yml``."""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response

from failavoid.documents import Since
from failavoid.exposition import serve_metrics
from failavoid.monitor.alarms import AlarmSender
from failavoid.monitor.alerts import Alerter, Seen
from failavoid.monitor.archive import Archive
from failavoid.monitor.display import api as display_api
from failavoid.monitor.display.display import Display
from failavoid.monitor.evacuations import EvacuationFollower
from failavoid.monitor.evaluation import Evaluator
from failavoid.monitor.findings import of_nodes
from failavoid.monitor.groups import Follower
from failavoid.monitor.metrics import Metrics
from failavoid.monitor.migrations import MigrationTimes
from failavoid.monitor.scores import score
from failavoid.monitor.settings import Settings
from failavoid.monitor.sources import Context, check_source, open_source
from failavoid.monitor.state import State
from failavoid.monitor.store import Store
from failavoid.prediction.models import BINS
from failavoid.services import SettingsError, client, load_settings, make_app, require, run, set_up_logging
from failavoid.shared.messages import (
    Alarm,
    Distribution,
    Finding,
    NodeHealth,
    Prediction,
    Predictions,
    RuleEvent,
    Sample,
    to_dict,
)
from failavoid.shared.names import check_name
from failavoid.shared.tokens import mint, read_secret

log = logging.getLogger(__name__)


HEALTH_EVERY_S = 5.0
RECALLED = 1_000_000  # samples, that a monitor on a large site is soon back


class Monitor:
    """The monitor's threads and what they share."""

    def __init__(self, settings: Settings, secret: bytes) -> None:
        token = mint(secret, "service", "monitor")
        self.settings = settings
        self.state = State(settings.state)
        self.store = Store(settings.history_s, settings.stale_s, settings.history_mb)
        self.follower = Follower(settings.resource_manager, token, settings.tls.authority)
        self.evaluator = Evaluator(settings, self.state, self.follower.has_room_for)
        self.sender = AlarmSender(settings.controller, token, self.follower.is_member, settings.tls.authority)
        self.migrations = MigrationTimes(settings.controller, token, settings.tls.authority)
        self.metrics = Metrics(settings, self.store, self.state, self.evaluator.findings, self.horizon_s)
        keeps = settings.state and settings.archive_mb
        self.archive = Archive(Path(settings.state) / "archive", settings.archive_mb) if keeps else None
        self.evacuations = EvacuationFollower(client(settings.controller, token, settings.tls.authority))
        self.display = Display(settings, self.state, self.follower, self.evaluator, self.evacuations, self.archive)
        self.alerter = Alerter(settings.alerts, settings.display_url, self._seen)
        self._began = time.time()
        self._members: dict[str, float] = {}  # nodes of jobs, and since when they are known to be
        context = Context(settings.listen, settings.port, secret, self.store, self.follower.is_guest)
        self.sources = [open_source(source.kind, source.options, context) for source in settings.sources]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._judge_for_ever, name="rules")

    def start(self) -> None:
        """Begin to receive, follow, judge and alarm."""
        self._recall()
        if self.archive:
            self.archive.start()
        for part in self._parts():
            part.start()
        self._thread.start()

    def stop(self) -> None:
        """End all threads, and keep what is to be kept."""
        self._stopped.set()
        self._thread.join()
        if self.archive:  # first: nothing that goes wrong after this costs a sample
            self.archive.stop()
        for part in self._parts():
            part.stop()
        self.evaluator.learner.keep()
        self.state.close()

    def _parts(self) -> list[Any]:
        parts = (self.follower, self.sender, self.migrations, self.evacuations, self.display, self.alerter)
        return [*self.sources, *parts]

    def _seen(self) -> Seen:
        return Seen(
            now=time.time(),
            since=self._began,
            alarms=list(self.evaluator.alarms),
            evacuations=list(self.evacuations.evacuations().values()),
            findings=self.evaluator.findings.open(),
            membership=self.follower.membership(),
        )

    def horizon_s(self) -> float:
        """A failure predicted within this time is danger, if the settings' own horizon is not longer."""
        return self.settings.migration_factor * self.migrations.slow_s()

    def _recall(self) -> None:
        """Take up what an earlier monitor kept, so that its trends and its history go on."""
        if not self.archive:
            return
        now = time.time()
        count = 0
        for collection, groups in self.archive.recent(now - self.settings.history_s):
            if collection.time > now - RECALLED / max(1, len(collection.hosts)):
                count += 1
                self.store.recall(collection)
            if collection.time > now - self.settings.rules.long_window_s:
                self.evaluator.recall(collection, groups)
        if count:
            log.info("%d collections of before are known again", count)

    def _judge_for_ever(self) -> None:
        """Judge each host by its last sample: waiting until all are of the same moment would cost an alarm a second.

        What growth makes of the difference is within the rules' ``skew_s``.
        """
        beat = looked = time.monotonic()
        interval = self.settings.interval_s
        while not self._stopped.wait(max(0.0, beat - time.monotonic())):
            beat = max(beat + interval, time.monotonic())
            try:
                self._judge(time.time())
                if time.monotonic() - looked >= HEALTH_EVERY_S:
                    looked = time.monotonic()
                    self._look_at_nodes()
            except Exception:  # one collection that fails must not end the watch
                log.exception("judging a collection failed")

    def _judge(self, when: float) -> None:
        collection, groups = self.store.collect(when), self.follower.groups()
        with self.metrics.judging.time():
            decision = self.evaluator.evaluate(collection, groups, horizon_s=self.horizon_s())
        self.metrics.count(decision.raised, decision.withdrawn)
        for alarm in decision.raised:
            self.sender.send(alarm)
        for alarm in decision.withdrawn:
            self.sender.withdraw(alarm)
        self.display.take(collection)
        if self.archive:
            self.archive.add(collection, groups)

    def _look_at_nodes(self) -> None:
        now = time.time()
        membership = self.follower.membership()
        members = {host for group in self.follower.groups() for host in group.hosts}
        members |= {guest.name for guest in membership.guests if guest.job and guest.state == "ready"}
        self._members = {name: self._members.get(name, now) for name in members}
        self.evaluator.findings.look("nodes", now, of_nodes(self.store.health(now), self._members, now))
        self.evaluator.learner.close(membership)


def build_app(monitor: Monitor, secret: bytes) -> FastAPI:
    """The monitor's API, as in docs/architecture.md."""
    app = make_app("failavoid monitor", secret, public=display_api.PAGES)
    serve_metrics(app, monitor.metrics.registry)
    display_api.add(app, monitor.display, monitor.store, monitor.evacuations)

    @app.get("/samples", response_model=list[Sample], dependencies=[require()])
    def samples() -> list[dict[str, Any]]:
        return [to_dict(sample) for sample in monitor.store.last()]

    @app.get("/history", response_model=list[Sample], dependencies=[require()])
    def history(since: Since = 0.0) -> Response:
        return Response(monitor.store.history(since), media_type="application/json")

    @app.get("/alarms", response_model=list[Alarm], dependencies=[require()])
    def alarms() -> list[dict[str, Any]]:
        return [to_dict(alarm) for alarm in list(monitor.evaluator.alarms)]

    @app.get("/rule-events", response_model=list[RuleEvent], dependencies=[require()])
    def rule_events(job: str | None = None) -> list[dict[str, Any]]:
        if job is not None:
            check_name("job", job)
        events = list(monitor.evaluator.events.values())
        return [to_dict(event) for event in events if job in (None, event.job)]

    @app.get("/predictions", response_model=Predictions, dependencies=[require()])
    def predictions() -> dict[str, Any]:
        found = monitor.state.all(Prediction)
        return {"rules": [to_dict(one) for one in score(found)], "predictions": [to_dict(one) for one in found]}

    @app.get("/findings", response_model=list[Finding], dependencies=[require()])
    def findings() -> list[dict[str, Any]]:
        return [to_dict(finding) for finding in monitor.state.all(Finding)]

    @app.get("/nodes", response_model=list[NodeHealth], dependencies=[require()])
    def nodes() -> list[dict[str, Any]]:
        return [to_dict(node) for node in monitor.store.health(time.time())]

    @app.get("/distributions", response_model=list[Distribution], dependencies=[require()])
    def distributions() -> list[dict[str, Any]]:
        metric = monitor.settings.metric
        learned = [(name, monitor.state.distribution(name, metric)) for name in monitor.state.applications(metric)]
        return [
            {"application": name, "metric": metric, "runs": one.runs, "bins": BINS, "counts": one.counts.tolist()}
            for name, one in learned
        ]

    return app


def check_sources(settings: Settings) -> None:
    """Refuse sources that could not be opened. Raises ValueError."""
    for number, source in enumerate(settings.sources):
        try:
            check_source(source.kind, source.options)
        except ValueError as error:
            raise ValueError(f"Settings.sources[{number}]: {error}") from error


def main() -> None:
    """Run until SIGTERM; a setting or a port that can't be used ends it with one sentence."""
    parser = argparse.ArgumentParser(description="Failavoid's monitor")
    parser.add_argument("--settings", default="/etc/failavoid/monitor.yml")
    parser.add_argument("--check", action="store_true", help="read the settings, say what is wrong, and end")
    arguments = parser.parse_args()
    set_up_logging()
    try:
        settings = load_settings(Settings, arguments.settings, check_sources)
        if arguments.check:
            return
        secret = read_secret(settings.secret)
        monitor = Monitor(settings, secret)
    except (SettingsError, ValueError) as error:
        sys.exit(f"failavoid-monitor: {error}")
    except OSError as error:
        sys.exit(f"failavoid-monitor: {error}; see secret, listen and port in {arguments.settings}")
    app = build_app(monitor, secret)
    monitor.start()
    run(app, settings.listen, settings.port, settings.tls, monitor.stop)


if __name__ == "__main__":
    main()
