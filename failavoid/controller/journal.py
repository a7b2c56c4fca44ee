"""The controller's memory that outlives it: evacuations and their steps, notices, reports, the audit trail.

A step has two rows: `begun` is written before its side effect, `done` after it, so after a crash it is known
what may have happened. Nothing is ever deleted. Times are the head's clock.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from failavoid.shared.messages import Alarm, Evacuation, Notice, Step, from_dict, to_dict

_TABLES = """
CREATE TABLE IF NOT EXISTS evacuations (id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS steps (
  row INTEGER PRIMARY KEY, time REAL NOT NULL, evacuation TEXT NOT NULL REFERENCES evacuations,
  step TEXT NOT NULL, mark TEXT NOT NULL CHECK (mark IN ('begun', 'done')), detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS alarms (
  id TEXT PRIMARY KEY, time REAL NOT NULL, record TEXT NOT NULL, evacuation TEXT, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS notices (job TEXT PRIMARY KEY, serial INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS reports (
  job TEXT NOT NULL, epoch INTEGER NOT NULL, guest TEXT NOT NULL, state TEXT NOT NULL, time REAL NOT NULL,
  ranks INTEGER NOT NULL, PRIMARY KEY (job, epoch, guest, state));
CREATE TABLE IF NOT EXISTS requests (
  row INTEGER PRIMARY KEY, time REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL);
"""


class Journal:
    """The journal in the SQLite file ``path``, for any thread. What was written is on disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Close the file; the journal can't be used afterwards."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # -- evacuations ---------------------------------------------------------------------------------------

    def save(self, evacuation: Evacuation) -> None:
        """Write an evacuation's present state; its steps have rows of their own."""
        with self._writing() as db:
            _save(db, evacuation)

    def begin(self, evacuation: Evacuation, name: str, detail: str = "", at: float | None = None) -> None:
        """Note that a step begins, before its side effect; a step that is repeated keeps its first time."""
        at = time.time() if at is None else at
        with self._writing() as db:
            _save(db, evacuation)
            _add(db, evacuation.id, name, "begun", detail, at)
        if not any(step.name == name for step in evacuation.steps):
            evacuation.steps.append(Step(name, at, None, detail))

    def done(self, evacuation: Evacuation, name: str, detail: str = "", at: float | None = None) -> None:
        """Note that a step's side effect has happened, together with what it changed in ``evacuation``."""
        at = time.time() if at is None else at
        step = next(step for step in evacuation.steps if step.name == name)
        detail = detail or step.detail
        with self._writing() as db:
            _save(db, evacuation)
            _add(db, evacuation.id, name, "done", detail, at)
        step.done, step.detail = at, detail

    def evacuations(self) -> list[Evacuation]:
        """Every evacuation there ever was, oldest first, rebuilt from the rows."""
        found = {}
        for key, record in self._rows("SELECT id, record FROM evacuations ORDER BY rowid"):
            found[key] = from_dict(Evacuation, json.loads(record))
        rows = self._rows("SELECT evacuation, step, mark, detail, time FROM steps ORDER BY row")
        for key, name, mark, detail, at in rows:
            steps = found[key].steps
            step = next((step for step in steps if step.name == name), None)
            if step is None:
                steps.append(Step(name, at, None, detail))
            elif mark == "done":
                step.done, step.detail = at, detail
        return list(found.values())

    # -- alarms and requests -------------------------------------------------------------------------------

    def note_alarm(self, alarm: Alarm, evacuation: str | None, detail: str) -> None:
        """Note an alarm, and the evacuation it led to or why it led to none."""
        with self._writing() as db:
            db.execute(
                "INSERT OR IGNORE INTO alarms VALUES (?, ?, ?, ?, ?)",
                (alarm.id, time.time(), json.dumps(to_dict(alarm)), evacuation, detail),
            )

    def alarm(self, alarm_id: str) -> tuple[str | None, str] | None:
        """Return (evacuation, why none) of an alarm that was seen before, or None."""
        rows = self._rows("SELECT evacuation, detail FROM alarms WHERE id = ?", alarm_id)
        return (rows[0][0], rows[0][1]) if rows else None

    def note_request(self, who: str, what: str) -> None:
        """Note what a person asked for."""
        with self._writing() as db:
            db.execute("INSERT INTO requests (time, who, what) VALUES (?, ?, ?)", (time.time(), who, what))

    # -- notices and reports -------------------------------------------------------------------------------

    def save_notice(self, notice: Notice) -> None:
        """Write a job's notice as it now is."""
        with self._writing() as db:
            db.execute(
                "INSERT INTO notices VALUES (?, ?, ?)"
                " ON CONFLICT (job) DO UPDATE SET serial = excluded.serial, record = excluded.record",
                (notice.job, notice.serial, json.dumps(to_dict(notice))),
            )

    def notices(self) -> list[Notice]:
        """Return every job's notice as it was left."""
        return [from_dict(Notice, json.loads(row[0])) for row in self._rows("SELECT record FROM notices")]

    def note_report(self, job: str, epoch: int, guest: str, state: str, ranks: int, at: float) -> None:
        """Note the arrival of a guest's word; the first one counts."""
        with self._writing() as db:
            db.execute(
                "INSERT OR IGNORE INTO reports VALUES (?, ?, ?, ?, ?, ?)",
                (job, epoch, guest, state, at, ranks),
            )

    def reports(self, job: str, epoch: int) -> list[tuple[str, str, float]]:
        """Return (guest, state, time of arrival) of what guests said in an epoch of a job."""
        return self._rows("SELECT guest, state, time FROM reports WHERE job = ? AND epoch = ?", job, epoch)


def _save(db: sqlite3.Connection, evacuation: Evacuation) -> None:
    record = to_dict(evacuation)
    record["steps"] = []
    db.execute(
        "INSERT INTO evacuations VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record",
        (evacuation.id, json.dumps(record)),
    )


def _add(db: sqlite3.Connection, evacuation: str, step: str, mark: str, detail: str, at: float) -> None:
    db.execute(
        "INSERT INTO steps (time, evacuation, step, mark, detail) VALUES (?, ?, ?, ?, ?)",
        (at, evacuation, step, mark, detail),
    )
