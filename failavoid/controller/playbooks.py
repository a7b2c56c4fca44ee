"""The playbooks that move guests and give moves up, and what their results say of each guest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from failavoid.playbook_runner import OnEvent, PlaybookResult, run_playbook
from failavoid.shared.messages import Host, Migration
from failavoid.shared.names import check_name

MIGRATE = "migrate.yml"
ABORT = "abort.yml"

# How a guest's move can end, by the word of the program that moved it.
MOVED, FAILED, CANCELLED = "moved", "failed", "cancelled"
ENDS = (MOVED, FAILED, CANCELLED)

_PLANNED_HERE = ("guest", "source", "destination", "address", "attempt", "devices")
_REPORTED = [f.name for f in dataclasses.fields(Migration) if f.name not in _PLANNED_HERE]


@dataclass
class MoveOrder:
    """One attempt of an evacuation, as its playbook needs it.

    ``name`` is what hosts keep the moves under: one name is never used for other moves. ``memory_kb`` is that of all
    guests. Moves that are not ``gated`` wait for nobody's ranks.
    """

    evacuation: str
    attempt: int
    migrations: list[Migration]
    hosts: dict[str, Host]
    memory_kb: int = 0
    gated: bool = True

    @property
    def name(self) -> str:
        """The evacuation's own; later attempts have names of their own."""
        return self.evacuation if self.attempt == 1 else f"{self.evacuation}-a{self.attempt}"


Cancelled = Callable[[], bool]
MigrateGuests = Callable[[MoveOrder, OnEvent, Cancelled], PlaybookResult]
AbortMoves = Callable[[MoveOrder], PlaybookResult]


@dataclass
class Playbooks:
    """Runs the playbooks of evacuations; ``gate`` is the controller's URL as hosts reach it.

    A playbook may take ``timeout_s``, and ``s_per_gib`` for each GiB that moves.
    """

    inventory: Path
    log_dir: Path
    gate: str
    timeout_s: float
    s_per_gib: float

    def migrate(self, order: MoveOrder, hear: OnEvent, cancelled: Cancelled) -> PlaybookResult:
        """Run migrate.yml to its end; ``hear`` gets each task's result."""
        return run_playbook(
            MIGRATE,
            self.inventory,
            variables(order, self.gate),
            order.name,
            self.log_dir,
            self.limit_s(order),
            on_event=hear,
            cancelled=cancelled,
        )

    def limit_s(self, order: MoveOrder) -> float:
        """Return how long the playbook of an attempt may take."""
        return self.timeout_s + self.s_per_gib * order.memory_kb / 2**20

    def abort(self, order: MoveOrder) -> PlaybookResult:
        """Give up what still moves; returns once it has ended on the hosts that can be reached."""
        sources = sorted({check_name("host", migration.source) for migration in order.migrations})
        asked = {"evacuation": check_name("evacuation", order.name), "abort_hosts": sources}
        return run_playbook(ABORT, self.inventory, asked, f"{order.name}-abort", self.log_dir, self.timeout_s)


def variables(order: MoveOrder, gate: str) -> dict[str, Any]:
    """Return migrate.yml's variables. Every word is checked, since Ansible evaluates templates in them."""
    own_gate = f"{gate}/evacuations/{check_name('evacuation', order.evacuation)}/gate/{order.attempt}"
    return {
        "evacuation": check_name("evacuation", order.name),
        "migrate_guests": [
            {
                "name": check_name("guest", migration.guest),
                "address": _check_address(migration.address),
                "source": check_name("host", migration.source),
                "destination": check_name("host", migration.destination),
                "destination_address": _check_address(order.hosts[migration.destination].address),
                "cores": [int(core) for core in migration.cores],
                "numa_node": int(migration.numa_node),
                "devices": [
                    {"kind": check_name("device kind", device.kind), "address": _check_address(device.address)}
                    for device in migration.devices
                ],
            }
            for migration in order.migrations
        ],
        "migrate_gate_url": own_gate if order.gated else "",
    }


def _check_address(address: str) -> str:
    if not address or not all(letter.isalnum() or letter in ".:-" for letter in address):
        raise ValueError(f"address {address!r} is not allowed: use an IP address or a name")
    return address


def note_results(migrations: list[Migration], result: PlaybookResult) -> set[str]:
    """Fill in what the tasks' ``migrations`` say of each guest; returns the guests whose move is said to have ended."""
    by_guest = {migration.guest: migration for migration in migrations}
    named = set()
    for said in _said_of_guests(result):
        migration = by_guest.get(said.get("guest", ""))
        if migration is None:
            continue
        if said.get("state") in ENDS:
            named.add(migration.guest)
        for name in _REPORTED:
            if said.get(name) is not None:
                setattr(migration, name, said[name])
    return named


def moved_guests(result: PlaybookResult) -> set[str]:
    """Return the guests that a task names as moved."""
    return {said["guest"] for said in _said_of_guests(result) if said.get("state") == MOVED}


def verified_guests(result: PlaybookResult) -> set[str]:
    """Return the guests that a task names as arrived, running and pinned as they should be."""
    return {
        said["guest"] for said in _said_of_guests(result) if said.get("state") == MOVED and said.get("pin_verified")
    }


def _said_of_guests(result: PlaybookResult) -> Iterator[dict[str, Any]]:
    for tasks in list(result.host_results.values()):
        for task in list(tasks.values()):
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
