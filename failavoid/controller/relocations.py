"""Guests that no ranks run in yet move to the hosts of the job that takes them, as the resource manager asks.

The playbook is that of an evacuation, without a notice and without a gate. What is asked for is in the journal before
anything is done, so a restarted controller attaches to the moves and ends them.
"""

from __future__ import annotations

import logging
import sqlite3

from failavoid.controller.moving import Move
from failavoid.controller.playbooks import MoveOrder
from failavoid.controller.surroundings import Surroundings
from failavoid.controller.verification import UNCLEAR
from failavoid.shared.messages import Migration, Relocation, RelocationRequest

log = logging.getLogger(__name__)


class Relocations:
    """The relocations that are under way, by name, each with its thread. For any thread."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._open = {one.id: one for one in around.journal.open_relocations()}

    def resume(self) -> None:
        """Take up the relocations that were under way when the controller ended."""
        for relocation in list(self._open.values()):
            log.warning("%s: taken up again", relocation.id)
            self._start(relocation)

    def find(self, name: str) -> Relocation | None:
        """Return a relocation, also one that has ended."""
        return self._open.get(name) or self._around.journal.relocation(name)

    def concern(self, host: str) -> bool:
        """Whether guests are on their way from or to a host. For who holds the lock of the controller's memory."""
        return any(
            host in (migration.source, migration.destination)
            for relocation in list(self._open.values())
            for migration in relocation.migrations
        )

    def begin(self, request: RelocationRequest, who: str) -> Relocation:
        """Move guests to where they have places; asked again, the same. Raises ValueError, ManagerError."""
        membership = self._around.cluster.refresh()
        guests = {guest.name: guest for guest in membership.guests}
        hosts = {host.name for host in membership.hosts}
        with self._around.changed:
            if known := self.find(request.id):
                return known
            unknown = [p.guest for p in request.placements if p.guest not in guests]
            unknown += [p.host for p in request.placements if p.host not in hosts]
            if unknown or not request.placements:
                raise ValueError(f"relocation {request.id}: there is no {', '.join(unknown) or 'guest in it'}")
            migrations = [
                Migration(
                    *(p.guest, guests[p.guest].host, p.host, p.cores, p.numa_node), address=guests[p.guest].address
                )
                for p in request.placements
            ]
            relocation = Relocation(request.id, request.job, migrations, self._around.clock.now())
            self._around.journal.save_relocation(relocation)
            words = ", ".join(f"{m.guest} from {m.source} to {m.destination}" for m in migrations)
            self._around.journal.note_request(who, "relocate", relocation.id, f"for job {request.job}", words)
            self._open[relocation.id] = relocation
        log.info("%s: %s for job %s", relocation.id, words, relocation.job)
        self._start(relocation)
        return relocation

    def _start(self, relocation: Relocation) -> None:
        self._around.clock.start(lambda: self._run(relocation), relocation.id)

    def _run(self, relocation: Relocation) -> None:
        around = self._around
        try:
            try:
                troubles = self._move(relocation)
            except sqlite3.Error:
                raise
            except Exception as error:
                log.exception("%s: an error of the controller itself", relocation.id)
                troubles = [f"the controller made an error ({type(error).__name__}: {error}); its log has the details"]
                with around.changed:
                    for migration in relocation.migrations:
                        migration.state = UNCLEAR
            with around.changed:
                relocation.error, relocation.ended = "; ".join(troubles), around.clock.now()
                around.journal.save_relocation(relocation)
                del self._open[relocation.id]
                around.changed.notify_all()
        except sqlite3.Error:
            log.critical("%s: the journal can't be used: the controller ends", relocation.id, exc_info=True)
            around.give_up()
            return
        around.news.bump()
        states = ", ".join(f"{m.guest} {m.state}" for m in relocation.migrations)
        log.log(logging.ERROR if troubles else logging.INFO, "%s: %s %s", relocation.id, states, relocation.error)

    def _move(self, relocation: Relocation) -> list[str]:
        """Move the guests, and see where they are; returns what is wrong, as sentences."""
        around = self._around
        around.cluster.wait_until_known(around.clock, around.limits.retry_s)
        membership = around.cluster.refresh()
        hosts = {host.name: host for host in membership.hosts}
        moving = {migration.guest for migration in relocation.migrations}
        memory_kb = sum(guest.memory_kb for guest in membership.guests if guest.name in moving)
        order = MoveOrder(relocation.id, 1, relocation.migrations, hosts, memory_kb, gated=False)
        move = Move(order, around.migrate, around.abort, around.changed, around.clock)
        move.start()
        around.clock.wait(move.has_said_all)
        result, _ = move.settle()
        return [*result.failures, *around.verifier.locate(relocation.job, relocation.migrations)]
