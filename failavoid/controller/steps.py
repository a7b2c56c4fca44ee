"""The steps of an evacuation: `begun` in the journal before a side effect, `done` after it."""

from __future__ import annotations

import logging
import threading

from failavoid.controller.journal import Journal
from failavoid.shared.messages import Evacuation, Step

log = logging.getLogger(__name__)

# Steps that are taken again with the next spare, under a name of their own.
_EACH_ATTEMPT = (
    "leased",
    "noticed",
    "gathered",
    "prepare_destination",
    "migrating",
    "verified",
    "committed",
    "attempt_failed",
)


class Steps:
    """Reads and writes the steps of ``evacuation``; ``changed`` is notified of those that are done."""

    def __init__(self, evacuation: Evacuation, journal: Journal, changed: threading.Condition) -> None:
        self._evacuation = evacuation
        self._journal = journal
        self._changed = changed

    def begin(self, name: str, detail: str = "", at: float | None = None) -> None:
        """Note that a step begins; one that is repeated keeps its first time."""
        with self._changed:
            self._journal.begin(self._evacuation, self._name(name), detail, at)

    def done(self, name: str, state: str | None = None, detail: str = "", at: float | None = None) -> None:
        """Note that a step's side effect has happened, and the evacuation's new state, if it has one."""
        with self._changed:
            if state is not None:
                log.info("%s: %s %s", self._evacuation.id, state, detail)
                self._evacuation.state = state
            self._journal.done(self._evacuation, self._name(name), detail, at)
            self._changed.notify_all()

    def next_attempt(self, reason: str) -> None:
        """Note that the present attempt has come to nothing: the next one begins where a spare is taken."""
        with self._changed:
            evacuation, name = self._evacuation, self._name("attempt_failed")
            evacuation.attempt += 1
            evacuation.state, evacuation.spare, evacuation.lease = "PREDICTED", None, None
            evacuation.packed_onto = []
            self._journal.done(evacuation, name, reason)
            self._changed.notify_all()

    def find(self, name: str) -> Step | None:
        """Return a step of the present attempt, if it has begun."""
        wanted = self._name(name)
        return next((step for step in self._evacuation.steps if step.name == wanted), None)

    def first(self, name: str) -> Step:
        """Return a step as the earliest attempt has begun it that came so far."""
        return next(step for step in self._evacuation.steps if step.name.split()[0] == name)

    def begun(self, name: str) -> bool:
        """Whether a step of the present attempt has begun."""
        return self.find(name) is not None

    @property
    def ending(self) -> bool:
        """Whether the evacuation has taken a way back."""
        return self.begun("cancelled") or self.begun("failed")

    def is_done(self, name: str) -> bool:
        """Whether a step of the present attempt is done."""
        step = self.find(name)
        return step is not None and step.done is not None

    def _name(self, step: str) -> str:
        attempt = self._evacuation.attempt
        return f"{step} {attempt}" if attempt > 1 and step in _EACH_ATTEMPT else step
