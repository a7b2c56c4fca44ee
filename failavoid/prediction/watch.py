"""One failure mode watched over time: collections in, what the rules begin and end to say out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from failavoid.prediction.grouping import Bools, Floats, Grouping, Ints
from failavoid.prediction.history import History
from failavoid.prediction.models import Normal, robust
from failavoid.prediction.rules import (
    Verdict,
    View,
    application_at_work,
    judge,
    persistence_s,
)
from failavoid.prediction.settings import RULES, RuleSettings
from failavoid.prediction.trend import STRAIGHT, Line, Trend, find_trend, fit, slopes

Member = tuple[str, str]  # group, host
Learned = Callable[[Floats, Ints], Floats]  # (values, columns) -> relative probability of each
_MEDIUM = 12  # means in the medium window: a fifth of the long one


@dataclass(frozen=True)
class Tick:
    """What one collection brought: the columns for which each rule begins, ends and holds."""

    view: View
    verdicts: dict[str, Verdict]
    begun: dict[str, Ints]
    ended: dict[str, Ints]
    active: dict[str, Bools]


class Latch:
    """One rule over time, for all columns.

    It begins when it has held for ``needed`` collections, or at once where it is urgent, and can begin again only
    after it has cleared for as many. A host without a sample keeps its state: one that is about to fail may fall silent
    first.
    """

    def __init__(self, needed: int, columns: int) -> None:
        self._needed = needed
        self._held = np.zeros(columns, dtype=np.int32)
        self._cleared = np.zeros(columns, dtype=np.int32)
        self.active: Bools = np.zeros(columns, dtype=bool)

    def update(self, verdict: Verdict, known: Bools) -> tuple[Ints, Ints]:
        """Take one collection's verdict; return the columns for which the rule begins and for which it ends."""
        fires, quiet = verdict.fires & known, ~verdict.fires & known
        self._held = np.where(fires, self._held + 1, np.where(quiet, 0, self._held))
        self._cleared = np.where(quiet & verdict.clears, self._cleared + 1, np.where(known, 0, self._cleared))
        begins = fires & ~self.active & ((self._held >= self._needed) | verdict.urgent)
        ends = self.active & (self._cleared >= self._needed)
        self.active = (self.active | begins) & ~ends
        return np.flatnonzero(begins), np.flatnonzero(ends)

    def rearrange(self, index: Ints) -> None:
        """Give each column the state of column ``index``; a fresh one where that is -1."""
        kept = index >= 0
        for name in ("_held", "_cleared", "active"):
            state = getattr(self, name)
            moved = np.zeros(len(index), dtype=state.dtype)
            moved[kept] = state[index[kept]]
            setattr(self, name, moved)


class Roster:
    """Who is in which group, a column each. Several watches may share one; it is not to be changed."""

    def __init__(self, members: Sequence[Member] = ()) -> None:
        self.members = list(members)
        numbers: dict[str, int] = {}
        self.grouping = Grouping(
            np.array([numbers.setdefault(group, len(numbers)) for group, _ in self.members], dtype=np.intp)
        )
        self._hosts: Mapping[str, int] | None = None
        self._places: Ints = np.zeros(0, dtype=np.intp)

    def columns_in(self, before: Roster) -> Ints:
        """Each member's column in another roster, -1 if it has none there."""
        columns = {member: column for column, member in enumerate(before.members)}
        return np.array([columns.get(member, -1) for member in self.members], dtype=np.intp)

    def places(self, hosts: Mapping[str, int]) -> Ints:
        """Each member's place among ``hosts``, -1 if it has none; worked out once for the same object."""
        if hosts is not self._hosts:
            self._hosts = hosts
            self._places = np.array([hosts.get(host, -1) for _, host in self.members], dtype=np.intp)
        return self._places


