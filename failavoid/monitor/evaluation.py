"""Lets the rules judge every collection, and turns what they say over time into alarms."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np

from failavoid.monitor.rules import (
    MIN_HOSTS,
    Bools,
    Judgement,
    Window,
    explain,
    judge,
    persistence_s,
    pressure_from,
)
from failavoid.monitor.settings import Settings
from failavoid.monitor.store import Collection
from failavoid.shared.messages import Alarm, Evidence, RuleEvent

log = logging.getLogger(__name__)
KEPT_EVENTS = 10000
Member = tuple[str, str]  # job, host


@dataclasses.dataclass
class _State:
    """How long a rule has held for a host, and whether that has been said."""

    held: int = 0
    cleared: int = 0
    active: bool = False


class Latch:
    """One rule over time.

    It begins when it has held for ``needed`` collections, and can begin again only after it
    has cleared for as many. A host without a sample keeps its state: one that is about to
    fail may fall silent first.
    """

    def __init__(self, needed: int) -> None:
        self._needed = needed
        self._states: dict[Member, _State] = {}

    def update(self, members: list[Member], fires: Bools, clears: Bools, known: Bools) -> list[int]:
        """Take one collection's verdicts; return the columns for which the rule begins."""
        begun = []
        for column in np.flatnonzero(fires & known):
            state = self._states.setdefault(members[column], _State())
            state.held += 1
            state.cleared = 0
            if not state.active and state.held >= self._needed:
                state.active = True
                begun.append(int(column))
        if self._states:
            for column in np.flatnonzero(~fires & known):
                self._quiet(members[column], bool(clears[column]))
        return begun

    def _quiet(self, member: Member, clears: bool) -> None:
        state = self._states.get(member)
        if state is None:
            return
        state.held = 0
        state.cleared = state.cleared + 1 if clears else 0
        if not state.active or state.cleared >= self._needed:
            del self._states[member]

    def is_active(self, member: Member) -> bool:
        """Whether the rule has begun for a host and not ended."""
        state = self._states.get(member)
        return state is not None and state.active

    def keep_only(self, members: Iterable[Member]) -> None:
        """Drop the state of hosts that are no longer of their job."""
        kept = set(members)
        self._states = {member: state for member, state in self._states.items() if member in kept}


