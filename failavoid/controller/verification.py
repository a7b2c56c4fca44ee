"""Where each guest runs after a move, by what both hosts' libvirt shows: the playbook's word does not do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from failavoid.controller.libvirt_view import RUNNING, View
from failavoid.controller.manager import Cluster
from failavoid.shared.messages import Evacuation, Migration

T = TypeVar("T")

# A migration's states once both ends were looked at; "running": it can't be told.
MOVED, STAYED, GONE, UNCLEAR = "moved", "failed", "cancelled", "running"


@dataclass
class Verifier:
    """Looks at hosts (``look``, by address) and guests (``answers``). Time limits are in seconds."""

    cluster: Cluster
    look: Callable[[str], View]
    answers: Callable[[str], bool]
    changed: threading.Condition
    settle_timeout_s: float  # for both hosts to agree where a guest is
    reach_timeout_s: float  # for a moved guest to answer

    def verify(self, evacuation: Evacuation) -> list[str]:
        """Set the state of each migration by what is seen; returns what is wrong, as sentences."""
        said_to_have_moved = {m.guest for m in evacuation.migrations if m.state == MOVED}
        end = time.monotonic() + self.settle_timeout_s
        while True:
            troubles = self._look(evacuation, said_to_have_moved)
            if all(m.state != UNCLEAR for m in evacuation.migrations) or time.monotonic() > end:
                break
            time.sleep(0.2)
        moved = [m for m in evacuation.migrations if m.state == MOVED]
        troubles += [f"{m.guest} moved, but its pinning was not verified" for m in moved if not m.pin_verified]
        return troubles + self._unreachable([m.guest for m in moved])

    def _look(self, evacuation: Evacuation, said_to_have_moved: set[str]) -> list[str]:
        addresses = {host.name: host.address for host in self.cluster.refresh().hosts}
        names = sorted({name for m in evacuation.migrations for name in (m.source, m.destination)})
        views = _in_parallel(lambda name: self.look(addresses[name]) if name in addresses else None, names)
        job_is_over = self.cluster.job_is_over(evacuation.job)
        troubles = []
        with self.changed:
            for m in evacuation.migrations:
                source, destination = views[m.source], views[m.destination]
                m.state = outcome(m.guest, source, destination, m.guest in said_to_have_moved, job_is_over)
                if m.state in (STAYED, UNCLEAR):
                    troubles.append(trouble(m, source, destination))
                    m.error = m.error or troubles[-1]
        return troubles

    def _unreachable(self, guests: list[str]) -> list[str]:
        addresses = {guest.name: guest.address for guest in self.cluster.refresh().guests}
        silent = [guest for guest in guests if guest in addresses]
        end = time.monotonic() + self.reach_timeout_s
        while True:
            answered = _in_parallel(lambda guest: self.answers(addresses[guest]), silent)
            silent = [guest for guest in silent if not answered[guest]]
            if not silent or time.monotonic() > end:
                return [f"{guest} moved, but does not answer at {addresses[guest]}" for guest in silent]
            time.sleep(0.1)


def outcome(guest: str, source: View, destination: View, said_to_have_moved: bool, job_is_over: bool) -> str:
    """Return where a guest's move has come to: MOVED, STAYED, GONE (removed with its job) or UNCLEAR.

    The source may have failed and not answer: then the playbook's word does, if the destination agrees.
    """
    if destination is None:
        return UNCLEAR
    if destination.get(guest) == RUNNING:
        if source is None:
            return MOVED if said_to_have_moved else UNCLEAR
        return UNCLEAR if guest in source else MOVED
    if source is not None and guest not in destination:
        if source.get(guest) == RUNNING:
            return STAYED
        if guest not in source and job_is_over:
            return GONE
    return UNCLEAR


def trouble(migration: Migration, source: View, destination: View) -> str:
    """Say what is wrong with a move that stayed or is unclear, and what a person can do."""
    guest = migration.guest
    if migration.state == STAYED:
        reason = migration.error or "the playbook gave no reason"
        return f"{guest} did not move and runs on {migration.source}: {reason}"
    ends = ((migration.source, source), (migration.destination, destination))
    said = ", ".join(
        f"{host} can't be asked" if view is None else f"{host} says {view.get(guest, 'that it is not there')}"
        for host, view in ends
    )
    return (
        f"where {guest} runs is not clear ({said}): look with 'virsh list' on both hosts,"
        " and start or destroy nothing before one of them is known to run it"
    )


def _in_parallel(act: Callable[[str], T], names: list[str]) -> dict[str, T]:
    if not names:
        return {}
    with ThreadPoolExecutor(max_workers=min(16, len(names))) as pool:
        return dict(zip(names, pool.map(act, names), strict=True))
