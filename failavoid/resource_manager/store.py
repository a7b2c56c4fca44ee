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


@dataclass
class State:
    """All that is known, by name. ``reserved`` are places on a destination, by guest."""

    hosts: dict[str, Host] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    reserved: dict[str, Placement] = field(default_factory=dict)
    public_keys: dict[str, str] = field(default_factory=dict)  # guest -> its SSH host key, public


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
            held: dict[str, Any] = getattr(self._state, kind)
            held[name] = (
                json.loads(document) if kind == "public_keys" else from_dict(_KINDS[kind], json.loads(document))
            )
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
            self._database.execute("BEGIN IMMEDIATE")
            for key in before.keys() - after.keys():
                self._database.execute("DELETE FROM documents WHERE kind=? AND name=?", key)
            for key, document in after.items():
                if before.get(key) != document:
                    self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (*key, document))
            self._set_number("version", self.changes.version + 1)
            self._database.execute("COMMIT")
            self.changes.bump()

    def membership(self) -> Membership:
        """The whole picture, as others see it."""
        with self._lock:
            version = self.changes.version
            picture = {
                "version": version,
                "hosts": [to_dict(host) for host in self._state.hosts.values()],
                "guests": [to_dict(guest) for guest in self._state.guests.values()],
                "jobs": [to_dict(job) for job in self._state.jobs.values()],
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
        for name, key in self._state.public_keys.items():
            documents["public_keys", name] = json.dumps(key)
        return documents

    def _restore(self, documents: dict[tuple[str, str], str]) -> None:
        for kind in (*_KINDS, "public_keys"):
            getattr(self._state, kind).clear()
        for (kind, name), document in documents.items():
            loaded = json.loads(document)
            getattr(self._state, kind)[name] = loaded if kind == "public_keys" else from_dict(_KINDS[kind], loaded)
