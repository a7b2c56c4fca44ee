"""The demonstration's report: ``python -m failavoid.demo.report build/demo/record.json`` makes it again."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from failavoid.demo.record import Record, load
from failavoid.demo.runs import Run
from failavoid.shared.messages import Alarm, Evacuation, Sample, Step, to_dict

STEPS = ("alarm", "leased", "noticed", "gathered", "migrating", "verified", "released", "retired")
RULES = ("robust", "paper", "threshold")
DANGER, FAILURE = 0.75, 0.90  # shares of a host's memory; an alarm's evidence says what the monitor was set to
GUEST_PROCESS = "qemu"  # in the name of what the kernel's OOM killer took
Document = dict[str, Any]


def build_report(record: Record) -> Document:
    """The report as JSON: every figure is from the record; what did not happen, or was not run, is null."""
    runs = record.runs
    return {
        "scale": {
            "name": record.scale,
            "hosts_in_use": record.hosts_in_use,
            "hosts_idle": record.hosts_idle,
            "guests": record.guests,
            "ranks": record.ranks,
            "domain_type": record.domain_type,
        },
        "control": _control(record, runs["control"]) if "control" in runs else None,
        "protected": _protected(runs["protected"], runs.get("control")) if "protected" in runs else None,
        "memory_hog_application": _hog(runs["memory_hog_application"]) if "memory_hog_application" in runs else None,
        "wall_s": record.wall_s,
        "notes": notes(record),
    }


def notes(record: Record) -> list[str]:
    """What a reader has to know to judge the figures."""
    said = []
    if record.oom_score_adj is not None:
        said.append(
            f"The kernel was told to prefer the guests (oom_score_adj of their QEMUs: {record.oom_score_adj}): "
            "when a host's memory ends, it takes the job's guests and leaves the process that filled the memory."
        )
    if record.domain_type == "qemu":
        said.append("The guests ran under QEMU's emulation, because the hosts can't run KVM guests: all is slower.")
    return said + record.warnings


def evacuation_of(run: Run) -> Evacuation | None:
    """The run's evacuation: the last that moved guests, else the last begun; of the failing host, if it had one."""
    of_failing = [one for one in run.evacuations if one.host == run.failing_host] or run.evacuations
    moved = [one for one in of_failing if any(m.state == "moved" for m in one.migrations)]
    found = moved or of_failing
    return found[-1] if found else None


def alarm_of(run: Run) -> Alarm | None:
    """The alarm that was acted on, or the first that was raised."""
    evacuation = evacuation_of(run)
    if evacuation is not None and evacuation.alarm is not None:
        return evacuation.alarm
    return run.alarms[0] if run.alarms else None


def step_of(evacuation: Evacuation | None, name: str) -> Step | None:
    """The step of that name in the journal, if it was begun."""
    return next((step for step in evacuation.steps if step.name == name), None) if evacuation else None


def accepted(evacuation: Evacuation) -> float | None:
    """When the controller had accepted the alarm, on the head's clock: the timeline's zero."""
    step = step_of(evacuation, "alarm")
    return step.done if step else None


def timeline(evacuation: Evacuation) -> dict[str, float | None]:
    """Seconds from the alarm's acceptance to each step's `done` in the journal; null for what was not done."""
    zero = accepted(evacuation)
    done = {step.name: step.done for step in evacuation.steps}
    return {
        name: round(moment - zero, 3) if zero is not None and (moment := done.get(name)) is not None else None
        for name in STEPS
    }


def unavailable(sample: Sample) -> float | None:
    """Share of a node's memory that is not available, 0..1; None if the sample does not say."""
    total, available = sample.metrics.get("mem_total_kb"), sample.metrics.get("mem_available_kb")
    return 1 - available / total if total and available is not None else None


def from_danger_to_oom_s(run: Run) -> float | None:
    """Seconds the failing host had been over 75 % without a break when the OOM killer came."""
    end = run.events.get("out of memory")
    since = None
    for sample in run.samples:
        share = unavailable(sample)
        if sample.node != run.failing_host or share is None or end is None or sample.time > end:
            continue
        if share < DANGER:
            since = None
        elif since is None:
            since = sample.time
    return round(end - since, 1) if end is not None and since is not None else None


def would_have_raised_s(run: Run, host: str, job: str, rule: str) -> dict[str, float | None]:
    """When each other rule first held for the host, in seconds after ``rule`` did; null if it did not."""
    held = {event.rule: event.time for event in run.rule_events if (event.host, event.job) == (host, job)}
    return {
        other: round(held[other] - held[rule], 3) if other in held and rule in held else None
        for other in RULES
        if other != rule
    }


