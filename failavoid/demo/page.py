"""The report as one HTML file that needs no network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from failavoid.demo import charts, rack, shades
from failavoid.demo.record import Record
from failavoid.demo.report import DANGER, FAILURE, accepted, alarm_of, evacuation_of, step_of
from failavoid.demo.runs import Run
from failavoid.shared.messages import Alarm, Evacuation
from failavoid.shared.words import plural

WIDE, NARROW = 1120, 400
TAIL = 12  # lines of a program's output that are shown
POINTS = 600  # of each line that the page's script knows
RUNS = {
    "control": "Avoidance off",
    "protected": "Avoidance on",
    "memory_hog_application": "The application fills memory",
}


@dataclass
class Card:
    """One run's outcome in words. ``good``: the job lived; ``expected``: the run shows what it is to show."""

    title: str
    outcome: str
    good: bool
    expected: bool
    figure: str = ""
    unit: str = ""
    number: int = 0
    facts: list[str] = field(default_factory=list)


@dataclass
class Picture:
    """A chart in two widths, of which a style sheet shows one."""

    title: str
    remark: str
    wide: Markup
    narrow: Markup


def render(record: Record, report: dict[str, Any]) -> str:
    """Return the page for a record and the report made from it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["j2", "html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plural"] = plural
    runs = [record.runs[name] for name in RUNS if name in record.runs]
    protected = record.runs.get("protected")
    evacuation = evacuation_of(protected) if protected else None
    alarm = alarm_of(protected) if protected else None
    limits = limits_of(protected)
    panels = rack.panels(protected) if protected else []
    cards = cards_of(report)
    seconds = max((span.last - span.zero for span in map(charts.span_of, runs)), default=10.0)
    return environment.get_template("report.html.j2").render(
        record=record,
        report=report,
        headline=headline(cards),
        cards=cards,
        racks=[
            (panel, _when(protected, panel.moment), Markup(rack.draw(panel, record.hosts, rack.touched(panels))))
            for panel in panels
        ],
        some_small=len(record.hosts) > rack.MANY,
        states=join([panel.title for panel in panels]),
        not_run=join([f"run {n} ({RUNS[name].lower()})" for n, name in enumerate(RUNS, 1) if name not in cards]),
        charts=[
            _picture(RUNS[run.name], cards[run.name].outcome.lower(), charts.memory_chart, run, seconds, limits)
            for run in runs
        ],
        series=Markup(_series(runs)),
        timeline=_picture("timeline", "", charts.timeline_chart, evacuation)
        if evacuation and accepted(evacuation) is not None
        else None,
        peers=Markup(charts.peers_chart(protected, alarm, 520)) if protected and alarm else "",
        words=[(RUNS[run.name], run, run.output[-TAIL:]) for run in runs],
        legend=[shades.shade(number / 20) for number in range(21)],
        light=Markup(shades.css(dark=False)),
        dark=Markup(shades.css(dark=True)),
        limits=limits,
        beside=prepared_beside(evacuation),
        ceiling=paper_ceiling(alarm) if alarm else "",
    )


def limits_of(run: Run | None) -> tuple[float, float]:
    """The monitor's thresholds of danger and failure, as its alarm tells them."""
    alarm = alarm_of(run) if run else None
    settings = alarm.evidence.settings if alarm else {}
    danger, failure = settings.get("threshold", DANGER), settings.get("failure", FAILURE)
    return float(danger), float(failure)


def join(words: list[str]) -> str:
    """Words as in a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def prepared_beside(evacuation: Evacuation | None) -> bool:
    """Whether the destination was ready before the ranks had stopped, so that none waited for it."""
    prepared, gathered = step_of(evacuation, "prepare_destination"), step_of(evacuation, "gathered")
    return bool(prepared and gathered and prepared.done and gathered.done and prepared.done <= gathered.done)


def paper_ceiling(alarm: Alarm) -> str:
    """Why the paper's rule can't hold in a small job, where that is so: a host's own value is in mean and deviation."""
    hosts, sigma = alarm.evidence.peers + 1, float(alarm.evidence.settings.get("sigma", 2.0))
    highest = (hosts - 1) / math.sqrt(hosts)
    if highest > sigma:
        return ""
    return (
        f"Among {hosts} hosts none can be more than {highest:.2f} standard deviations above their mean, for its own "
        f"value is part of both. Rule paper asks for {sigma:g}, so here it stays silent."
    )


def headline(cards: dict[str, Card]) -> str:
    """The page's title, which claims no more than what was seen."""
    control, protected = cards.get("control"), cards.get("protected")
    if protected is None:
        return "The demonstration, without its protected run"
    if not protected.good:
        return "A host failed, and the job with it"
    if control is None or control.good:
        return "The job was moved and completed" if protected.expected else "The job completed without a move"
    return "A host failed. The job did not." if protected.expected else "The job completed, but not as it should"


def cards_of(report: dict[str, Any]) -> dict[str, Card]:
    """The outcomes of the runs there are."""
    makers: dict[str, Callable[[dict[str, Any]], Card]] = {
        "control": _control,
        "protected": _protected,
        "memory_hog_application": _hog,
    }
    cards = {name: make(report[name]) for name, make in makers.items() if report[name] is not None}
    for number, name in enumerate(makers, start=1):
        if name in cards:
            cards[name].number = number
    return cards


