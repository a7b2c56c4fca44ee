"""Where each guest runs after a move and whether it can be reached: the playbook's word does not do.

Where it runs, both hosts' libvirt says. Whether it can be reached is tried from the head and by a peer guest of its
job; whether its root file system answers, its own agent says. Where most hosts are silent at once the head is the one
that is cut off: no host is given up for that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from failavoid.controller.clock import Clock
from failavoid.controller.libvirt_view import RUNNING, View
from failavoid.controller.limits import Limits
from failavoid.controller.manager import Cluster
from failavoid.controller.notices import NoticeBoard
from failavoid.controller.playbooks import ENDS
from failavoid.controller.playbooks import MOVED as SAID_MOVED
from failavoid.shared.messages import Arrival, Evacuation, Guest, Migration

# A migration's states once both ends were looked at; "running": it can't be told.
MOVED, STAYED, GONE, UNCLEAR = "moved", "failed", "cancelled", "running"

_LOOK_S = 0.2
_CONNECT_S = 0.1
_ASKED = 15  # of a large site's hosts, whether the head is cut off


@dataclass
class Verifier:
    """Looks at hosts (``look``, by address) and guests (``answers``)."""

    cluster: Cluster
    board: NoticeBoard
    look: Callable[[str], View]
    answers: Callable[[str], bool]
    changed: threading.Condition
    clock: Clock
    limits: Limits

    def verify(self, evacuation: Evacuation, migrations: list[Migration]) -> list[str]:
        """Set the state of each migration by what is seen; returns what is wrong, as sentences."""
        troubles = self.locate(evacuation.job, migrations)
        moved = [m for m in migrations if m.state == MOVED]
        troubles += [f"{m.guest} moved, but its pinning was not verified" for m in moved if not m.pin_verified]
        return troubles + self._unreachable(evacuation, moved)

    def locate(self, job: str, migrations: list[Migration]) -> list[str]:
        """Set the state of each migration by what both ends say; returns what is wrong with those that stayed."""
        said = {m.guest: m.state for m in migrations}
        began = self.clock.now()
        while True:
            troubles = self._look(job, migrations, said)
            if all(m.state != UNCLEAR for m in migrations) or self.gives_up(began, self.limits.settle_timeout_s):
                return troubles
            self.clock.sleep(_LOOK_S)

    def can_be_asked(self, host: str) -> bool:
        """Whether the libvirt of a host answers."""
        found = self.cluster.host(host)
        return found is not None and self.look(found.address) is not None

    def head_is_cut_off(self) -> bool:
        """Whether most hosts are silent: then this host can't reach them, and they go on. Of many some are asked."""
        known = self.cluster.membership
        hosts = {host.name: host.address for host in (known.hosts if known else []) if host.pool != "defunct"}
        asked = sorted(hosts)[:: -(-len(hosts) // _ASKED)] if hosts else []
        views = self.clock.in_parallel(lambda name: self.look(hosts[name]), asked)
        return len(asked) > 1 and 2 * sum(view is None for view in views.values()) > len(asked)

    def gives_up(self, began: float, timeout_s: float) -> bool:
        """Whether that is over for what is waited for since ``began``; a head that is cut off waits for longer."""
        waited = self.clock.now() - began
        return waited > timeout_s and (waited > self.limits.cut_off_timeout_s or not self.head_is_cut_off())

    def _look(self, job: str, migrations: list[Migration], said: dict[str, str]) -> list[str]:
        addresses = {host.name: host.address for host in self.cluster.refresh().hosts}
        names = sorted({name for m in migrations for name in (m.source, m.destination)})
        views = self.clock.in_parallel(lambda name: self.look(addresses[name]) if name in addresses else None, names)
        job_is_over = self.cluster.job_is_over(job)
        troubles = []
        with self.changed:
            for m in migrations:
                source, destination = views[m.source], views[m.destination]
                m.state = outcome(m.guest, source, destination, said[m.guest], job_is_over)
                if m.state in (STAYED, UNCLEAR):
                    troubles.append(trouble(m, source, destination))
                    m.error = m.error or troubles[-1]
        return troubles

    def ask(self, evacuation: Evacuation, moved: list[Migration]) -> list[Arrival]:
        """Have the job's agents look at guests that have moved; may be repeated. Returns what was asked.

        Their words take a while to come: they can be asked for as soon as the source says that the guests have moved.
        """
        guests = self.cluster.refresh().guests
        addresses = {guest.name: guest.address for guest in guests}
        arrivals = [
            Arrival(m.guest, addresses[m.guest], self._peer(evacuation, m, guests))
            for m in moved
            if m.guest in addresses
        ]
        if arrivals:
            self.board.ask_about(evacuation.job, arrivals)
        return arrivals

    def _unreachable(self, evacuation: Evacuation, moved: list[Migration]) -> list[str]:
        """Return what is wrong with the network of moved guests: ranks are not to find out."""
        arrivals = self.ask(evacuation, moved)
        if not arrivals:
            return []
        began, timeout_s = self.clock.now(), self.limits.reach_timeout_s
        addresses = {arrival.guest: arrival.address for arrival in arrivals}
        silent = list(addresses)
        while True:
            answered = self.clock.in_parallel(lambda guest: self.answers(addresses[guest]), silent)
            silent = [guest for guest in silent if not answered[guest]]
            if not silent or self.gives_up(began, timeout_s):
                break
            self.clock.sleep(_CONNECT_S)

        def all_said() -> bool:
            return self.cluster.job_is_over(evacuation.job) or not self._missing(evacuation, arrivals)

        until = began + timeout_s
        while not self.clock.wait(all_said, until) and not self.gives_up(began, timeout_s):
            until = self.clock.now() + self.limits.retry_s
        troubles = [f"{guest} moved, but does not answer at {addresses[guest]}" for guest in silent]
        return troubles + ([] if all_said() else self._missing(evacuation, arrivals))

    def _missing(self, evacuation: Evacuation, arrivals: list[Arrival]) -> list[str]:
        """Return which words of the guests' agents are still missing, as sentences."""
        said = self.board.reports(evacuation.job, evacuation.epoch)
        words = [
            f"{one.guest} moved, but its agent does not say that its root file system answers"
            for one in arrivals
            if one.guest not in said.root
        ]
        return words + [
            f"{one.guest} moved, but {one.peer} does not reach it at {one.address}"
            for one in arrivals
            if one.peer and one.guest not in said.reached
        ]

    def _peer(self, evacuation: Evacuation, migration: Migration, guests: list[Guest]) -> str:
        """Return a guest of the job that is to reach a moved one: best one that does not move, on another host."""
        moving = set(self.board.notice(evacuation.job).affected)
        peers = [
            guest
            for guest in guests
            if guest.job == evacuation.job and guest.state != "lost" and guest.name != migration.guest
        ]
        best = min(
            peers, key=lambda one: (one.name in moving, one.host == migration.destination, one.name), default=None
        )
        return best.name if best else ""


def outcome(guest: str, source: View, destination: View, said: str, job_is_over: bool) -> str:
    """Return where a guest's move has come to: MOVED, STAYED, GONE (removed with its job) or UNCLEAR.

    ``said`` is how the move ended by the word of the program that did it, if it is one of ENDS. Of a host that failed
    and does not answer that word is taken, if the other host agrees.
    """
    if destination is None:
        # nothing moves any more, and the guest runs here: it may go elsewhere
        ended_badly = said in ENDS and said != SAID_MOVED
        return STAYED if ended_badly and source is not None and source.get(guest) == RUNNING else UNCLEAR
    if destination.get(guest) == RUNNING:
        if source is None:
            return MOVED if said == SAID_MOVED else UNCLEAR
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
