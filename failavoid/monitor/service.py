"""The monitor's process: ``failavoid-monitor --settings /etc/failavoid/monitor.yml``."""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import time
from typing import Any

from fastapi import FastAPI, Response

from failavoid.documents import Since
from failavoid.monitor.alarms import AlarmSender
from failavoid.monitor.evaluation import Evaluator
from failavoid.monitor.groups import Follower
from failavoid.monitor.receiver import Receiver
from failavoid.monitor.settings import Settings
from failavoid.monitor.store import Store
from failavoid.services import SettingsError, load_settings, make_app, require, run, set_up_logging
from failavoid.shared.messages import Alarm, RuleEvent, Sample, to_dict
from failavoid.shared.names import check_name
from failavoid.shared.tokens import mint, read_secret

log = logging.getLogger(__name__)


class Monitor:
    """The monitor's threads and what they share."""

    def __init__(self, settings: Settings, secret: bytes) -> None:
        token = mint(secret, "service", "monitor")
        self.settings = settings
        self.store = Store(settings.metric, settings.history_s, settings.stale_s)
        self.follower = Follower(settings.resource_manager, token, settings.tls.authority)
        self.evaluator = Evaluator(settings)
        self.sender = AlarmSender(settings.controller, token, self._is_member, settings.tls.authority)
        self.receiver = Receiver(settings.listen, settings.port, secret, self.store, self.follower.is_guest)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._judge_for_ever, name="rules")

    def start(self) -> None:
        """Begin to receive, follow, judge and alarm."""
        for part in (self.receiver, self.follower, self.sender, self._thread):
            part.start()

    def stop(self) -> None:
        """End all threads."""
        self._stopped.set()
        self._thread.join()
        for part in (self.receiver, self.follower, self.sender):
            part.stop()

    def _is_member(self, job: str, host: str) -> bool:
        return host in self.follower.groups().get(job, [])

    def _judge_for_ever(self) -> None:
        """Judge the state of one interval ago: by then every host has sampled after it too."""
        beat = time.monotonic()
        interval = self.settings.interval_s
        while not self._stopped.wait(max(0.0, beat - time.monotonic())):
            beat = max(beat + interval, time.monotonic())
            try:
                collection = self.store.collect(time.time() - interval)
                for alarm in self.evaluator.evaluate(collection, self.follower.groups()):
                    self.sender.send(alarm)
            except Exception:  # one collection that fails must not end the watch
                log.exception("judging a collection failed")


def build_app(monitor: Monitor, secret: bytes) -> FastAPI:
    """The monitor's API, as in docs/architecture.md."""
    app = make_app("failavoid monitor", secret)

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

    return app


def main() -> None:
    """Run until SIGTERM; a setting or a port that can't be used ends it with one sentence."""
    parser = argparse.ArgumentParser(description="Failavoid's monitor")
    parser.add_argument("--settings", default="/etc/failavoid/monitor.yml")
    parser.add_argument("--check", action="store_true", help="read the settings, say what is wrong, and end")
    arguments = parser.parse_args()
    set_up_logging()
    try:
        settings = load_settings(Settings, arguments.settings)
        if arguments.check:
            return
        secret = read_secret(settings.secret)
        monitor = Monitor(settings, secret)
    except (SettingsError, ValueError) as error:
        sys.exit(f"failavoid-monitor: {error}")
    except OSError as error:
        sys.exit(f"failavoid-monitor: {error}; see secret, listen and port in {arguments.settings}")
    monitor.start()
    try:
        run(build_app(monitor, secret), settings.listen, settings.port, settings.tls)
    finally:
        monitor.stop()


if __name__ == "__main__":
    main()
