"""The demonstration's report: ``python -m failavoid.demo.report build/demo/record.json`` makes it again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from failavoid.demo.record import Record, load
from failavoid.demo.runs import Run
from failavoid.shared.messages import Alarm, Evacuation, to_dict

STEPS = ("alarm", "leased", "noticed", "gathered", "migrating", "verified", "released", "retired")
RULES = ("robust", "paper", "threshold")
Document = dict[str, Any]


def build_report(record: Record) -> Document:
    """The report as JSON: every figure is from the record; what did not happen is null."""
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
        "control": _control(runs["control"]) if "control" in runs else None,
        "protected": _protected(runs["protected"]) if "protected" in runs else None,
        "memory_hog_application": _hog(runs["memory_hog_application"]) if "memory_hog_application" in runs else None,
        "wall_s": record.wall_s,
        "notes": notes(record),
    }


def notes(record: Record) -> list[str]:
    """What a reader has to know to judge the figures."""
    said = []
    if record.oom_score_adj is not None:
        said.append(
            f"The kernel was told to prefer the guests (oom_score_adj of their QEMUs: {record.oom_score_adj}). "
            "When a host's memory ends, the job's guests are what it takes."
        )
    if record.domain_type == "qemu":
        said.append("The guests ran under QEMU's emulation: this machine's processors run no KVM guests.")
    return said + record.warnings


def evacuation_of(run: Run) -> Evacuation | None:
    """The run's evacuation; the last if there were several."""
    return run.evacuations[-1] if run.evacuations else None


def alarm_of(run: Run) -> Alarm | None:
    """The alarm that was acted on, or the first that was raised."""
    evacuation = evacuation_of(run)
    if evacuation is not None and evacuation.alarm is not None:
        return evacuation.alarm
    return run.alarms[0] if run.alarms else None


def accepted(evacuation: Evacuation) -> float:
    """When the controller had accepted the alarm, on the head's clock: the timeline's zero."""
    return next(
        (step.done for step in evacuation.steps if step.name == "alarm" and step.done), evacuation.steps[0].begun
    )


def timeline(evacuation: Evacuation) -> dict[str, float | None]:
    """Seconds from the alarm's acceptance to each step's `done` in the journal."""
    zero = accepted(evacuation)
    done = {step.name: step.done for step in evacuation.steps}
    return {name: round(moment - zero, 3) if (moment := done.get(name)) is not None else None for name in STEPS}


def danger_s(run: Run, threshold: float = 0.75) -> float | None:
    """Seconds between the failing host's 75 % and the OOM killer, in the control run."""
    over = [s.time for s in run.samples if s.node == run.failing_host and unavailable(s.metrics) >= threshold]
    end = run.events.get("out of memory")
    return round(end - over[0], 1) if over and end else None


def unavailable(metrics: dict[str, float]) -> float:
    """Share of a host's memory that is not available."""
    return 1 - metrics["mem_available_kb"] / metrics["mem_total_kb"]


def _control(run: Run) -> Document:
    return {
        "job_completed": run.job_completed,
        "guests_lost": len(run.guests_lost),
        "cause": "oom" if run.oom_lines else None,
        "failing_host": run.failing_host,
        "from_75_percent_to_oom_s": danger_s(run),
        "kernel": run.oom_lines,
    }


def _protected(run: Run) -> Document:
    evacuation, alarm = evacuation_of(run), alarm_of(run)
    pools = {host.name: host.pool for host in run.snapshots["after"].hosts} if "after" in run.snapshots else {}
    prepare = next((s for s in evacuation.steps if s.name == "prepare_destination"), None) if evacuation else None
    return {
        "job_completed": run.job_completed,
        "result_correct": run.result_correct,
        "failed_host": evacuation.host if evacuation else None,
        "spare": evacuation.spare if evacuation else None,
        "failed_host_pool": pools.get(evacuation.host) if evacuation else None,
        "failing_process_still_there": run.hog_remained,
        "guests_lost": len(run.guests_lost),
        "alarm": _alarm(run, alarm) if alarm else None,
        "timeline_s": timeline(evacuation) if evacuation else None,
        "prepare_destination_s": round(prepare.done - prepare.begun, 3) if prepare and prepare.done else None,
        "migrations": [
            {
                "guest": m.guest,
                "from": m.source,
                "to": m.destination,
                "elapsed_s": m.elapsed_s,
                "downtime_ms": m.downtime_ms,
                "bytes": m.bytes,
                "pinned_cpu": m.cores[0] if len(m.cores) == 1 else m.cores,
                "numa_node": m.numa_node,
                "pin_verified": m.pin_verified,
            }
            for m in (evacuation.migrations if evacuation else [])
        ],
        "error": evacuation.error if evacuation else "no evacuation took place",
    }


def _alarm(run: Run, alarm: Alarm) -> Document:
    held = {event.rule: event.time for event in run.rule_events if event.host == alarm.host}
    return {
        "rule": alarm.rule,
        "metric": alarm.metric,
        "value": alarm.value,
        "evidence": to_dict(alarm.evidence),
        "other_rules_s": {
            rule: round(held[rule] - alarm.time, 3) if rule in held else None for rule in RULES if rule != alarm.rule
        },
    }


def _hog(run: Run) -> Document:
    peak: dict[str, float] = {}
    for sample in run.samples:
        peak[sample.node] = max(peak.get(sample.node, 0.0), unavailable(sample.metrics))
    used = {guest.host for guest in run.snapshots["before"].guests if guest.job == run.job} if run.snapshots else set()
    return {
        "job_completed": run.job_completed,
        "result_correct": run.result_correct,
        "evacuations": len(run.evacuations),
        "alarms": len(run.alarms),
        "peak_memory_in_use": {host: round(value, 3) for host, value in sorted(peak.items()) if host in used},
    }


def write_report(record: Record, folder: Path) -> Document:
    """Write record.json, report.json and report.html into ``folder``; returns the report."""
    from failavoid.demo.page import render

    report = build_report(record)
    folder.mkdir(parents=True, exist_ok=True)
    record.save(folder / "record.json")
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.html").write_text(render(record, report))
    return report


def main() -> None:
    """Make the report again from a record."""
    path = Path(sys.argv[1])
    write_report(load(path), path.parent)


if __name__ == "__main__":
    main()
