"""Replays recordings through the rules that also run live, and counts what they would have been worth.

An event is a host that reaches ``fail_at``; its detection is the first alarm before that. An alarm on a host that never
does is false, but for one inside a labelled leak that stays below: that is unrealised. Nothing is adjusted afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from failavoid.prediction.grouping import Floats, Ints
from failavoid.prediction.models import BINS, Distribution
from failavoid.prediction.scoring import Calibration, wilson
from failavoid.prediction.settings import RuleSettings
from failavoid.prediction.traces import STALE_S, Label, Trace, TraceError, read_ldms, shorten
from failavoid.prediction.watch import Learned, Roster, Watch

_COLUMNS = 6000  # judged at once


@dataclass(frozen=True)
class Options:
    """What every back-test is told; hosts are judged every ``interval_s``."""

    rule: str
    fail_at: float = 0.90
    settings: RuleSettings = field(default_factory=lambda: RuleSettings(horizon_s=180.0))
    interval_s: float = 1.0


@dataclass
class Run:
    """One host of one group: values at even steps, and when it is known to have leaked (s)."""

    values: Floats
    leaks: tuple[tuple[float, float], ...] = ()


@dataclass
class Outcome:
    """What became of one group's hosts."""

    events: int = 0
    leads_s: list[float] = field(default_factory=list)
    predictions: list[tuple[float, float, float]] = field(default_factory=list)  # predicted s, doubt, actual s
    false_alarms: int = 0
    unrealised_alarms: int = 0
    healthy_s: float = 0.0


@dataclass
class Result:
    """All groups of one size. ``lead_s`` has the keys median and p5; None: there is nothing to say it of."""

    group_size: int
    leaking: int | None
    events: int
    recall: float | None
    recall_ci95: list[float] | None
    lead_s: dict[str, float | None]
    false_alarms: int
    unrealised_alarms: int
    interval_coverage: float | None
    healthy_node_hours: float
    precision: float | None
    lead_times_s: list[float]


def replay(groups: Sequence[Sequence[Run]], options: Options, learned: Learned | None = None) -> list[Outcome]:
    """Let the rule judge all groups, side by side, from their first step to their last."""
    runs = [run for group in groups for run in group]
    of_group = [number for number, group in enumerate(groups) for _ in group]
    steps = max(len(run.values) for run in runs)
    values = np.full((steps, len(runs)), np.nan)
    for column, run in enumerate(runs):
        values[: len(run.values), column] = run.values
    with np.errstate(invalid="ignore"):
        failed = values >= options.fail_at
    fails = np.where(failed.any(axis=0), failed.argmax(axis=0), steps)
    interval_s = options.interval_s
    watch = Watch(options.settings, interval_s, (options.rule,))
    watch.follow(Roster([(f"g{group}", f"h{column}") for column, group in enumerate(of_group)]))
    outcomes = [Outcome() for _ in groups]
    for column, group in enumerate(of_group):
        outcomes[group].events += int(fails[column] < steps)
        if fails[column] == steps:
            outcomes[group].healthy_s += interval_s * int(np.isfinite(values[:, column]).sum())
    seen = np.zeros(len(runs), dtype=bool)
    for step in range(steps):
        tick = watch.tick(step * interval_s, values[step], learned=learned)
        for column in tick.begun[options.rule]:
            outcome, fails_at = outcomes[of_group[column]], int(fails[column])
            if fails_at == steps:
                if any(begin <= step * interval_s <= end for begin, end in runs[column].leaks):
                    outcome.unrealised_alarms += 1
                else:
                    outcome.false_alarms += 1
            elif step < fails_at and not seen[column]:
                seen[column] = True
                actual = (fails_at - step) * interval_s
                outcome.leads_s.append(actual)
                predicted = float(tick.view.trend.failure[column])
                if options.rule == "robust" and 0 < predicted < math.inf:
                    outcome.predictions.append((predicted, float(tick.view.trend.doubt[column]), actual))
    return outcomes


