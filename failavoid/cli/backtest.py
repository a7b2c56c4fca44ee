"""`failavoid backtest` and `failavoid generate`: what the rules would have been worth on recordings."""

# As in main.py, modules are loaded by the command that needs them.

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from failavoid.cli.settings import FAILED, WRONG_WORDS, CliError
from failavoid.cli.tables import show

if TYPE_CHECKING:
    from failavoid.prediction.backtest import Options
    from failavoid.prediction.models import Distribution

_UNITS = {"": 1} | {
    f"{letter}{rest}": 1 << 10 * power for power, letter in enumerate("KMGT") for rest in ("", "B", "IB")
}  # kB
Rule = Annotated[str, typer.Option(help="robust, paper, paper-learned or threshold.")]
Capacity = Annotated[str, typer.Option(help="What counts as all of a host's memory, e.g. 24GiB; kB without a unit.")]
Metric = Annotated[str, typer.Option(help="unavailable or active.")]
FailAt = Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the capacity at which a host has failed.")]
Horizon = Annotated[float, typer.Option(min=1.0, help="Seconds; a failure predicted within them is danger.")]
Json = Annotated[bool, typer.Option("--json", help="For programs: one document.")]


def archive(
    files: Annotated[list[Path], typer.Argument(help="LDMS CSV files, or the monitor's own recordings (.npz).")],
    rule: Rule = "robust",
    capacity: Capacity = "",
    metric: Metric = "unavailable",
    fail_at: FailAt = 0.90,
    horizon: Horizon = 180.0,
    learned: Annotated[
        list[Path], typer.Option(help="Recording of an earlier run, to learn from; may be given often.")
    ] = [],  # noqa: B006
    job: Annotated[str, typer.Option(help="Of the monitor's own recordings, the job to replay.")] = "",
    as_json: Json = False,
) -> None:
    """Replay recordings; all hosts in them are one group."""
    from failavoid.prediction import backtest
    from failavoid.prediction.traces import TraceError

    options = _options(rule, fail_at, horizon)
    try:
        traces = _traces(files, capacity, metric, job)
        notes: list[str] = []
        distribution = _learn(learned, capacity, metric) if learned else None
        if distribution is None and rule in ("paper-learned", "robust"):
            notes.append("nothing was learned of the application: give earlier runs with --learned")
        options = backtest.at_the_pace_of(traces, options)
        result = backtest.archive(traces, options, distribution)
        notes = [*(note for trace in traces for note in trace.notes), *notes]
    except TraceError as error:
        raise CliError(str(error), FAILED) from error
    _print(backtest.report(options, metric, [result], _once(notes)), as_json)


def compose(
    folder: Annotated[Path, typer.Argument(help="Folder of the runs, each of one host.")],
    labels: Annotated[Path, typer.Option(help="file,application,leak_intervals_s; in the folder unless it is a path.")],
    group_size: Annotated[list[int], typer.Option(min=2, help="Hosts in a group; may be given often.")],
    leaking: Annotated[list[int], typer.Option(min=0, help="How many of them leak; may be given often.")],
    trials: Annotated[int, typer.Option(min=1, help="Groups of each size.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed composes the same groups.")] = 0,
    rule: Rule = "robust",
    capacity: Capacity = "",
    metric: Metric = "unavailable",
    fail_at: FailAt = 0.90,
    horizon: Horizon = 180.0,
    as_json: Json = False,
) -> None:
    """Compose groups of single-host runs, aligned at their start, and replay them."""
    from failavoid.prediction import backtest
    from failavoid.prediction.traces import TraceError, read_labels

    options = _options(rule, fail_at, horizon)
    try:
        known = read_labels(labels if labels.exists() else folder / labels)
        traces, notes = backtest.read_runs(folder, known, _kilobytes(capacity), _known_metric(metric))
        options = backtest.at_the_pace_of(traces.values(), options)
        runs = backtest.labelled_runs(known, traces, options)
        notes += [note for trace in traces.values() for note in trace.notes]
    except TraceError as error:
        raise CliError(str(error), FAILED) from error
    cells = [(size, leaks) for size in group_size for leaks in leaking if leaks < size]
    if not cells:
        raise CliError(
            "no group is larger than the number of its leaking hosts: see --group-size and --leaking", WRONG_WORDS
        )
    composer = backtest.Composer(runs, options, trials, seed)
    try:
        results = [composer.result(size, leaks) for size, leaks in cells]
    except TraceError as error:
        raise CliError(str(error), FAILED) from error
    left_out = [f"{size} hosts, {leaks} leaking" for size in group_size for leaks in leaking if leaks >= size]
    if left_out:
        notes.append(f"left out, because some hosts must be healthy: {'; '.join(left_out)}")
    document = backtest.report(options, metric, results, _once([*notes, *composer.notes]))
    document.update(trials=trials, seed=seed)
    _print(document, as_json)


