"""The playbook that moves guests, and what its results say of each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from failavoid.playbook_runner import OnEvent, PlaybookResult, run_playbook
from failavoid.shared.messages import Evacuation, Host, Migration
from failavoid.shared.names import check_name

PLAYBOOK = "migrate.yml"

Cancelled = Callable[[], bool]
MigrateGuests = Callable[[Evacuation, dict[str, Host], OnEvent, Cancelled], PlaybookResult]

_REPORTED = [
    f.name for f in dataclasses.fields(Migration) if f.name not in ("guest", "source", "destination", "address")
]


@dataclass
class MigratePlaybook:
    """Runs migrate.yml for an evacuation; ``gate`` is the controller's URL as hosts reach it."""

    inventory: Path
    log_dir: Path
    gate: str
    timeout_s: float

    def __call__(
        self, evacuation: Evacuation, hosts: dict[str, Host], hear: OnEvent, cancelled: Cancelled
    ) -> PlaybookResult:
        """Run the playbook to its end; ``hosts`` are the cluster's, by name, ``hear`` gets each task's result."""
        return run_playbook(
            PLAYBOOK,
            self.inventory,
            variables(evacuation, hosts, self.gate),
            evacuation.id,
            self.log_dir,
            self.timeout_s,
            on_event=hear,
            cancelled=cancelled,
        )


def variables(evacuation: Evacuation, hosts: dict[str, Host], gate: str) -> dict[str, Any]:
    """Return the playbook's variables. Every word is checked, since Ansible evaluates templates in them."""
    return {
        "evacuation": check_name("evacuation", evacuation.id),
        "migrate_guests": [
            {
                "name": check_name("guest", migration.guest),
                "address": _check_address(migration.address),
                "source": check_name("host", migration.source),
                "destination": check_name("host", migration.destination),
                "destination_address": _check_address(hosts[migration.destination].address),
                "cores": [int(core) for core in migration.cores],
                "numa_node": int(migration.numa_node),
            }
            for migration in evacuation.migrations
        ],
        "migrate_gate_url": f"{gate}/evacuations/{evacuation.id}/gate",
    }


def _check_address(address: str) -> str:
    if not address or not all(letter.isalnum() or letter in ".:-" for letter in address):
        raise ValueError(f"address {address!r} is not allowed: use an IP address or a name")
    return address


def note_results(migrations: list[Migration], result: PlaybookResult) -> set[str]:
    """Fill in what the tasks' ``migrations`` say of each guest; returns the guests they name."""
    by_guest = {migration.guest: migration for migration in migrations}
    named = set()
    for said in _said_of_guests(result):
        migration = by_guest.get(said.get("guest", ""))
        if migration is None:
            continue
        named.add(migration.guest)
        for name in _REPORTED:
            if said.get(name) is not None:
                setattr(migration, name, said[name])
    return named


def verified_guests(result: PlaybookResult) -> set[str]:
    """Return the guests that a task names as arrived, running and pinned as they should be."""
    return {
        said["guest"] for said in _said_of_guests(result) if said.get("state") == "moved" and said.get("pin_verified")
    }


def _said_of_guests(result: PlaybookResult) -> Iterator[dict[str, Any]]:
    for tasks in result.host_results.values():
        for task in tasks.values():
            yield from task.get("migrations", [])


def preparation(result: PlaybookResult) -> tuple[float, float] | None:
    """Return when the first task that prepares the destination began and the last ended, or None."""
    times = [
        (task["_began"], task["_ended"])
        for tasks in result.host_results.values()
        for name, task in tasks.items()
        if "prepare" in name.lower()
    ]
    return (min(began for began, _ in times), max(ended for _, ended in times)) if times else None
