"""Fifty evacuations in a row under one MPI job that checks every message: ``make soak``.

Afterwards nothing has grown: processes, open files and memory of services and daemons, taps, state directories, records
of moves, leases. Writes build/soak/soak.json, also where an evacuation has ended the run; exit status 0 if all of them
went well, the job's result is right and nothing has leaked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from failavoid.demo.observe import connect, wait_until
from failavoid.demo.site import CommandError, Site, read_inventory
from failavoid.shared.migration import KEPT_RECORDS
from tests.testbed.long_job import LongJob, long_job

PROJECT = Path(__file__).resolve().parents[2]
SETTLED = 5  # evacuations after which what is there is compared with what is there at the end
GROWTH = 1.25  # of a service's memory that is no leak: caches fill
HOLDINGS = Path(__file__).with_name("holdings.py")


def look(site: Site) -> dict[str, Any]:
    """What each node holds now."""
    program = HOLDINGS.read_text()
    nodes = [site.head, *site.groups["hypervisor"]]
    return {node: json.loads(site.run(node, "python3", "-c", program)) for node in nodes}


def leaks(before: dict[str, Any], after: dict[str, Any], moves: int) -> list[str]:
    """What has grown over ``moves`` evacuations, in words.

    Hosts take turns, so counts are compared over all of them. Processes come and go: a handful is no leak.
    """
    found = []
    for kind in next(iter(after.values()))["counts"]:
        was, now = (sum(node["counts"][kind] for node in look.values()) for look in (before, after))
        slack = {"processes": 20, "records_of_moves": KEPT_RECORDS * len(after)}.get(kind, 0)
        if now > was + slack:
            found.append(f"{kind}: {was} before, {now} after {moves} evacuations")
    for node, held in after.items():
        for service, now in held["services"].items():
            was = before[node]["services"].get(service)
            if was is None:
                continue
            if now["memory_kb"] > was["memory_kb"] * GROWTH + 20_000:
                found.append(f"{service} on {node}: {was['memory_kb']} kB before, {now['memory_kb']} kB after")
            for what in ("files", "threads"):
                if now[what] > was[what] + 10:
                    found.append(f"{service} on {node}: {was[what]} {what} before, {now[what]} after")
    return found


def evacuate(job: LongJob) -> dict[str, Any]:
    """One evacuation of the host that the job's first guest is on; raises AssertionError unless all went well."""
    host = job.guests()[0].host
    done = job.ended(job.evacuate(host))
    assert (done.state, done.error) == ("RETIRED", ""), f"{done.id}: {done.state} {done.error}"
    job.restore()
    assert job.goes_on(), f"the job does not compute on after {done.id}"
    steps = {step.name: step.done or 0.0 for step in done.steps}
    return {
        "evacuation": done.id,
        "from": host,
        "to": done.spare,
        "guests": len(done.migrations),
        "released_s": round(steps["released"] - steps["alarm"], 3),
        "downtime_ms": max(m.downtime_ms or 0.0 for m in done.migrations),
    }


def main() -> int:
    """Run, write what was seen, and say what has leaked."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--evacuations", type=int, default=50)
    count = parser.parse_args().evacuations
    site = read_inventory(PROJECT / "inventories" / "testbed")
    services = connect(site)
    rounds: list[dict[str, Any]] = []
    failure, began = "", time.monotonic()
    with long_job(site, services, hosts=2, guests_per_host=2, memory_mb=288) as job:
        free = job.free()
        before = look(site)
        for number in range(1, count + 1):
            try:
                rounds.append(evacuate(job))
            except (AssertionError, CommandError, httpx.HTTPError) as error:
                failure = f"evacuation {number}: {error}"
                break
            print(f"[{time.monotonic() - began:6.0f} s] {number}/{count} {json.dumps(rounds[-1])}", flush=True)
            if number == min(SETTLED, count - 1):
                before = look(site)
        after = look(site)
        found = leaks(before, after, len(rounds))
        if not wait_until(lambda: job.free() == free, 30):
            found.append(f"hosts: {free} were free before, {job.free()} are now")
        completed = job.finish() == 0 and job.job.said("RESULT correct")
    result = {
        "evacuations": len(rounds),
        "failure": failure,
        "result_correct": completed,
        "leaks": found,
        "released_s": statistics.median(one["released_s"] for one in rounds) if rounds else None,
        "longest_released_s": max((one["released_s"] for one in rounds), default=None),
        "wall_s": round(time.monotonic() - began, 1),
        "rounds": rounds,
        "before": before,
        "after": after,
    }
    path = PROJECT / "build" / "soak" / "soak.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{len(rounds)} evacuations{f', then {failure}' if failure else ''}, "
        f"result {'right' if completed else 'NOT right'}, leaks: {found or 'none'}; {path}"
    )
    return 0 if completed and not found and not failure else 1


if __name__ == "__main__":
    sys.exit(main())