def _control(record: Record, run: Run) -> Document:
    guests_killed = [line for line in run.oom_lines if GUEST_PROCESS in line]
    return {
        "job_completed": run.job_completed,
        "guests_lost": len(run.guests_lost),
        "cause": "oom" if guests_killed and run.guests_lost and not run.job_completed else None,
        "failing_host": run.failing_host,
        "from_75_percent_to_oom_s": from_danger_to_oom_s(run),
        "guest_oom_score_adj": record.oom_score_adj,
        "kernel": run.oom_lines,
    }


def _protected(run: Run, control: Run | None) -> Document:
    evacuation, alarm = evacuation_of(run), alarm_of(run)
    pools = {host.name: host.pool for host in run.snapshots["after"].hosts} if "after" in run.snapshots else {}
    prepare = step_of(evacuation, "prepare_destination")
    return {
        "job_completed": run.job_completed,
        "result_correct": run.result_correct,
        "failed_host": evacuation.host if evacuation else None,
        "spare": evacuation.spare if evacuation else None,
        "failed_host_pool": pools.get(evacuation.host) if evacuation else None,
        "failing_process_still_there": run.hog_remained,
        "guests_lost": len(run.guests_lost),
        "alarm": _alarm(run, alarm, control) if alarm else None,
        "timeline_s": timeline(evacuation) if evacuation else None,
        "prepare_destination_s": round(prepare.done - prepare.begun, 3) if prepare and prepare.done else None,
        "migrations": [
            {
                "guest": m.guest,
                "from": m.source,
                "to": m.destination,
                "state": m.state,
                "elapsed_s": m.elapsed_s,
                "downtime_ms": m.downtime_ms,
                "bytes": m.bytes,
                "pinned_cpu": m.cores[0] if len(m.cores) == 1 else m.cores,
                "numa_node": m.numa_node,
                "pin_verified": m.pin_verified,
            }
            for m in (evacuation.migrations if evacuation else [])
        ],
        "evacuations": len(run.evacuations),
        "other_evacuations": [
            {"host": one.host, "spare": one.spare, "state": one.state, "error": one.error}
            for one in run.evacuations
            if one is not evacuation
        ],
        "state": evacuation.state if evacuation else None,
        "error": evacuation.error if evacuation else "no evacuation took place",
    }


def _alarm(run: Run, alarm: Alarm, control: Run | None) -> Document:
    held = {event.rule: event.time for event in run.rule_events if (event.host, event.job) == (alarm.host, alarm.job)}
    others = [rule for rule in RULES if rule != alarm.rule]
    return {
        "rule": alarm.rule,
        "metric": alarm.metric,
        "value": alarm.value,
        "host": alarm.host,
        "evidence": to_dict(alarm.evidence),
        "other_rules_s": {rule: round(held[rule] - alarm.time, 3) if rule in held else None for rule in others},
        # there the guests stayed, so the others had the time until the host's end
        "other_rules_in_control_s": (
            would_have_raised_s(control, control.failing_host, control.job, alarm.rule)
            if control is not None and control.failing_host
            else None
        ),
    }


def _hog(run: Run) -> Document:
    peak: dict[str, float] = {}
    for sample in run.samples:
        if (share := unavailable(sample)) is not None:
            peak[sample.node] = max(peak.get(sample.node, 0.0), share)
    return {
        "job_completed": run.job_completed,
        "result_correct": run.result_correct,
        "evacuations": len(run.evacuations),
        "alarms": len(run.alarms),
        "peak_memory_in_use": {host: round(peak[host], 3) for host in sorted(hosts_of(run)) if host in peak},
    }


def hosts_of(run: Run) -> set[str]:
    """The hosts on which the run's job began."""
    before = run.snapshots.get("before")
    return {guest.host for guest in before.guests if guest.job == run.job} if before else set()


def write_report(record: Record, folder: Path) -> Document:
    """Write record.json, report.json and report.html into ``folder``; returns the report."""
    from failavoid.demo.page import render

    report = build_report(record)
    folder.mkdir(parents=True, exist_ok=True)
    record.save(folder / "record.json")
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.html").write_text(render(record, report), encoding="utf-8")
    return report


def main() -> int:
    """Make report.json and report.html again, beside the record they are made from."""
    parser = argparse.ArgumentParser(prog="python -m failavoid.demo.report", description=main.__doc__)
    parser.add_argument("record", type=Path, help="the record.json of a demonstration")
    path = parser.parse_args().record
    try:
        record = load(path)
    except (OSError, ValueError) as error:
        print(f"{path} can't be read as a record: {error}. 'make demo' writes one", file=sys.stderr)
        return 1
    write_report(record, path.parent)
    print(path.parent / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
