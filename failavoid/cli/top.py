"""`failavoid top`: the machine at a glance in a terminal, drawn anew every few seconds."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from failavoid.cli.evacuations import ended, switch
from failavoid.cli.settings import CliError
from failavoid.cli.tables import share
from failavoid.shared.messages import POOLS

Document = dict[str, Any]
BAR = 24
ALARMS = 5
FRAME = 9  # lines beside the hosts'
STYLES = {"free": "dim", "allocated": "", "suspect": "bold yellow", "defunct": "red"}
ATTENTION = {"suspect": 0, "allocated": 1, "free": 2, "defunct": 3}  # what a person looks at first


def look(ask: Callable[[str, str], Any]) -> Document:
    """What is to be shown, from the three services. Raises CliError."""
    evacuations = ask("controller", "/evacuations")
    open_ = [one for one in evacuations if not ended(one)]
    return {
        "membership": ask("resource_manager", "/membership"),
        "samples": {one["node"]: one for one in ask("monitor", "/samples")},
        "silent": {one["node"] for one in ask("monitor", "/nodes") if one["silent"]},
        "alarms": ask("monitor", "/alarms")[-ALARMS:],
        "evacuations": open_ or evacuations[-1:],
        "progress": {
            one["id"]: ask("controller", f"/evacuations/{one['id']}/progress")
            for one in open_
            if one["state"] == "MIGRATING"
        },
        "controller": ask("controller", "/status"),
        "time": time.time(),
    }


def used(sample: Document | None) -> float | None:
    """The share of a host's memory that is in use."""
    metrics = sample["metrics"] if sample else {}
    total, available = metrics.get("mem_total_kb"), metrics.get("mem_available_kb")
    return 1 - available / total if total and available is not None else None


def picture(found: Document, height: int) -> Group:
    """All of it; so many hosts as there is room for, those that need attention first."""
    membership = found["membership"]
    shown: list[Text | Table] = []
    counts = Counter(host["pool"] for host in membership["hosts"])
    head = Text("  ").join(Text(f"{counts[pool]} {pool}", STYLES[pool]) for pool in POOLS)
    running = sum(job["ended"] is None for job in membership["jobs"])
    head.append(f"   {running} jobs   {len(found['silent'])} silent   {time.strftime('%H:%M:%S')}", "dim")
    shown.append(head)
    if warning := switch(found["controller"]):
        shown.append(Text(warning, "bold yellow"))
    shown += [_evacuation(one, found["progress"].get(one["id"], []), found["time"]) for one in found["evacuations"]]
    shown += [
        Text(
            f"alarm {time.strftime('%H:%M:%S', time.localtime(one['time']))} {one['host'] or one['domain']} "
            f"{one['metric']} {share(one['value'])}, group {share(one['evidence']['centre'])}"
        )
        for one in found["alarms"][::-1]
    ]
    room = max(3, height - FRAME - len(shown))
    shown.append(_hosts(found, room))
    return Group(*shown)


def _hosts(found: Document, room: int) -> Table:
    hosts, samples = found["membership"]["hosts"], found["samples"]
    on: dict[str, list[str]] = {}
    for guest in found["membership"]["guests"]:
        on.setdefault(guest["host"], []).append(guest["name"])
    shares = {host["name"]: used(samples.get(host["name"])) for host in hosts}
    order = sorted(hosts, key=lambda host: (ATTENTION[host["pool"]], -(shares[host["name"]] or 0.0), host["name"]))
    table = Table("host", "pool", "memory in use", "", "CPU", "guests", "", box=None, pad_edge=False, expand=True)
    for host in order[:room]:
        name, value = host["name"], shares[host["name"]]
        cpu = samples[name]["metrics"].get("cpu") if name in samples else None
        silent = name in found["silent"]
        table.add_row(
            Text(name, STYLES[host["pool"]]),
            Text(host["pool"], STYLES[host["pool"]]),
            _bar(value),
            Text("silent", "bold yellow") if silent else Text(share(value)),
            share(cpu),
            str(len(on.get(name, []))) if name in on else "",
            Text(host["reason"], "dim", no_wrap=True, overflow="ellipsis"),
        )
    if len(order) > room:
        table.add_row(Text(f"{len(order) - room} more hosts", "dim"))
    return table


def _bar(value: float | None) -> Text:
    full = 0 if value is None else round(min(max(value, 0.0), 1.0) * BAR)
    style = "red" if value and value >= 0.9 else "yellow" if value and value >= 0.75 else "green"
    return Text("█" * full, style).append("·" * (BAR - full), "dim")


def _evacuation(one: Document, progress: list[Document], now: float) -> Text:
    """One line: from where to where, how far, for how long."""
    steps = one["steps"]
    begun = one["alarm"]["time"] if one["alarm"] else steps[0]["begun"] if steps else now
    until = now if not ended(one) else max((step["done"] or step["begun"] for step in steps), default=now)
    words = f"{one['id']}  {one['host']} -> {one['spare'] or '?'}  {one['state']}  {until - begun:.1f} s"
    total = sum(move["processed"] + move["remaining"] for move in progress)
    if total:
        words += f"  {sum(move['processed'] for move in progress) / total:.0%} sent"
    if one["needs_confirmation"] and not one["confirmed_by"] and not ended(one):
        words += f"  waits for 'failavoid confirm {one['id']}'"
    return Text(words, "bold" if not ended(one) else "dim")


def show(ask: Callable[[str, str], Any], every_s: float, once: bool) -> None:
    """Draw until Ctrl-C, or once if nobody looks at a terminal; waits for services that go away. Raises CliError."""
    console = Console(highlight=False)
    found = look(ask)
    if once or not sys.stdout.isatty():
        console.print(picture(found, console.height if sys.stdout.isatty() else len(found["membership"]["hosts"]) + 99))
        return
    with Live(picture(found, console.height), console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(every_s)
                try:
                    live.update(picture(look(ask), console.height), refresh=True)
                except CliError as error:
                    live.update(Text(f"{error}; trying on", "bold yellow"), refresh=True)
        except KeyboardInterrupt:
            return
