"""What a move costs, and what the playbook around it adds: the same two guests, moved to and fro in one run.

`raw_virsh_s` is `virsh migrate --live --p2p --tls` of one of them; `playbook_s` is playbooks/migrate.yml for both at
once; `move_s` is the longer of the two moves in it, by libvirt.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from failavoid.demo.job import start_job
from failavoid.demo.observe import Services, connect
from failavoid.demo.scale import Growth, Scale
from failavoid.demo.site import Site, read_inventory
from failavoid.shared.messages import Guest

PROJECT = Path(__file__).resolve().parents[2]
ROUNDS = 5
BIN = Path(sys.executable).parent
SCALE = Scale("bench", "testbed", 1, 1, 2, 400, Growth(10, 1, 10, 1), Growth(10, 1, 10, 1))


def bench_guests(site: Site, services: Services) -> tuple[list[Guest], str]:
    """Two idle guests on one host, left by a job that has ended, and a free host for them."""
    job = start_job(site, SCALE, "bench", "off", SCALE.growth, lambda _line: None)
    job.wait(600)
    membership = services.membership()
    host = next(guest.host for guest in membership.guests if guest.memory_kb == SCALE.guest_memory_mb * 1024)
    guests = [guest for guest in membership.guests if guest.host == host]
    used = {guest.host for guest in membership.guests}
    return guests, next(one.name for one in membership.hosts if one.pool == "free" and one.name not in used)


def play(site: Site, guests: list[Guest], source: str, destination: str, ident: str) -> dict[str, Any]:
    """Move the guests by the playbook; seconds in all, and of the moves themselves."""
    variables = {
        "evacuation": ident,
        "migrate_guests": [
            {
                "name": guest.name,
                "address": guest.address,
                "source": source,
                "destination": destination,
                "destination_address": site.hosts[destination]["ansible_host"],
                "cores": guest.cores,
                "numa_node": guest.numa_node,
            }
            for guest in guests
        ],
    }
    began = time.monotonic()
    inventory, playbook = PROJECT / "inventories" / "testbed", PROJECT / "playbooks" / "migrate.yml"
    subprocess.run(
        [BIN / "ansible-playbook", "-i", inventory, playbook, "-e", json.dumps(variables)],
        cwd=PROJECT,
        check=True,
        capture_output=True,
    )
    seconds = time.monotonic() - began
    record = json.loads(site.run(source, "cat", f"/run/failavoid/migrations/{ident}.json"))
    moves = [move["elapsed_s"] for move in record["moves"]]
    return {"playbook_s": seconds, "move_s": max(moves), "downtime_ms": max(m["downtime_ms"] for m in record["moves"])}


def virsh(site: Site, guest: Guest, source: str, destination: str) -> float:
    """Move one guest as by hand, between hosts where the playbook has prepared both ends; seconds."""
    address = site.hosts[destination]["ansible_host"]
    site.run(destination, "mkdir", "-p", f"/var/lib/failavoid/guests/{guest.name}")
    site.run(destination, "touch", f"/var/lib/failavoid/guests/{guest.name}/identity.json")
    command = ["virsh", "migrate", "--live", "--p2p", "--tls", "--auto-converge", guest.name]
    began = time.monotonic()
    site.run(source, *command, f"qemu+tls://{address}/system", f"tcp:{address}")
    return time.monotonic() - began


def main() -> None:
    """Measure, and write build/bench/migration.json."""
    site = read_inventory(PROJECT / "inventories" / "testbed")
    services = connect(site)
    guests, other = bench_guests(site, services)
    here = guests[0].host
    rounds = []
    stamp = int(time.time())
    for number in range(ROUNDS):
        there = play(site, guests, here, other, f"bench-{stamp}-{number}-there")
        rounds.append(there)
        rounds.append(play(site, guests, other, here, f"bench-{stamp}-{number}-back"))
    raw = []
    for _ in range(ROUNDS):
        raw += [virsh(site, guests[0], here, other), virsh(site, guests[0], other, here)]
    result = {name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]}
    result["raw_virsh_s"] = round(statistics.median(raw), 3)
    result["overhead_s"] = round(statistics.median(one["playbook_s"] - one["move_s"] for one in rounds), 3)
    result["guests"], result["rounds"] = len(guests), len(rounds)
    path = PROJECT / "build" / "bench" / "migration.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    for guest in guests:
        services.resource_manager.delete(f"/guests/{guest.name}", timeout=60)


if __name__ == "__main__":
    main()
