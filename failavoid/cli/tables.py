"""What the services say, as tables for people."""

from __future__ import annotations

import sys
import time
from typing import Any

Document = dict[str, Any]
LAST = 50  # of what may be many
WIDE = 1000  # columns, where nobody looks at a terminal: a line is a row, for grep


def show(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    if not rows:
        console.print(Text(f"{title}: none"))
        return
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console.print(table)


def moment(seconds: float | None) -> str:
    """A time, in the local time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def mebibytes(kilobytes: int) -> str:
    """Memory."""
    return f"{kilobytes // 1024} MiB"


def share(value: float | None) -> str:
    """A share of 1 in percent."""
    return "" if value is None else f"{value:.1%}"


def pools(hosts: list[Document]) -> None:
    """Pools with their hosts."""
    from failavoid.shared.messages import POOLS

    members = {pool: [host["name"] for host in hosts if host["pool"] == pool] for pool in POOLS}
    show("Pools", ["pool", "hosts", "names"], [[pool, len(all_), " ".join(all_)] for pool, all_ in members.items()])


def hosts(found: list[Document], guests: list[Document]) -> None:
    """Hosts with their guests, and what a person should know of them."""
    on = {host["name"]: [guest["name"] for guest in guests if guest["host"] == host["name"]] for host in found}
    rows: list[list[object]] = [
        [
            host["name"],
            host["pool"],
            host["address"],
            mebibytes(host["memory_kb"]),
            " ".join(on[host["name"]]),
            host["reason"],
            host["hardware_class"],
            "; ".join(f"{mark['kind']} by {mark['who']} {moment(mark['time'])}" for mark in host["marks"]),
        ]
        for host in found
    ]
    show("Hosts", ["host", "pool", "address", "memory", "guests", "reason", "class", "marks"], rows)
    for warning in sorted({warning for host in found for warning in host["warnings"]}):
        print(f"Note: {warning}")


def differences(found: list[Document]) -> None:
    """What libvirt says otherwise than the resource manager; nothing if all is as it should be."""
    if found:
        show("Differences", ["since", ""], [[moment(one["since"]), one["words"]] for one in found])


def guests(found: list[Document]) -> None:
    """Guests: where they run, for which job."""
    rows: list[list[object]] = [
        [
            guest["name"],
            guest["state"],
            guest["host"],
            guest["address"],
            mebibytes(guest["memory_kb"]),
            ",".join(map(str, guest["cores"])),
            guest["numa_node"],
            guest["user"],
            guest["job"],
        ]
        for guest in found
    ]
    show("Guests", ["guest", "state", "host", "address", "memory", "cores", "NUMA", "user", "job"], rows)


def jobs(found: list[Document], guests: list[Document]) -> None:
    """Jobs and the hosts they are on."""
    on = {guest["name"]: guest["host"] for guest in guests}
    rows: list[list[object]] = [
        [
            job["id"],
            job["request"]["user"],
            job["state"],
            job["request"]["policy"],
            len(job["guests"]),
            ""
            if job["ended"]
            else " ".join(sorted({on[name] for name in job["guests"] if name in on} | {*job["hosts"]})),
            moment(job["created"]),
            job["exit_status"],
            job["message"],
        ]
        for job in found
    ]
    show("Jobs", ["job", "user", "state", "policy", "guests", "hosts", "created", "exit", ""], rows)


def alarms(found: list[Document]) -> None:
    """Alarms with the figures they were raised for."""
    rows: list[list[object]] = [
        [
            moment(alarm["time"]),
            alarm["host"],
            alarm["job"],
            alarm["rule"],
            alarm["metric"],
            share(alarm["value"]),
            share(alarm["evidence"]["centre"]),
            f"{alarm['evidence']['z']:.1f}",
        ]
        for alarm in found
    ]
    show("Alarms", ["time", "host", "job", "rule", "metric", "value", "group", "z"], rows)


def predictions(found: Document) -> None:
    """How good each rule was, and the last predictions."""
    rows: list[list[object]] = [
        [
            one["mode"],
            one["rule"] + (" *" if one["acting"] else ""),
            *(one[name] for name in ("predictions", "true", "false", "unknown", "open", "missed")),
            share(one["precision"]),
            share(one["recall"]),
            *("" if one[name] is None else f"{one[name]:.0f}" for name in ("lead_median_s", "lead_p5_s")),
            share(one["interval_coverage"]),
        ]
        for one in found["rules"]
    ]
    outcomes = ["true", "false", "unknown", "open", "missed"]
    columns = ["mode", "rule", "said", *outcomes, "precision", "recall", "lead s", "5 %", "in interval"]
    show("Rules (* acts)", columns, rows)
    rows = [
        [moment(one["time"]), one["host"], one["job"], one["mode"], one["rule"], share(one["value"]), one["outcome"]]
        for one in found["predictions"][-LAST:]
    ]
    show("Last predictions", ["time", "host", "job", "mode", "rule", "value", "outcome"], rows)


def findings(found: list[Document]) -> None:
    """Findings; those that are over have an end."""
    rows: list[list[object]] = [
        [moment(one["time"]), moment(one["ended"]), one["kind"], one["subject"], one["text"]] for one in found[-LAST:]
    ]
    show("Findings", ["since", "until", "kind", "subject", ""], rows)


def evacuations(found: list[Document]) -> None:
    """Evacuations."""
    rows: list[list[object]] = [
        [one["id"], one["host"], one["job"], one["state"], one["spare"], len(one["migrations"]), one["error"]]
        for one in found
    ]
    show("Evacuations", ["evacuation", "host", "job", "state", "spare", "guests", ""], rows)


def plans(found: list[Document]) -> None:
    """What would be done for each job, and why."""
    rows: list[list[object]] = [
        [
            one["host"],
            one["job"],
            one["decision"],
            f"{one['needed_s']:.1f}",
            "" if one["lead_s"] is None else f"{one['lead_s']:.1f}",
            "; ".join(one["reasons"]),
        ]
        for one in found
    ]
    show("Plans", ["host", "job", "decision", "needed s", "left s", ""], rows)
    rows = [
        [
            guest["guest"],
            one["host"],
            mebibytes(guest["memory_kb"]),
            "" if guest["dirty_bps"] is None else f"{guest['dirty_bps'] / 2**20:.0f}",
            f"{guest['seconds']:.1f}",
            ", ".join(guest["devices"]),
        ]
        for one in found
        for guest in one["guests"]
    ]
    show("Guests", ["guest", "host", "memory", "dirty MiB/s", "seconds", "devices"], rows)


def story(found: Document) -> None:
    """One evacuation: why, each step, each guest's move."""
    print(f"{found['id']}: host {found['host']}, job {found['job']}, {found['state']} {found['error']}".rstrip())
    alarm = found["alarm"]
    if alarm:
        evidence = alarm["evidence"]
        print(
            f"Alarm by rule {alarm['rule']} at {moment(alarm['time'])}: {alarm['metric']} {share(alarm['value'])}, "
            f"group {share(evidence['centre'])}, z {evidence['z']:.1f}"
        )
    elif found["reason"]:
        print(f"Reason: {found['reason']}")
    if found["plan"]:
        print(f"Plan: {found['plan']['decision']}: {'; '.join(found['plan']['reasons'])}")
    for host, why in found["failed_spares"].items():
        print(f"Spare {host} was given up: {why}")
    if found["needs_confirmation"]:
        confirmed = found["confirmed_by"]
        print(f"Confirmed by {confirmed}" if confirmed else f"Waits for 'failavoid confirm {found['id']}'")
    steps = found["steps"]
    begun = alarm["time"] if alarm else steps[0]["begun"] if steps else 0.0
    rows: list[list[object]] = [
        [
            step["name"],
            f"{step['begun'] - begun:.2f}",
            "" if step["done"] is None else f"{step['done'] - begun:.2f}",
            step["detail"],
        ]
        for step in steps
    ]
    show("Steps", ["step", "begun s", "done s", ""], rows)
    rows = [
        [
            move["guest"],
            move["source"],
            move["destination"],
            move["state"],
            "" if move["elapsed_s"] is None else f"{move['elapsed_s']:.2f}",
            move["downtime_ms"],
            "" if move["bytes"] is None else f"{move['bytes'] / 2**20:.0f}",
            ",".join(map(str, move["cores"])),
            {True: "yes", False: "no", None: ""}[move["pin_verified"]],
            move["error"],
        ]
        for move in found["migrations"]
    ]
    columns = ["guest", "from", "to", "state", "seconds", "downtime ms", "MiB", "cores", "pinned", ""]
    show("Migrations", columns, rows)