def summarise(group_size: int, leaking: int | None, outcomes: Sequence[Outcome], calibration: Calibration) -> Result:
    """Put groups together, in their order: an interval knows what came true in the groups before, no more."""
    covered: list[bool] = []
    for outcome in outcomes:
        held = [calibration.holds(*prediction) for prediction in outcome.predictions]
        calibration.learn([(*prediction, one) for prediction, one in zip(outcome.predictions, held, strict=True)])
        covered += held
    events = sum(outcome.events for outcome in outcomes)
    leads = [lead for outcome in outcomes for lead in outcome.leads_s]
    false_alarms = sum(outcome.false_alarms for outcome in outcomes)
    return Result(
        group_size=group_size,
        leaking=leaking,
        events=events,
        recall=len(leads) / events if events else None,
        recall_ci95=wilson(len(leads), events),
        lead_s={
            "median": float(np.median(leads)) if leads else None,
            "p5": float(np.percentile(leads, 5)) if leads else None,
        },
        false_alarms=false_alarms,
        unrealised_alarms=sum(outcome.unrealised_alarms for outcome in outcomes),
        interval_coverage=float(np.mean(covered)) if covered else None,
        healthy_node_hours=sum(outcome.healthy_s for outcome in outcomes) / 3600,
        precision=len(leads) / (len(leads) + false_alarms) if leads or false_alarms else None,
        lead_times_s=leads,
    )


def archive(traces: Sequence[Trace], options: Options, learned: Distribution | None = None) -> Result:
    """Replay a recording; all its hosts are one group. What was mended in it is added to its notes."""
    shorten(traces)
    first, last = min(trace.times[0] for trace in traces), max(trace.times[-1] for trace in traces)
    group = [Run(_even(trace, first, last, options.interval_s)) for trace in traces]

    def likely(values: Floats, _columns: Ints) -> Floats:
        assert learned is not None
        return learned.relative_probability(values)

    outcomes = replay([group], options, likely if learned else None)
    return summarise(len(group), None, outcomes, Calibration())


def at_the_pace_of(traces: Iterable[Trace], options: Options) -> Options:
    """The options with the recordings' own interval, if that is longer."""
    usual = float(round(np.median([trace.interval_s for trace in traces])))
    return replace(options, interval_s=max(options.interval_s, usual))


def _even(trace: Trace, first: float, last: float, interval_s: float) -> Floats:
    """A host's values at even steps."""
    return trace.at(np.arange(first, last + interval_s / 2, interval_s), max(STALE_S, 2.5 * interval_s))


@dataclass(frozen=True)
class LabelledRun:
    """A run that groups are composed of."""

    label: Label
    run: Run
    fails: bool


