"""What the playbooks cost: writes build/bench/ansible.json.

`site_s`: site.yml on a site where there is nothing to do. `migrate_cost_s`: migrate.yml, run as the controller runs it,
beyond the move of one guest itself. Both are profiled: how long each task took.

Takes about two minutes. site.yml is to have been run before, as `make bench` does: what it changes is given too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from operator import sub
from pathlib import Path
from typing import Any

from failavoid.demo.observe import Services, connect
from failavoid.demo.site import Site, read_inventory
from failavoid.playbook_runner import PlaybookResult
from tests.bench.held import emulated
from tests.bench.idle import Moved, launched, move
from tests.bench.jobs import remove_idle_guests
from tests.bench.results import PROJECT, Samples, add, document, each, show, write

SITE_RUNS, MIGRATE_RUNS = 1, 5
SLOWEST = 15  # tasks of site.yml that are named
GUEST = "bench-1"
MOVE = "Wait at the gate and migrate"
_TASK = re.compile(r"^(?:TASK|RUNNING HANDLER) \[(.*)\] \**$")
_RECAP = re.compile(r"^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)")


def profile(lines: Iterable[tuple[float, str]]) -> dict[str, float]:
    """The seconds of each task, from a playbook's lines and when they came: one ends where the next is named.

    What comes before the first task is `start`; tasks of one name add up.
    """
    seconds: dict[str, float] = {}
    task, since = "start", None
    for at, line in lines:
        since = at if since is None else since
        named = _TASK.match(line)
        if named or line.startswith("PLAY RECAP"):
            seconds[task] = seconds.get(task, 0.0) + at - since
            task, since = named[1] if named else "recap", at
    return seconds


def recap(lines: Iterable[str]) -> tuple[int, int]:
    """How many tasks changed something, and how many failed or found no host, over all hosts."""
    found = [[int(number) for number in match.groups()[1:]] for line in lines if (match := _RECAP.match(line))]
    return sum(one[0] for one in found), sum(one[1] + one[2] for one in found)


def site_run(inventory: Path) -> tuple[float, int, dict[str, float]]:
    """Run site.yml as an administrator does: its seconds, how much it changed, and the seconds of each task.

    Raises RuntimeError if it fails.
    """
    ansible = Path(sys.executable).parent / "ansible-playbook"
    command = [ansible, "-i", inventory, PROJECT / "playbooks" / "site.yml"]
    # with what is skipped, or a task is named only when its first host has ended it
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true"}
    began = time.monotonic()
    lines = [(began, "")]
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines += [(time.monotonic(), line.strip()) for line in process.stdout]
    seconds = time.monotonic() - began
    changed, failed = recap(line for _, line in lines)
    if process.returncode or failed:
        raise RuntimeError("site.yml failed:\n" + "\n".join(line for _, line in lines[-25:]))
    return seconds, changed, profile(lines)


def site_figures(inventory: Path, runs: int) -> dict[str, Any]:
    """`site_s` and `site_changed`, run by run, and the seconds of the slowest tasks."""
    samples: Samples = {}
    tasks: Samples = {}
    for number in range(1, runs + 1):
        seconds, changed, profiled = site_run(inventory)
        add(samples, {"site_s": seconds, "site_changed": changed})
        add(tasks, profiled)
        print(f"site.yml {number}/{runs}: {seconds:.1f} s, {changed} changed", flush=True)
    slowest = sorted(tasks, key=lambda task: -max(tasks[task]))[:SLOWEST]
    return {**samples, "site_tasks_s": {task: tasks[task] for task in slowest}}


def parts(moved: Moved) -> dict[str, float]:
    """The seconds of a run of migrate.yml by part: its start, its tasks, of the moving one what is beyond the move."""
    tasks = sorted(_tasks(moved.result), key=lambda one: one[1])
    found = {"start": tasks[0][1] - moved.began}
    for name, since, until in tasks:
        found[name] = until - since
    found[f"{MOVE}, beyond the move"] = found.pop(MOVE) - moved.moving_s
    found["between tasks"] = sum(after[1] - before[2] for before, after in itertools.pairwise(tasks))
    found["end"] = moved.ended - tasks[-1][2]
    return found


def _tasks(result: PlaybookResult) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end of each task that was not skipped."""
    for tasks in result.host_results.values():
        for name, said in tasks.items():
            yield name, said["_began"], said["_ended"]


def migrate_figures(site: Site, services: Services, runs: int) -> tuple[dict[str, Any], str]:
    """`migrate_s`, `moving_s` and `migrate_cost_s` of one guest, run by run, their parts; and the domain type."""
    samples: Samples = {}
    tasks: Samples = {}
    with tempfile.TemporaryDirectory() as folder, launched(site, services, Path(folder), [GUEST]) as hand:
        domain_type = "qemu" if emulated(site, hand.host_of[GUEST], GUEST) else "kvm"
        for number in range(1, runs + 1):
            moved = move(hand, [GUEST])
            add(samples, {"migrate_s": moved.ended - moved.began, "moving_s": moved.moving_s})
            add(tasks, parts(moved))
            print(
                f"migrate.yml {number}/{runs}: {samples['migrate_s'][-1]} s, {moved.moving_s:.3f} s moving", flush=True
            )
    cost = each(sub, samples["migrate_s"], samples["moving_s"])
    return {**samples, "migrate_cost_s": cost, "migrate_parts_s": tasks}, domain_type


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ansible", description=__doc__)
    parser.add_argument("--site-runs", type=int, default=SITE_RUNS, help="of site.yml (default: %(default)s)")
    parser.add_argument("--migrate-runs", type=int, default=MIGRATE_RUNS, help="of migrate.yml (default: %(default)s)")
    asked = parser.parse_args()
    site = read_inventory(PROJECT / "inventories" / "testbed")
    services = connect(site)
    began = time.monotonic()
    of_site = site_figures(site.inventory, asked.site_runs)
    remove_idle_guests(services)
    of_migrate, domain_type = migrate_figures(site, services, asked.migrate_runs)
    result = document(domain_type, {**of_site, **of_migrate}, wall_s=round(time.monotonic() - began, 1))
    show(result, write("ansible", result))


if __name__ == "__main__":
    main()
