"""One attempt to move guests: the playbook, run in a thread of its own and heard while it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from failavoid.controller.clock import Clock
from failavoid.controller.playbooks import (
    CANCELLED,
    ENDS,
    AbortMoves,
    MigrateGuests,
    MoveOrder,
    moved_guests,
    note_results,
    verified_guests,
)
from failavoid.playbook_runner import PlaybookResult

log = logging.getLogger(__name__)

_KILLED_S = 10.0  # for a playbook that is killed to be gone


class Move:
    """The playbook of ``order``. ``changed`` is notified of each of its words."""

    def __init__(
        self, order: MoveOrder, migrate: MigrateGuests, abort: AbortMoves, changed: threading.Condition, clock: Clock
    ) -> None:
        self.order = order
        self.result: PlaybookResult | None = None
        self._migrate = migrate
        self._abort = abort
        self._changed = changed
        self._clock = clock
        self._heard = PlaybookResult(-1, "running", Path())  # what the tasks have said so far
        self._stop = False

    def start(self) -> None:
        """Start the playbook: it prepares the destination and waits at the gate."""
        self._clock.start(self._run, f"{self.order.name}-playbook")

    def _run(self) -> None:
        try:
            result = self._migrate(self.order, self._hear, lambda: self._stop)
        except Exception as error:
            log.exception("%s: the playbook could not be run", self.order.name)
            result = PlaybookResult(254, "failed", Path(), {}, [f"it could not be run: {error}"])
        with self._changed:
            self.result = result
            self._changed.notify_all()

    def _hear(self, host: str, task: str, said: dict[str, Any]) -> None:
        """Take a task's result while the playbook runs."""
        with self._changed:
            self._heard.host_results.setdefault(host, {})[task] = said
            self._changed.notify_all()

    def all_have_moved(self) -> bool:
        """Whether their source says of all guests that they have moved, verified or not."""
        return moved_guests(self._heard) >= {migration.guest for migration in self.order.migrations}

    def has_said_all(self) -> bool:
        """Whether it has ended, or named every guest as verified: its own end costs time that ranks need not wait."""
        return self.result is not None or self.has_verified_all()

    def has_verified_all(self) -> bool:
        """Whether every guest was named as arrived, running and pinned."""
        return verified_guests(self._heard) >= {migration.guest for migration in self.order.migrations}

    def settle(self) -> tuple[PlaybookResult, list[str]]:
        """Note what is said of each guest once all is said; returns the playbook's result, and who it says nothing of.

        Where it says nothing of a guest, its move may go on without it: the move is given up, so that nothing moves
        any more once this returns and the source can be reached.
        """
        result = self.result or self._heard
        with self._changed:
            named = note_results(self.order.migrations, result)
        left = [migration.guest for migration in self.order.migrations if migration.guest not in named]
        if left:
            log.warning("%s: nothing is said of %s: their moves are given up", self.order.name, ", ".join(left))
            try:
                given_up = self._abort(self.order)
            except OSError as error:
                given_up = PlaybookResult(254, "failed", Path(), {}, [f"it could not be run: {error}"])
            with self._changed:
                note_results([m for m in self.order.migrations if m.guest in left], given_up)
                for migration in self.order.migrations:
                    if given_up.ok and migration.state not in ENDS:
                        migration.state, migration.error = CANCELLED, "its move had not begun"
            result.failures += [f"giving up: {failure}" for failure in given_up.failures]
        return result, left

    def end(self, until: float, wait: Callable[[Callable[[], object], float], object]) -> None:
        """Wait for the playbook, whose tasks find the gate cancelled; kill it if they don't."""
        if not wait(lambda: self.result, until):
            self._stop = True
            wait(lambda: self.result, self._clock.now() + _KILLED_S)