class Composer:
    """Composes groups of single-host runs of one application, aligned at their start.

    Of each group ``leaking`` hosts are drawn from the labelled runs that reach ``fail_at``, the others from the
    runs that do not. What is learned of the application comes from healthy runs that are not in the group.
    """

    def __init__(self, runs: Sequence[LabelledRun], options: Options, trials: int, seed: int) -> None:
        self._options = options
        self._trials = trials
        self._seed = seed
        self._applications: dict[str, tuple[list[LabelledRun], list[LabelledRun]]] = {}
        for run in runs:
            failing, others = self._applications.setdefault(run.label.application, ([], []))
            if run.fails and run.label.leaks:
                failing.append(run)
            elif not run.fails:
                others.append(run)
        self._counts = {id(run): _count(run.run.values) for _, others in self._applications.values() for run in others}
        self._calibration = Calibration()
        self.notes: list[str] = []

    def result(self, size: int, leaking: int) -> Result:
        """Groups of ``size`` with ``leaking`` among them. Raises TraceError if there are no runs for them."""
        usable = {name: pools for name, pools in self._applications.items() if pools[1] and (pools[0] or not leaking)}
        if not usable:
            raise TraceError(
                f"no labelled run reaches {self._options.fail_at:.0%} of the capacity while another stays below: "
                "is --capacity right for these runs?"
            )
        rng = np.random.default_rng([self._seed, size, leaking])
        names = list(usable)
        weights = np.array([len(usable[name][0 if leaking else 1]) for name in names], dtype=float)
        outcomes: list[Outcome] = []
        at_once = max(1, _COLUMNS // size)
        for begin in range(0, self._trials, at_once):
            groups, tables = [], []
            for _ in range(min(at_once, self._trials - begin)):
                failing, others = usable[names[rng.choice(len(names), p=weights / weights.sum())]]
                drawn = [*self._draw(rng, failing, leaking), *self._draw(rng, others, size - leaking)]
                groups.append([one.run for one in drawn])
                tables.append(self._learned(others, drawn))
            table = np.array(tables)
            of_column = np.repeat(np.arange(len(groups)), size)

            def likely(values: Floats, columns: Ints, table: Floats = table, of_column: Ints = of_column) -> Floats:
                found: Floats = table[of_column[columns], np.clip((values * BINS).astype(np.intp), 0, BINS)]
                return found

            outcomes += replay(groups, self._options, likely)
        return summarise(size, leaking, outcomes, self._calibration)

    def _draw(self, rng: np.random.Generator, pool: list[LabelledRun], count: int) -> list[LabelledRun]:
        again = count > len(pool)
        if again:
            note = f"only {len(pool)} runs to draw {count} hosts from: some are in a group twice"
            if note not in self.notes:
                self.notes.append(note)
        return [pool[place] for place in rng.choice(len(pool), count, replace=again)]

    def _learned(self, others: list[LabelledRun], drawn: list[LabelledRun]) -> Floats:
        """Relative probability in each bin, and beyond the last."""
        inside = {id(run) for run in drawn}
        counts = [self._counts[id(run)] for run in others if id(run) not in inside and not run.label.leaks]
        learned = Distribution(np.sum(counts, axis=0) if counts else np.zeros(BINS))
        beyond = 0.0 if counts else 1.0
        return np.append(learned.relative_probability((np.arange(BINS) + 0.5) / BINS), beyond)


def _count(values: Floats) -> Floats:
    distribution = Distribution.empty()
    distribution.add(values)
    return distribution.counts


def labelled_runs(labels: Sequence[Label], traces: dict[str, Trace], options: Options) -> list[LabelledRun]:
    """The runs whose file was read, on even steps from their first sample on."""
    runs = []
    for label in labels:
        trace = traces.get(label.file)
        if trace is not None:
            begin, moved = trace.times[0], shorten([trace])
            leaks = tuple((moved(begin + since) - begin, moved(begin + until) - begin) for since, until in label.leaks)
            values = _even(trace, trace.times[0], trace.times[-1], options.interval_s)
            with np.errstate(invalid="ignore"):
                fails = bool((values >= options.fail_at).any())
            runs.append(LabelledRun(label, Run(values, leaks), fails))
    return runs


def report(options: Options, metric: str, results: Sequence[Result], notes: Sequence[str]) -> dict[str, object]:
    """The document that `failavoid backtest --json` prints."""
    return {
        "rule": options.rule,
        "metric": metric,
        "horizon_s": options.settings.horizon_s,
        "fail_at": options.fail_at,
        "interval_s": options.interval_s,
        "settings": asdict(options.settings),
        "results": [asdict(result) for result in results],
        "notes": list(notes),
    }


def read_runs(
    folder: Path, labels: Sequence[Label], capacity_kb: float, metric: str
) -> tuple[dict[str, Trace], list[str]]:
    """Each labelled file of a folder as one trace, and what is to be said of them. Raises TraceError."""
    traces, notes = {}, []
    for label in labels:
        try:
            found = read_ldms([folder / label.file], capacity_kb, metric)
        except TraceError as error:
            notes.append(f"left out: {error}")
            continue
        if len(found) > 1:
            notes.append(f"left out: {label.file} holds {len(found)} producers; a run is one host's")
            continue
        traces[label.file] = found[0]
    if not traces:
        raise TraceError(
            f"none of the labelled files in {folder} can be used: {'; '.join(notes) or 'no run is labelled'}"
        )
    return traces, notes
