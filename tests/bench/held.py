"""Moves by virsh while the job's ranks are held at the barrier, as they are held in an evacuation.

The ranks are held by a real evacuation: its controller stands still once the guest has arrived, so that the ranks are
not released, and the same guest is moved back and forth between the same two hosts. Then the controller goes on, and
finds the guest where it expects it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from failavoid.demo.observe import wait_until
from failavoid.demo.site import Site
from failavoid.shared import domain_xml
from failavoid.shared.messages import EVACUATION_ENDS, Guest
from tests.bench.results import PROJECT
from tests.testbed.by_hand import DIRECTORIES
from tests.testbed.long_job import MOVE_S, LongJob

RECORDS = "/run/failavoid/migrations"
ARRIVAL_S = 90.0
TRIES = 3


def raw_moves(job: LongJob, guest: str) -> list[float]:
    """Evacuate the guest's host; the seconds of two moves by virsh, back and there, in the midst of that.

    Raises RuntimeError if the ranks could not be held.
    """
    for _ in range(TRIES):
        if moves := held_moves(job, next(one for one in job.guests() if one.name == guest)):
            return moves
        job.restore()
    raise RuntimeError(f"in {TRIES} evacuations the ranks could not be held while {guest} was moved")


def held_moves(job: LongJob, guest: Guest) -> list[float]:
    """The same, tried once: no figures where the guest had not arrived, or the ranks were not held."""
    moves: list[float] = []
    ident = job.evacuate(guest.host)
    spare = job.until(ident, lambda evacuation: evacuation.state in ("MIGRATING", *EVACUATION_ENDS)).spare or ""
    if wait_until(lambda: bool(record(job.site, ident, guest.host)), MOVE_S, interval=0.05):
        with controller_stands_still(job.site):
            if wait_until(lambda: has_arrived(job.site, spare, guest.name), ARRIVAL_S, interval=0.1):
                moves = there_and_back(job.site, guest, spare)
            resumed = time.time()
    done = job.ended(ident)
    released = next((step.begun for step in done.steps if step.name == "released"), 0.0)
    if moves and done.state == "RETIRED" and released >= resumed:
        return moves
    print(f"{ident} is not counted: it ended {done.state} {done.error}, or its ranks were not held", flush=True)
    return []


def record(site: Site, ident: str, source: str) -> dict[str, Any]:
    """What the source keeps of an evacuation's moves, nothing before they begin."""
    text = site.run(source, "cat", f"{RECORDS}/{ident}.json", check=False)
    return dict(json.loads(text)) if text else {}


def has_arrived(site: Site, host: str, guest: str) -> bool:
    """Whether the playbook has verified the guest on its new host: from then on nothing more is done with it there."""
    text = site.run(host, "cat", f"{DIRECTORIES}/{guest}/state.json", check=False)
    return bool(text) and json.loads(text)["state"] == "running"


@contextlib.contextmanager
def controller_stands_still(site: Site) -> Iterator[None]:
    """Stop the controller's process where it is, and let it go on afterwards."""
    process = site.run(site.head, "systemctl", "show", "-p", "MainPID", "--value", "failavoid-controller").strip()
    try:
        site.run(site.head, "kill", "-STOP", process)
        yield
    finally:
        site.run(site.head, "kill", "-CONT", process)


def there_and_back(site: Site, guest: Guest, other: str) -> list[float]:
    """Move a guest from ``other`` to its first host and back; seconds of each move."""
    first = guest.host
    expect(site, first, guest, "expected")
    try:
        return [virsh(site, guest.name, other, first), virsh(site, guest.name, first, other)]
    finally:
        expect(site, first, guest, "unexpected")


def expect(site: Site, host: str, guest: Guest, state: str) -> None:
    """Prepare a host for a guest as the playbook does, or take that back."""
    words = {
        "state": state,
        "evacuation": f"bench-{time.time_ns()}",
        "guests": [{"name": guest.name, "address": guest.address}],
    }
    ansible = Path(sys.executable).parent / "ansible"
    command = [ansible, "-i", site.inventory, host, "-m", "failavoid_guest", "-a", json.dumps(words)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, timeout=MOVE_S)


def virsh(site: Site, guest: str, source: str, destination: str) -> float:
    """Move a guest by virsh with the product's flags; seconds by the source's clock, without SSH's own time."""
    address = site.hosts[destination]["ansible_host"]
    printed = site.run(source, "sh", "-c", script(guest, address, emulated(site, source, guest)))
    return int(printed.split()[-1]) / 1e9


def emulated(site: Site, host: str, guest: str) -> bool:
    """Whether a guest runs without KVM."""
    return domain_xml.is_emulated(site.run(host, "virsh", "dumpxml", guest))


def script(guest: str, address: str, is_emulated: bool) -> str:
    """The shell script that moves a guest to ``address`` and prints the nanoseconds that took.

    Flags as in module_utils/failavoid/migration.py: an emulated guest stands still, since emulation loses what it
    writes while its memory is on its way; pins are in the XML that the destination starts it from.
    """
    live = "" if is_emulated else " --live --auto-converge"
    xml = f"/run/bench-{guest}.xml"
    return (
        f"virsh dumpxml --migratable --security-info {guest} >{xml} && begun=$(date +%s%N) && "
        f"virsh migrate --p2p --tls{live} --xml {xml} --listen-address {address} "
        f"{guest} qemu+tls://{address}/system tcp:{address} >&2 && ended=$(date +%s%N) && "
        f"rm {xml} && echo $((ended - begun))"
    )
