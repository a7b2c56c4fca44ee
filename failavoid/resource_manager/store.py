"""The resource manager's state: in memory for reading, every change in SQLite before it is seen.

A change is written and committed before anybody is told of it, so that after a crash the state is one that was
told, or a later one.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from failavoid.services import Changes
from failavoid.shared.messages import Guest, Host, Job, Lease, Membership, Placement, from_dict, to_dict

_KINDS: dict[str, type] = {"hosts": Host, "guests": Guest, "jobs": Job, "leases": Lease, "reserved": Placement}
_WORDS = ("public_keys", "terms")  # guest -> a word
_ENDED_JOBS = 200  # so many are remembered


@dataclass
class State:
    """All that is known, by name.

    ``reserved`` are places on a destination, by guest; ``public_keys`` the guests' SSH host keys; ``terms`` what a
    guest was told at its boot, as a digest.
    """

    hosts: dict[str, Host] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    reserved: dict[str, Placement] = field(default_factory=dict)
    public_keys: dict[str, str] = field(default_factory=dict)
    terms: dict[str, str] = field(default_factory=dict)

    def forget(self, guest: str) -> None:
        """Remove a guest from the picture."""
        for held in (self.guests, self.public_keys, self.terms, self.reserved):
            held.pop(guest, None)

    def forget_old_jobs(self) -> None:
        """Remember the last jobs alone."""
        ended = [job for job in self.jobs.values() if job.ended is not None]
        for job in sorted(ended, key=lambda job: job.ended or 0.0)[:-_ENDED_JOBS]:
            del self.jobs[job.id]


class Store:
    """Holds the state; `change` is the only way to alter it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(folder / "state.db", check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS documents (kind TEXT, name TEXT, document TEXT, PRIMARY KEY (kind, name))"
        )
        self._lock = threading.RLock()
        self._state = State()
        for kind, name, document in self._database.execute("SELECT kind, name, document FROM documents"):
            if kind == "numbers":
                continue
            self._take(kind, name, document)
        self.changes = Changes(self._number("version"))

    @contextmanager
    def change(self) -> Iterator[State]:
        """Alter the state; written at the end as a whole, or not at all if the block raises."""
        with self._lock:
            before = self._documents()
            try:
                yield self._state
            except BaseException:
                self._restore(before)
                raise
            after = self._documents()
            if after == before:
                return
            try:
                self._write(before, after)
            except BaseException:  # a full disk: what could not be written is not so
                self._restore(before)
                raise
            self.changes.bump()

    def _write(self, before: dict[tuple[str, str], str], after: dict[tuple[str, str], str]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for key in before.keys() - after.keys():
                self._database.execute("DELETE FROM documents WHERE kind=? AND name=?", key)
            for key, document in after.items():
                if before.get(key) != document:
                    self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (*key, document))
            self._set_number("version", self.changes.version + 1)
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def membership(self) -> Membership:
        """The whole picture, as others see it."""
        with self._lock:
            version = self.changes.version
            picture = {
                "version": version,
                "hosts": [to_dict(self._state.hosts[name]) for name in sorted(self._state.hosts)],
                "guests": [to_dict(self._state.guests[name]) for name in sorted(self._state.guests)],
                "jobs": [to_dict(job) for job in sorted(self._state.jobs.values(), key=lambda job: job.created)],
            }
        return from_dict(Membership, picture)

    def next_number(self, of: str) -> int:
        """A number that is given out once."""
        with self._lock:
            number = self._number(of) + 1
            self._set_number(of, number)
            return number

    def _number(self, of: str) -> int:
        row = self._database.execute("SELECT document FROM documents WHERE kind='numbers' AND name=?", (of,)).fetchone()
        return int(row[0]) if row else 0

    def _set_number(self, of: str, number: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO documents VALUES ('numbers', ?, ?)", (of, str(number)))

    def _documents(self) -> dict[tuple[str, str], str]:
        documents = {}
        for kind in _KINDS:
            for name, message in getattr(self._state, kind).items():
                documents[kind, name] = json.dumps(to_dict(message), sort_keys=True)
        for kind in _WORDS:
            for name, word in getattr(self._state, kind).items():
                documents[kind, name] = json.dumps(word)
        return documents

    def _restore(self, documents: dict[tuple[str, str], str]) -> None:
        for kind in (*_KINDS, *_WORDS):
            getattr(self._state, kind).clear()
        for (kind, name), document in documents.items():
            self._take(kind, name, document)

    def _take(self, kind: str, name: str, document: str) -> None:
        held: dict[str, Any] = getattr(self._state, kind)
        loaded = json.loads(document)
        held[name] = loaded if kind in _WORDS else from_dict(_KINDS[kind], loaded)
