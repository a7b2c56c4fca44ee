"""The resource manager's state: in memory for reading, every change in SQLite before it is seen.

A change is written and committed before anybody is told of it, so that after a crash the state is one that was
told, or a later one. What the change was, and whose, is written with it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from failavoid.resource_manager.state import KINDS, WORDS, State
from failavoid.services import Changes
from failavoid.shared.messages import Event, Events, Membership, from_dict, to_dict

EVENTS_KEPT = 100_000
_EVENTS_AT_ONCE = 1000
_TABLES = """
CREATE TABLE IF NOT EXISTS documents (kind TEXT, name TEXT, document TEXT, PRIMARY KEY (kind, name));
CREATE TABLE IF NOT EXISTS events (
  number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL, who TEXT, what TEXT, detail TEXT);
"""


@dataclass(frozen=True)
class _Saved:
    """A part of the state as it is in the database; ``message`` is a copy, to tell whether the part has changed."""

    document: str
    message: Any = field(compare=False)


_Documents = dict[tuple[str, str], _Saved]


class Store:
    """Holds the state; `change` is the only way to alter it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(folder / "state.db", check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_TABLES)
        self._lock = threading.RLock()
        self._depth = 0
        self._state = State()
        self._saved: _Documents = {}
        for kind, name, document in self._database.execute("SELECT kind, name, document FROM documents"):
            if kind != "numbers":
                self._take(kind, name, document)
        self._saved = self._documents()
        self.changes = Changes(self._number("version"))
        self.news = Changes(self._last_event())  # the events' own: most changes are none

    @contextmanager
    def change(self) -> Iterator[State]:
        """Alter the state; written at the end as a whole, or not at all if the block raises."""
        with self._lock:
            if self._depth:
                raise RuntimeError("a change within a change would be written by halves")
            self._depth = 1
            try:
                yield self._state
                self._state.settle()
                after = self._documents()
                if after != self._saved or self._state.noted:
                    self._write(self._saved, after)
            except BaseException:  # also a full disk: what could not be written is not so
                self._restore(self._saved)
                raise
            finally:
                self._depth = 0
            noted, self._state.noted = self._state.noted, []
            if after != self._saved:
                self._saved = after
                self.changes.bump()
            for _ in noted:
                self.news.bump()

    def _write(self, before: _Documents, after: _Documents) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for key in before.keys() - after.keys():
                self._database.execute("DELETE FROM documents WHERE kind=? AND name=?", key)
            for key, saved in after.items():
                if before.get(key) != saved:
                    document = (*key, saved.document)
                    self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", document)
            if after != before:
                self._set_number("version", self.changes.version + 1)
            for who, what, detail in self._state.noted:
                row = (time.time(), who, what, json.dumps(detail))
                self._database.execute("INSERT INTO events (time, who, what, detail) VALUES (?, ?, ?, ?)", row)
            if self._state.noted:
                self._database.execute("DELETE FROM events WHERE number <= ?", (self._last_event() - EVENTS_KEPT,))
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextmanager
    def view(self) -> Iterator[State]:
        """Look at the state, which stands still meanwhile and is not to be altered."""
        with self._lock:
            yield self._state

    def membership(self) -> Membership:
        """The whole picture, as others see it; a copy."""
        return from_dict(Membership, self.picture())

    def picture(self) -> dict[str, Any]:
        """The membership in plain dicts and lists, ready for JSON."""
        with self._lock:
            state = self._state
            return {
                "version": self.changes.version,
                "hosts": [to_dict(state.hosts[name]) for name in sorted(state.hosts)],
                "guests": [to_dict(state.guests[name]) for name in sorted(state.guests)],
                "jobs": [to_dict(job) for job in sorted(state.jobs.values(), key=lambda job: job.created)],
                "differences": [to_dict(state.differences[name]) for name in sorted(state.differences)],
            }

    def events(self, after: int) -> Events:
        """The audit log after a number: the oldest thousand of them, and the number to ask after next."""
        with self._lock:
            rows = self._database.execute(
                "SELECT number, time, who, what, detail FROM events WHERE number > ? ORDER BY number LIMIT ?",
                (after, _EVENTS_AT_ONCE),
            ).fetchall()
            last = rows[-1][0] if rows else self._last_event()
        return Events(
            [Event(number, at, who, what, json.loads(detail)) for number, at, who, what, detail in rows], last
        )

    def next_number(self, of: str) -> int:
        """A number that is given out once."""
        with self._lock:
            number = self._number(of) + 1
            self._set_number(of, number)
            return number

    def _last_event(self) -> int:
        row = self._database.execute("SELECT MAX(number) FROM events").fetchone()
        return int(row[0] or 0)

    def _number(self, of: str) -> int:
        row = self._database.execute("SELECT document FROM documents WHERE kind='numbers' AND name=?", (of,)).fetchone()
        return int(row[0]) if row else 0

    def _set_number(self, of: str, number: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO documents VALUES ('numbers', ?, ?)", (of, str(number)))

    def _documents(self) -> _Documents:
        """The state as it is to be saved; what has not changed is what was saved, and is not written out again."""
        documents = {}
        for kind in (*KINDS, *WORDS):
            for name, message in getattr(self._state, kind).items():
                saved = self._saved.get((kind, name))
                if saved is None or saved.message != message:
                    document = json.dumps(message if kind in WORDS else to_dict(message), sort_keys=True)
                    saved = _Saved(document, _load(kind, document))
                documents[kind, name] = saved
        return documents

    def _restore(self, documents: _Documents) -> None:
        self._state.noted = []
        for kind in (*KINDS, *WORDS):
            getattr(self._state, kind).clear()
        for (kind, name), saved in documents.items():
            self._take(kind, name, saved.document)

    def _take(self, kind: str, name: str, document: str) -> None:
        held: dict[str, Any] = getattr(self._state, kind)
        held[name] = _load(kind, document)


def _load(kind: str, document: str) -> Any:
    loaded = json.loads(document)
    return loaded if kind in WORDS else from_dict(KINDS[kind], loaded)