class Watch:
    """All rules over the groups of one failure mode, whose membership may change at any time."""

    def __init__(self, settings: RuleSettings, interval_s: float, rules: tuple[str, ...] = RULES) -> None:
        self.settings = settings
        self.rules = rules
        self.roster = Roster()
        self._interval_s = interval_s
        self._history = History(interval_s, settings.slope_window_s, settings.long_window_s)
        self._centres = History(interval_s, settings.slope_window_s, settings.long_window_s)
        self._fade = 0.5 ** (interval_s / settings.scale_memory_s)
        self._scale: Floats = np.zeros(0)
        self._joined: Floats = np.zeros(0)
        self._latches = {rule: Latch(max(1, round(persistence_s(rule, settings) / interval_s)), 0) for rule in rules}

    def follow(self, roster: Roster, index: Ints | None = None) -> None:
        """The members from now on. A host's past before it joined its group says nothing about it.

        ``index`` is ``roster.columns_in`` the one followed so far, if that is known already.
        """
        if index is None:
            index = roster.columns_in(self.roster)
        self.roster = roster
        kept = index >= 0
        joined, scale = np.full(len(index), np.nan), np.zeros(len(index))
        joined[kept], scale[kept] = self._joined[index[kept]], self._scale[index[kept]]
        self._joined, self._scale = joined, scale
        self._history.rearrange(index)
        self._centres.rearrange(index)
        for latch in self._latches.values():
            latch.rearrange(index)

    def tick(self, time: float, now: Floats, horizon_s: float | None = None, learned: Learned | None = None) -> Tick:
        """Judge one more collection: each member's value (NaN: none), made at ``time`` (s).

        ``horizon_s`` is the settings' if it is not given. ``learned`` gives relative probabilities.
        """
        horizon_s = self.settings.horizon_s if horizon_s is None else horizon_s
        with np.errstate(divide="ignore", invalid="ignore"):
            view = self._look(time, now, horizon_s, learned)
        verdicts = judge(view, self.settings, self.rules)
        known = np.isfinite(now)
        begun, ended, active = {}, {}, {}
        for rule, verdict in verdicts.items():
            latch = self._latches[rule]
            begun[rule], ended[rule] = latch.update(verdict, known)
            active[rule] = latch.active
        return Tick(view, verdicts, begun, ended, active)

    def _look(self, time: float, now: Floats, horizon_s: float, learned: Learned | None) -> View:
        settings, grouping = self.settings, self.roster.grouping
        known = np.isfinite(now)
        self._joined = np.where(np.isnan(self._joined) & known, time, self._joined)
        normal = robust(now, grouping)
        self._history.append(time, now)
        self._centres.append(time, normal.centre)
        # hosts that were apart a moment ago are alike by chance: that makes no outlier of the next
        self._scale = np.fmax(np.nan_to_num(normal.scale), self._scale * self._fade)
        normal = _scaled(now, normal, np.maximum(self._scale, settings.scale_floor))
        likely = np.ones(len(now))
        high = np.flatnonzero(known & (now >= settings.trend_floor))
        if learned and len(high):
            likely[high] = learned(now[high], high)
        strange = (normal.z >= 0.4 * settings.z) | (likely < settings.relative_probability)
        suspects = high[strange[high]]
        peers_slope, application = np.zeros(len(now)), np.zeros(len(now), dtype=bool)
        asked = np.union1d(suspects, np.flatnonzero(now >= settings.threshold))
        if len(asked):
            growth, peers_slope = self._growth()
            # a host that began earlier is ahead of its group for as long as the group grows
            normal = _scaled(now, normal, np.maximum(normal.scale, settings.skew_s * np.abs(peers_slope)))
            mine = np.isin(grouping.ids, grouping.ids[asked])
            application[mine] = application_at_work(now[mine], growth[mine], grouping.ids[mine], settings)
        trend, leaking, peak = self._trends(suspects, now)
        return View(
            now=now,
            grouping=grouping,
            peers=np.maximum(0, grouping.spread(grouping.count(known)).astype(np.intp) - known),
            normal=normal,
            trend=trend,
            leaking=leaking,
            peers_slope=np.fmax(peers_slope, trend.peers_slope),
            application=application,
            relative_probability=likely,
            age=time - self._joined,
            peak=peak,
            ahead=self._ahead(
                high[(likely[high] < settings.relative_probability) & (now[high] < settings.threshold)], now
            ),
            horizon_s=horizon_s,
        )

    def _growth(self) -> tuple[Floats, Floats]:
        """Each column's growth (1/s), over the short window or its later half; its group's median growth."""
        times, values = self._history.short(None)
        least = max(3, (len(times) + 1) // 2)
        if len(times) < least:
            columns = len(self.roster.members)
            return np.full(columns, np.nan), np.zeros(columns)
        whole = slopes(times, values, least)
        recent = slopes(times[-least:], values[-least:], least)
        grouping = self.roster.grouping
        return np.fmax(whole, recent), np.nan_to_num(grouping.spread(grouping.median(whole)))

    def _trends(self, suspects: Ints, now: Floats) -> tuple[Trend, Bools, Floats]:
        """Trend, slow leak and highest earlier value of the columns that may be in question; nothing for all others."""
        size = len(now)
        trend = Trend.nothing(size)
        leaking, peak = np.zeros(size, dtype=bool), np.full(size, -np.inf)
        if len(suspects):
            own, centres = (
                [history.short(suspects), *(history.long(suspects, last) for last in (_MEDIUM, None))]
                for history in (self._history, self._centres)
            )
            lines, excess = [], []
            for (times, values), (_, centre) in zip(own, centres, strict=True):
                least, over = (len(times) + 1) // 2, values - centre
                lines.append(fit(times, values, least))
                excess.append(fit(times, over, least))
            leaking[suspects] = self._is_leaking(times, over, excess[-1])
            times, values = own[0]
            high, settings = now[suspects], self.settings
            danger = high >= settings.threshold
            found = find_trend(lines, excess, high, values, times, settings.failure, leaking[suspects], danger)
            for name in found.__dataclass_fields__:
                getattr(trend, name)[suspects] = getattr(found, name)
            peak[suspects] = self._history.peak(suspects)
        return trend, leaking, peak

    def _ahead(self, asked: Ints, now: Floats) -> Bools:
        """Which of these columns are far above the highest that their peers have been at in the long window.

        Hosts that are not in step with each other tell little by where they are now, but much by how far they go.
        """
        ahead = np.zeros(len(now), dtype=bool)
        if len(asked):
            grouping = self.roster.grouping
            mine = np.flatnonzero(np.isin(grouping.ids, grouping.ids[asked]))
            highest = np.full(len(now), np.nan)
            highest[mine] = self._history.peak(mine)
            highest[np.isinf(highest)] = np.nan
            past = robust(highest, grouping)
            scale = np.maximum(past.scale, self.settings.scale_floor)
            ahead[asked] = (now >= past.centre + self.settings.z * scale)[asked]
        return ahead

    def _is_leaking(self, times: Floats, over: Floats, whole: Line) -> Bools:
        """Whether a host has been growing away from its group's centre for all of the long window, and still does.

        ``over`` is what it was over that centre (rows at ``times``), ``whole`` the line through that.
        """
        latest = fit(times[-_MEDIUM:], over[-_MEDIUM:], 4)
        rise = whole.slope * (times[-1] - times[0])
        long_enough = times[-1] - times[0] >= self.settings.long_window_s / 2
        away = (rise > self.settings.scale_floor) & (latest.slope > 0.3 * whole.slope)
        leaks: Bools = whole.rises(STRAIGHT) & away & long_enough
        return leaks


def _scaled(now: Floats, normal: Normal, scale: Floats) -> Normal:
    return Normal(normal.centre, scale, (now - normal.centre) / scale)
