"""Which watch looks at which hosts: memory by each application's settings, every other failure mode by its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from failavoid.monitor.groups import Group
from failavoid.monitor.settings import Settings
from failavoid.monitor.store import Collection
from failavoid.prediction.grouping import Floats, Ints
from failavoid.prediction.modes import MEMORY, Mode
from failavoid.prediction.settings import RULES, RuleSettings
from failavoid.prediction.watch import Roster, Tick, Watch


class Panel:
    """One watch with its groups; ``mode`` None is memory."""

    def __init__(self, mode: Mode | None, watch: Watch) -> None:
        self.mode = mode
        self.watch = watch
        self.groups: list[Group] = []
        self._applications: list[str] = []
        self._application: Ints = np.zeros(0, dtype=np.intp)  # of each column, among these

    @property
    def name(self) -> str:
        """Of the failure mode."""
        return self.mode.name if self.mode else MEMORY

    @property
    def settings(self) -> RuleSettings:
        """Of its rules."""
        return self.watch.settings

    def member(self, column: int | np.intp) -> tuple[str, str]:
        """(job, host) of a column."""
        group, host = self.watch.roster.members[column]
        return group.partition("/")[0], host

    def follow(self, groups: list[Group], roster: Roster, index: Ints | None = None) -> None:
        """Look at these groups from now on, by their roster; ``index`` as in `Watch.follow`."""
        self.groups = groups
        self.watch.follow(roster, index)
        self._applications = sorted({group.application for group in groups})
        numbers = {name: number for number, name in enumerate(self._applications)}
        of_groups: Ints = np.array([numbers[group.application] for group in groups], dtype=np.intp)
        sizes: Ints = np.array([len(group.hosts) for group in groups], dtype=np.intp)
        self._application = np.repeat(of_groups, sizes)

    def columns(self, collection: Collection) -> Ints:
        """Each member's column in the collection, -1 for hosts that were never heard of."""
        return self.watch.roster.places(collection.hosts)

    def shares(self, collection: Collection, columns: Ints, metric: str) -> Floats:
        """Each member's value on the rules' scale."""
        if self.mode:
            row = self.mode.share(collection.metric(self.mode.metric), self.settings.failure)
        else:
            row = collection.shares(metric)
        return pick(row, columns)

    def tick(
        self,
        collection: Collection,
        metric: str,
        horizon_s: float,
        learned: Callable[[Sequence[str], Ints, Floats], Floats],
    ) -> Tick | None:
        """Judge one more collection; None if there is nobody."""
        if not self.watch.roster.members:
            return None
        values = self.shares(collection, self.columns(collection), metric)
        if self.mode:
            return self.watch.tick(collection.time, values, horizon_s)
        return self.watch.tick(
            collection.time,
            values,
            horizon_s,
            lambda high, columns: learned(self._applications, self._application[columns], high),
        )


class Panels:
    """All watches; those for new settings are made when the first application that has them runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._memory: dict[RuleSettings, Panel] = {}
        self._modes = [
            Panel(mode, Watch(mode.settings(settings.rules), settings.interval_s, ("robust", "threshold")))
            for mode in settings.modes
        ]
        self._groups: Sequence[Group] = ()

    def arrange(self, groups: Sequence[Group]) -> list[Panel]:
        """All panels, with these groups."""
        if groups is not self._groups:
            self._groups = groups
            by_settings: dict[RuleSettings, list[Group]] = {rules: [] for rules in self._memory}
            for group in groups:
                by_settings.setdefault(self._settings.rules_of(group.application), []).append(group)
            for rules, mine in by_settings.items():
                if rules not in self._memory:
                    self._memory[rules] = Panel(None, Watch(rules, self._settings.interval_s, RULES))
                self._memory[rules].follow(mine, _roster(mine))
            if self._modes:  # all of them look at all groups
                roster = _roster(groups)
                index = roster.columns_in(self._modes[0].watch.roster)
                for panel in self._modes:
                    panel.follow(list(groups), roster, index)
        return [*self._memory.values(), *self._modes]


def _roster(groups: Sequence[Group]) -> Roster:
    return Roster([(group.name, host) for group in groups for host in group.hosts])


def pick(row: Floats, columns: Ints) -> Floats:
    """The values at these columns; NaN at -1."""
    if not len(row):
        return np.full(len(columns), np.nan)
    return np.where(columns >= 0, row[columns], np.nan)