def _control(run: dict[str, Any]) -> Card:
    died = not run["job_completed"]
    card = Card(RUNS["control"], "The job died" if died else "The job completed", not died, run["cause"] == "oom")
    card.figure, card.unit = str(run["guests_lost"]), "guest lost" if run["guests_lost"] == 1 else "guests lost"
    where = run["failing_host"] or "a host"
    if run["cause"] == "oom":
        taken = "a guest" if run["guests_lost"] == 1 else "guests"
        card.facts.append(f"The kernel's OOM killer took {taken} on {where}.")
    elif died:
        card.facts.append("No OOM killer was seen to take its guests: the cause is another.")
    else:
        card.facts.append(f"It outlived the failure on {where}: this run proves nothing about avoidance.")
    if (seconds := run["from_75_percent_to_oom_s"]) is not None:
        card.facts.append(f"{where} had been over {DANGER:.0%} of its memory for {seconds:.0f} s.")
    return card


def _protected(run: dict[str, Any]) -> Card:
    completed, correct = run["job_completed"], run["result_correct"]
    timeline = run["timeline_s"] or {}
    moved = [m for m in run["migrations"] if m["state"] == "moved"]
    card = Card(
        RUNS["protected"],
        "The job completed"
        if completed and correct
        else "The job gave a wrong result"
        if completed
        else "The job died",
        bool(completed and correct),
        bool(completed and correct and moved and run["failed_host_pool"] == "defunct"),
    )
    if timeline.get("released") is not None:
        card.figure, card.unit = f"{timeline['released']:.1f} s", "from the alarm until all ranks ran again"
    elif run["alarm"] is None:
        card.figure, card.unit = "0", "alarms"
    else:
        card.figure, card.unit = str(len(moved)), "guests moved"
    if moved:
        card.facts.append(f"{plural(len(moved), 'guest')} moved from {run['failed_host']} to {run['spare']}.")
    elif run["state"]:
        card.facts.append(f"The evacuation of {run['failed_host']} ended as {run['state']}.")
    else:
        card.facts.append("No evacuation took place.")
    if run["error"] and run["state"]:
        card.facts.append(f"The controller says: {run['error']}.")
    if run["guests_lost"]:
        card.facts.append(f"{plural(run['guests_lost'], 'guest')} lost.")
    if completed:
        card.facts.append("Its result is right." if correct else "Its result could not be confirmed.")
    if run["failed_host"] and run["failed_host_pool"]:
        pool = run["failed_host_pool"]
        stays = ", and the process that filled it still runs there" if run["failing_process_still_there"] else ""
        card.facts.append(f"{run['failed_host']} is {pool}{stays}.")
    if others := run["other_evacuations"]:
        listed = join([f"{one['host']} ({one['state']})" for one in others])
        card.facts.append(f"{plural(len(others), 'other evacuation').capitalize()} in this run: {listed}.")
    return card


def _hog(run: dict[str, Any]) -> Card:
    completed, evacuations = run["job_completed"], run["evacuations"]
    good = bool(completed and run["result_correct"])
    card = Card(
        RUNS["memory_hog_application"],
        "The job completed" if good else "The job gave a wrong result" if completed else "The job died",
        good,
        completed and not evacuations,
    )
    card.figure, card.unit = str(evacuations), "evacuation" if evacuations == 1 else "evacuations"
    peaks = run["peak_memory_in_use"].values()
    if peaks:
        low, high = f"{min(peaks):.0%}", f"{max(peaks):.0%}"
        card.facts.append(f"All its hosts became {low if low == high else f'{low} to {high}'} full.")
    if run["alarms"]:
        card.facts.append(f"{plural(run['alarms'], 'alarm').capitalize()}, where there should be none.")
    else:
        card.facts.append("No alarm: where all hosts are alike, none is failing.")
    return card


def _picture(title: str, remark: str, draw: Callable[..., str], *what: Any) -> Picture:
    return Picture(title, remark, Markup(draw(*what, width=WIDE)), Markup(draw(*what, width=NARROW)))


def _when(run: Run | None, moment: float) -> str:
    """A moment as seconds after the job's first iteration."""
    if run is None or "job started" not in run.events:
        return ""
    seconds = round(moment - run.events["job started"])
    return "as the job begins" if abs(seconds) < 1 else f"{seconds} s after the job's start"


def _series(runs: list[Run]) -> str:
    """What the page's script shows at the pointer: each run's times, and hosts with their memory in per mille."""
    found: dict[str, Any] = {}
    for run in runs:
        kinds = charts.kinds_of(run)
        lines = charts.series_of(run, charts.span_of(run))
        every = max([1, *(-(-len(points) // POINTS) for points in lines.values())])
        found[run.name] = [
            [host, kinds[host], [[round(t, 1), round(v * 1000)] for t, v in points[::every]]]
            for host, points in sorted(lines.items())
        ]
    return json.dumps(found, separators=(",", ":")).replace("<", "\\u003c")
