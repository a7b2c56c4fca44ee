"""Lets the rules judge every collection, and turns what they say over time into alarms."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from failavoid.monitor.evidence import correlative_distance, explain, pressure_from
from failavoid.monitor.findings import Findings, Subject
from failavoid.monitor.groups import Group
from failavoid.monitor.learning import Learner
from failavoid.monitor.panels import Panel, Panels, pick
from failavoid.monitor.scores import Scorer
from failavoid.monitor.settings import Settings
from failavoid.monitor.state import State
from failavoid.monitor.store import Collection
from failavoid.prediction.grouping import Bools, Ints
from failavoid.prediction.rules import MIN_HOSTS
from failavoid.prediction.watch import Tick
from failavoid.shared.messages import Alarm, RuleEvent

log = logging.getLogger(__name__)
KEPT = 10000  # alarms and events in memory
_LOOKS = 8  # collections that several metrics are compared over
_LOOK_EVERY_S = 10.0
_JUDGE_EVERY_S = 5.0  # open predictions, and what there is to learn
_REARM = 0.05  # below failure, before a host can fail again


@dataclasses.dataclass
class Decision:
    """What one collection leads to."""

    raised: list[Alarm] = dataclasses.field(default_factory=list)
    withdrawn: list[Alarm] = dataclasses.field(default_factory=list)


class Evaluator:
    """All rules over time, for the groups of each moment.

    ``has_room`` tells of a host whether some free host could hold its guests with all of their memory.
    """

    def __init__(
        self, settings: Settings, state: State | None = None, has_room: Callable[[str], bool] = lambda _host: False
    ) -> None:
        self._settings = settings
        self._state = state or State("")
        self._has_room = has_room
        self._panels = Panels(settings)
        self.learner = Learner(self._state, settings.metric)
        self.scorer = Scorer(self._state, settings.judged_after_s, settings.rule)
        self.findings = Findings(self._state)
        self._looks: deque[Collection] = deque(maxlen=_LOOKS)
        self._judged = -np.inf
        self._groups: Sequence[Group] = ()
        self._members: set[tuple[str, str]] = set()  # job, host
        self._raised: dict[tuple[str, str, str], Alarm] = {}  # mode, job, host -> the last alarm, while its cause stays
        self._failed: set[tuple[str, str, str]] = set()  # mode, job, host
        self.events: dict[tuple[str, str, str], RuleEvent] = {
            (one.rule, one.host, one.job): one for one in self._state.all(RuleEvent)
        }
        self.alarms: deque[Alarm] = deque(self._state.all(Alarm), maxlen=KEPT)

    def evaluate(
        self, collection: Collection, groups: Sequence[Group], now: float | None = None, horizon_s: float | None = None
    ) -> Decision:
        """Judge one more collection. ``now`` stamps what is noted; ``horizon_s`` is the settings' if not given."""
        now = time.time() if now is None else now
        if not self._looks or collection.time - self._looks[-1].time >= _LOOK_EVERY_S:
            self._looks.append(collection)
        decision = Decision()
        holding: dict[Subject, str] = {}
        for panel in self._panels.arrange(groups):
            horizon = max(panel.settings.horizon_s, horizon_s or 0.0)
            tick = panel.tick(collection, self._settings.metric, horizon, self.learner.relative_probability)
            if tick is None:
                continue
            self._score(panel, tick, now)
            self._decide(panel, tick, collection, now, horizon, decision)
            if panel.mode is None:
                if now - self._judged >= _JUDGE_EVERY_S:
                    suspicious = tick.active["threshold"] | tick.active[self._settings.rule]
                    self.learner.take(panel.groups, tick.view.now, suspicious)
                holding.update(_of_jobs(panel, tick.view.application))
        self._leave(groups, now)
        self.findings.look("jobs", now, holding)
        self._put_aside(decision)
        return decision

    def recall(self, collection: Collection, groups: Sequence[Group]) -> None:
        """Take up a collection of before a restart: it is remembered, and nothing comes of it."""
        for panel in self._panels.arrange(groups):
            panel.tick(collection, self._settings.metric, 0.0, self.learner.relative_probability)

    def _score(self, panel: Panel, tick: Tick, now: float) -> None:
        """Note what every rule begins and ends to say, and which hosts have failed."""
        view, mode = tick.view, panel.name
        for rule in tick.verdicts:
            for column in tick.begun[rule]:
                job, host = panel.member(column)
                value = float(view.now[column])
                predicted, doubt = float(view.trend.failure[column]), float(view.trend.doubt[column])
                self.scorer.predict((rule, mode, job, host), now, value, predicted, doubt)
                if panel.mode is None:
                    self._note(rule, job, host, value, now)
            for column in tick.ended[rule]:
                job, host = panel.member(column)
                self.scorer.cleared((rule, mode, job, host), now)
        failure = panel.settings.failure
        for column in np.flatnonzero(view.now >= failure):
            job, host = panel.member(column)
            if (mode, job, host) not in self._failed:
                self._failed.add((mode, job, host))
                self.scorer.failed(tick.verdicts, mode, job, host, now, float(view.now[column]))
        if self._failed:
            for column in np.flatnonzero(view.now < failure - _REARM):
                self._failed.discard((mode, *panel.member(column)))

    def _decide(
        self, panel: Panel, tick: Tick, collection: Collection, now: float, horizon_s: float, decision: Decision
    ) -> None:
        """Alarms of the acting rule: when it begins, again while nothing comes of it, withdrawn when it ends."""
        rule = self._settings.rule if self._settings.rule in tick.verdicts else "robust"
        for column in tick.ended[rule]:
            alarm = self._raised.pop((panel.name, *panel.member(column)), None)
            if alarm:
                decision.withdrawn.append(alarm)
        holds = tick.verdicts[rule].fires & tick.active[rule] & np.isfinite(tick.view.now)
        for column in np.flatnonzero(holds):
            key = (panel.name, *panel.member(column))
            before = self._raised.get(key)
            if before is None or now - before.time >= self._settings.reraise_s:
                self._raised[key] = self._alarm(rule, panel, tick, int(column), collection, now, horizon_s)
                decision.raised.append(self._raised[key])

    def _alarm(
        self, rule: str, panel: Panel, tick: Tick, column: int, collection: Collection, now: float, horizon_s: float
    ) -> Alarm:
        job, host = panel.member(column)
        trend = tick.view.trend
        interval = self.scorer.calibration(panel.name).interval(
            float(trend.failure[column]), float(trend.doubt[column])
        )
        evidence = explain(panel, tick, rule, column, horizon_s, interval)
        columns = panel.columns(collection)
        groups = tick.view.grouping.ids
        if panel.mode is None:
            total, guests = (pick(collection.shares(metric), columns) for metric in ("unavailable", "guests"))
            evidence.pressure_from = pressure_from(total, guests, groups, column)
            evidence.move_recommended = evidence.pressure_from != "guests" or self._has_room(host)
        mine: Ints = np.flatnonzero((groups == groups[column]) & (columns >= 0))
        if column in mine:
            place = int(np.flatnonzero(mine == column)[0])
            evidence.correlative_distance = correlative_distance(self._looks, columns[mine], place)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        metric = panel.mode.metric if panel.mode else self._settings.metric
        alarm = Alarm(
            id=f"alarm-{stamp}-{secrets.token_hex(3)}",
            time=now,
            host=host,
            job=job,
            rule=rule,
            metric=metric,
            value=evidence.value,
            evidence=evidence,
        )
        log.warning(
            "alarm %s: host %s of job %s: %s %.3f, group %.3f +- %.3f, z %.1f, failure in %s s, by the %s",
            alarm.id,
            host,
            job,
            metric,
            evidence.value,
            evidence.centre,
            evidence.scale,
            evidence.z,
            "?" if evidence.predicted_failure_s is None else round(evidence.predicted_failure_s),
            evidence.pressure_from or "?",
        )
        return alarm

    def _note(self, rule: str, job: str, host: str, value: float, now: float) -> None:
        key = (rule, host, job)
        if key not in self.events:
            event = self.events[key] = RuleEvent(rule, host, job, now, self._settings.metric, value)
            self._state.put(" ".join(key), event)
            log.info("rule %s holds for host %s of job %s: %.3f", rule, host, job, value)
            while len(self.events) > KEPT:
                del self.events[next(iter(self.events))]

    def _leave(self, groups: Sequence[Group], now: float) -> None:
        """Forget what is about hosts that are no longer of their job, when jobs have changed; judge what is overdue."""
        if groups is not self._groups:
            self._groups = groups
            self._members = {(group.job, host) for group in groups for host in group.hosts}
            self._raised = {key: alarm for key, alarm in self._raised.items() if key[1:] in self._members}
            self._failed = {key for key in self._failed if key[1:] in self._members}
        elif now - self._judged < _JUDGE_EVERY_S:
            return
        self.scorer.follow(self._members, now)
        self._judged = now

    def _put_aside(self, decision: Decision) -> None:
        self.alarms.extend(decision.raised)
        for alarm in decision.raised:
            self._state.put(alarm.id, alarm)


def _of_jobs(panel: Panel, application: Bools) -> dict[Subject, str]:
    """What keeps the rules silent."""
    found: dict[Subject, str] = {}
    begin = 0
    for group in panel.groups:
        end = begin + len(group.hosts)
        if len(group.hosts) < MIN_HOSTS:
            found[("alone", group.name)] = (
                f"has {len(group.hosts)} host(s) to compare; rule robust needs {MIN_HOSTS}, or what earlier runs of "
                f"{group.application} have taught it"
            )
        elif application[begin:end].all():
            found[("pressure", group.name)] = (
                "most of its hosts are over the threshold or will be: the application at work, no alarm. If it can "
                "write a checkpoint, now is the time"
            )
        begin = end
    return found