class Evaluator:
    """All rules over time, for the groups of each moment."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        rows = round(settings.rules.slope_window_s / settings.interval_s) + 1
        self._past: deque[Collection] = deque(maxlen=max(4, rows))
        self._latches: dict[str, Latch] = {}
        self._joined: dict[Member, float] = {}
        self._raised: dict[Member, float] = {}
        self._told: dict[str, str] = {}
        self.events: dict[tuple[str, str, str], RuleEvent] = {}
        self.alarms: deque[Alarm] = deque(maxlen=KEPT_EVENTS)

    def evaluate(
        self, collection: Collection, groups: Mapping[str, list[str]], now: float | None = None
    ) -> list[Alarm]:
        """Judge one more collection; return the alarms to raise. ``now`` stamps what is noted."""
        now = time.time() if now is None else now
        self._past.append(collection)
        members = [(job, host) for job, hosts in groups.items() for host in hosts if host in collection.hosts]
        self._follow(members, now)
        if not members:
            return []
        window = self._window(members)
        judgement = judge(window, self._settings.rules)
        known = np.isfinite(window.now)
        alarms = []
        for rule, verdict in judgement.verdicts.items():
            latch = self._latches.setdefault(rule, Latch(self._needed(rule)))
            for column in latch.update(members, verdict.fires, verdict.clears, known):
                self._note(rule, members[column], float(window.now[column]), now)
            if rule == self._settings.rule:
                columns = [
                    int(column)
                    for column in np.flatnonzero(verdict.fires & known)
                    if latch.is_active(members[column]) and self._is_due(members[column], now)
                ]
                for column in columns:
                    alarms.append(self._alarm(rule, members[column], column, window, judgement, now))
        self._tell(groups, members, judgement)
        self.alarms.extend(alarms)
        return alarms

    def _needed(self, rule: str) -> int:
        return max(1, round(persistence_s(rule, self._settings.rules) / self._settings.interval_s))

    def _follow(self, members: list[Member], now: float) -> None:
        """A host's past before it joined its job, while guests came to it, says nothing about it."""
        if members == list(self._joined):
            return
        self._joined = {member: self._joined.get(member, now) for member in members}
        self._raised = {member: t for member, t in self._raised.items() if member in self._joined}
        for latch in self._latches.values():
            latch.keep_only(members)

    def _window(self, members: list[Member]) -> Window:
        columns = np.array([self._past[-1].hosts[host] for _, host in members])
        times = np.array([collection.time for collection in self._past])
        values = np.full((len(times), len(members)), np.nan)
        for row, collection in enumerate(self._past):
            there = columns < len(collection.metric)  # hosts that were heard first only later
            values[row, there] = collection.metric[columns[there]]
        values[times[:, None] < np.array([self._joined[member] for member in members])] = np.nan
        numbers: dict[str, int] = {}
        groups = np.array([numbers.setdefault(job, len(numbers)) for job, _ in members], dtype=np.intp)
        return Window(times, values, groups)

    def _is_due(self, member: Member, now: float) -> bool:
        """An alarm is raised when the rule begins, and again while nothing has come of it."""
        return now - self._raised.get(member, -np.inf) >= self._settings.reraise_s

    def _note(self, rule: str, member: Member, value: float, now: float) -> None:
        job, host = member
        key = (rule, host, job)
        if key not in self.events:
            self.events[key] = RuleEvent(rule, host, job, now, self._settings.metric, value)
            log.info("rule %s holds for host %s of job %s: %.3f", rule, host, job, value)
            while len(self.events) > KEPT_EVENTS:
                del self.events[next(iter(self.events))]

    def _alarm(self, rule: str, member: Member, column: int, window: Window, judgement: Judgement, now: float) -> Alarm:
        job, host = member
        self._raised[member] = now
        latest = self._past[-1]
        columns = [latest.hosts[other] for _, other in self._joined]
        source = pressure_from(latest.unavailable[columns], latest.guests[columns], window.groups, column)
        figures = explain(window, judgement, rule, column, self._settings.rules)
        evidence = Evidence(
            **figures,
            pressure_from=source,
            settings={
                "rule": rule,
                "metric": self._settings.metric,
                **dataclasses.asdict(self._settings.rules),
            },
        )
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        alarm = Alarm(
            id=f"alarm-{stamp}-{secrets.token_hex(3)}",
            time=now,
            host=host,
            job=job,
            rule=rule,
            metric=self._settings.metric,
            value=evidence.value,
            evidence=evidence,
        )
        log.warning(
            "alarm %s: host %s of job %s: %s %.3f, group %.3f +- %.3f, z %.1f, failure in %s s, by the %s",
            alarm.id,
            host,
            job,
            self._settings.metric,
            evidence.value,
            evidence.centre,
            evidence.scale,
            evidence.z,
            "?" if evidence.predicted_failure_s is None else round(evidence.predicted_failure_s),
            source,
        )
        return alarm

    def _tell(self, groups: Mapping[str, list[str]], members: list[Member], judgement: Judgement) -> None:
        """Say once per job, and again when it changes, what keeps the rules silent."""
        now = {}
        for job, hosts in groups.items():
            columns = [column for column, member in enumerate(members) if member[0] == job]
            if len(hosts) < MIN_HOSTS:
                now[job] = f"has {len(hosts)} host(s); rule robust compares at least {MIN_HOSTS} and stays silent"
            elif columns and judgement.application[columns].all():
                now[job] = "most hosts are over the threshold or will be: the application at work, no alarm"
        for job, text in now.items():
            if self._told.get(job) != text:
                log.warning("job %s %s", job, text)
        self._told = now