def generate(
    folder: Annotated[Path, typer.Argument(help="Where to write; it is made.")],
    healthy: Annotated[int, typer.Option(min=1, help="Runs without a leak.")] = 30,
    leaking: Annotated[int, typer.Option(min=0, help="Runs with one.")] = 12,
    seconds: Annotated[int, typer.Option(min=120, help="Length of each run.")] = 3600,
    slowest: Annotated[float, typer.Option(help="Slowest leak, share of memory a second.")] = 4e-4,
    fastest: Annotated[float, typer.Option(help="Fastest leak.")] = 4e-2,
    shape: Annotated[str, typer.Option(help="linear, step, accelerating, sawtooth or mixed.")] = "mixed",
    kind: Annotated[str, typer.Option(help="The application: steady, phases, sawtooth or growing.")] = "steady",
    synchronous: Annotated[bool, typer.Option(help="Whether hosts go through its phases together.")] = True,
    missing: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of samples that are missing.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same traces.")] = 0,
) -> None:
    """Make traces: LDMS CSV files and labels.csv, for `failavoid backtest compose`."""
    from failavoid.prediction.generate import KINDS, SHAPES, Recipe, write

    for option, value, known in (("--shape", shape, (*SHAPES, "mixed")), ("--kind", kind, KINDS)):
        if value not in known:
            raise CliError(f"{option} {value} is unknown; use one of {', '.join(known)}", WRONG_WORDS)
    if not 0 < slowest <= fastest:
        raise CliError(f"--slowest {slowest:g} must be above 0 and not above --fastest {fastest:g}", WRONG_WORDS)
    recipe = Recipe(healthy, leaking, seconds, slowest, fastest, shape, kind, synchronous, missing, seed)
    try:
        write(folder, recipe)
    except OSError as error:
        raise CliError(f"{folder}: cannot be written: {error.strerror}", FAILED) from error
    print(f"{healthy + leaking} runs of {seconds} s in {folder}, of hosts with 64 GiB")


def _options(rule: str, fail_at: float, horizon: float) -> Options:
    from failavoid.prediction.backtest import Options
    from failavoid.prediction.settings import RULES, RuleSettings

    if rule not in RULES:
        raise CliError(f"rule {rule!r} is unknown; use one of {', '.join(RULES)}", WRONG_WORDS)
    try:
        settings = RuleSettings(horizon_s=horizon)
        # the rules foresee the failure that is judged, and see danger as far below it as they usually do
        danger = settings.threshold if settings.threshold < fail_at else settings.threshold / settings.failure * fail_at
        return Options(rule, fail_at, settings.changed_by({"failure": fail_at, "threshold": danger}))
    except ValueError as error:
        raise CliError(str(error), WRONG_WORDS) from error


def _known_metric(metric: str) -> str:
    from failavoid.prediction.traces import METRICS

    if metric not in METRICS:
        raise CliError(f"metric {metric!r} is unknown; use one of {', '.join(METRICS)}", WRONG_WORDS)
    return metric


def _kilobytes(size: str) -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", size)
    if not found or found[2].upper() not in _UNITS or float(found[1]) <= 0:
        raise CliError(
            f"--capacity {size or 'is missing'}: give what counts as all of a host's memory, e.g. 24GiB", WRONG_WORDS
        )
    return float(found[1]) * _UNITS[found[2].upper()]


def _traces(files: list[Path], capacity: str, metric: str, job: str) -> list[Any]:
    from failavoid.prediction.archives import read_job
    from failavoid.prediction.traces import read_ldms

    own = [path for path in files if path.suffix == ".npz"]
    if own and len(own) < len(files):
        raise CliError("the monitor's recordings and LDMS files cannot be mixed", WRONG_WORDS)
    if own:
        return read_job(own, job or None, _known_metric(metric))
    return read_ldms(files, _kilobytes(capacity), _known_metric(metric))


def _learn(files: list[Path], capacity: str, metric: str) -> Distribution:
    from failavoid.prediction.models import Distribution

    distribution = Distribution.empty()
    for trace in _traces(files, capacity, metric, ""):
        distribution.add(trace.values)
    return distribution


def _once(notes: list[str]) -> list[str]:
    return list(dict.fromkeys(notes))


def _print(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(document))
        return
    rows: list[list[object]] = [
        [
            one["group_size"],
            one["leaking"],
            one["events"],
            _figure(one["recall"], 3),
            _figure(one["lead_s"]["median"], 0),
            _figure(one["lead_s"]["p5"], 0),
            one["false_alarms"],
            one["unrealised_alarms"],
            _figure(one["interval_coverage"], 2),
            f"{one['healthy_node_hours']:.0f}",
            _figure(one["precision"], 3),
        ]
        for one in document["results"]
    ]
    title = (
        f"Rule {document['rule']}, metric {document['metric']}, failure at {document['fail_at']:.0%}, "
        f"horizon {document['horizon_s']:g} s"
    )
    columns = [
        "hosts",
        "leaking",
        "events",
        "recall",
        "lead s",
        "5 %",
        "false",
        "unrealised",
        "in interval",
        "healthy h",
        "precision",
    ]
    show(title, columns, rows)
    for note in document["notes"]:
        print(f"Note: {note}")


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
