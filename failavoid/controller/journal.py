"""The controller's memory that outlives it: evacuations and their steps, notices, reports, the audit log.

A step has two rows: `begun` is written before its side effect, `done` after it, so after a crash it is known
what may have happened. Steps, alarms and requests are events of one table, whose numbers give their order. Nothing is
ever deleted. Times are the head's clock.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from failavoid.services import Changes
from failavoid.shared.messages import (
    Alarm,
    ControllerStatus,
    Evacuation,
    Event,
    Notice,
    Relocation,
    Step,
    from_dict,
    to_dict,
)

ITSELF = "controller"  # who takes steps
STEP, ALARM, REQUEST, WITHDRAWAL = "step", "alarm", "request", "withdrawal"
_BEGUN, _DONE = "begun", "done"

_TABLES = """
CREATE TABLE IF NOT EXISTS evacuations (id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
  number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
  subject TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of_a_kind ON events (what, subject);
CREATE TABLE IF NOT EXISTS notices (job TEXT PRIMARY KEY, serial INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS reports (
  job TEXT NOT NULL, epoch INTEGER NOT NULL, guest TEXT NOT NULL, state TEXT NOT NULL, time REAL NOT NULL,
  ranks INTEGER NOT NULL, PRIMARY KEY (job, epoch, guest, state));
CREATE TABLE IF NOT EXISTS relocations (id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS status (one INTEGER PRIMARY KEY CHECK (one = 1), record TEXT NOT NULL);
"""


class Journal:
    """The journal in the SQLite file ``path``, for any thread. What was written is on disk.

    ``news`` grows with every event.
    """

    def __init__(self, path: Path | str, now: Callable[[], float] = time.time) -> None:
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._now = now
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_TABLES)
        self.news = Changes()

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

    def save(self, *evacuations: Evacuation) -> None:
        """Write evacuations' present state, of all or of none; their steps are events."""
        with self._writing() as db:
            for evacuation in evacuations:
                _save(db, evacuation)

    def begin(self, evacuation: Evacuation, name: str, detail: str = "", at: float | None = None) -> None:
        """Note that a step begins, before its side effect; a step that is repeated keeps its first time."""
        at = self._now() if at is None else at
        with self._writing() as db:
            _save(db, evacuation)
            _add_step(db, evacuation.id, name, _BEGUN, detail, at)
        if not any(step.name == name for step in evacuation.steps):
            evacuation.steps.append(Step(name, at, None, detail))
        self.news.bump()

    def done(self, evacuation: Evacuation, name: str, detail: str = "", at: float | None = None) -> None:
        """Note that a step's side effect has happened, together with what it changed in ``evacuation``."""
        at = self._now() if at is None else at
        step = next(step for step in evacuation.steps if step.name == name)
        detail = detail or step.detail
        with self._writing() as db:
            _save(db, evacuation)
            _add_step(db, evacuation.id, name, _DONE, detail, at)
        step.done, step.detail = at, detail
        self.news.bump()

    def evacuations(self) -> list[Evacuation]:
        """Every evacuation there ever was, oldest first, rebuilt from the rows."""
        found = {}
        for key, record in self._rows("SELECT id, record FROM evacuations ORDER BY rowid"):
            found[key] = from_dict(Evacuation, json.loads(record))
        for key, text, at in self._rows(
            "SELECT subject, detail, time FROM events WHERE what = ? ORDER BY number", STEP
        ):
            said = json.loads(text)
            steps = found[key].steps
            step = next((step for step in steps if step.name == said["step"]), None)
            if step is None:
                steps.append(Step(said["step"], at, None, said["words"]))
            elif said["mark"] == _DONE:
                step.done, step.detail = at, said["words"]
        return list(found.values())

    # -- relocations ---------------------------------------------------------------------------------------

    def save_relocation(self, relocation: Relocation) -> None:
        """Write a relocation's present state."""
        with self._writing() as db:
            record = json.dumps(to_dict(relocation))
            db.execute("INSERT OR REPLACE INTO relocations VALUES (?, ?)", (relocation.id, record))

    def relocation(self, name: str) -> Relocation | None:
        """Return a relocation."""
        rows = self._rows("SELECT record FROM relocations WHERE id = ?", name)
        return from_dict(Relocation, json.loads(rows[0][0])) if rows else None

    def open_relocations(self) -> list[Relocation]:
        """Return the relocations that have not ended."""
        rows = self._rows("SELECT record FROM relocations WHERE json_extract(record, '$.ended') IS NULL")
        return [from_dict(Relocation, json.loads(record)) for (record,) in rows]

    # -- events --------------------------------------------------------------------------------------------

    def note_alarm(self, alarm: Alarm, who: str, outcome: str) -> None:
        """Note an alarm and what came of it."""
        where = {"domain": alarm.domain} if alarm.domain else {"host": alarm.host, "job": alarm.job}
        said = {"alarm": alarm.id, **where, "rule": alarm.rule, "outcome": outcome, "document": to_dict(alarm)}
        self._note(who, ALARM, alarm.id, said)

    def alarm(self, alarm_id: str) -> str | None:
        """Return what came of an alarm that was seen before, or None."""
        rows = self._rows("SELECT detail FROM events WHERE what = ? AND subject = ? LIMIT 1", ALARM, alarm_id)
        return str(json.loads(rows[0][0])["outcome"]) if rows else None

    def alarm_document(self, alarm_id: str) -> Alarm | None:
        """Return an alarm that was seen before, or None."""
        rows = self._rows("SELECT detail FROM events WHERE what = ? AND subject = ? LIMIT 1", ALARM, alarm_id)
        return from_dict(Alarm, json.loads(rows[0][0])["document"]) if rows else None

    def note_withdrawal(self, alarm_id: str, who: str, reason: str, outcome: str) -> None:
        """Note that an alarm does not hold any more."""
        self._note(who, WITHDRAWAL, alarm_id, {"alarm": alarm_id, "reason": reason, "outcome": outcome})

    def is_withdrawn(self, alarm_id: str) -> bool:
        """Whether an alarm was withdrawn, also before it arrived."""
        return bool(self._rows("SELECT 1 FROM events WHERE what = ? AND subject = ?", WITHDRAWAL, alarm_id))

    def note_request(self, who: str, act: str, subject: str, reason: str = "", outcome: str = "") -> None:
        """Note what a person asked for: ``act`` is a verb, ``subject`` what it is done to."""
        self._note(who, REQUEST, subject, {"act": act, "subject": subject, "reason": reason, "outcome": outcome})

    def _note(self, who: str, what: str, subject: str, detail: dict[str, Any]) -> None:
        with self._writing() as db:
            _add(db, self._now(), who, what, subject, detail)
        self.news.bump()

    def events(self, after: int, limit: int = 1000) -> list[Event]:
        """Return at most ``limit`` events after number ``after``, oldest first."""
        rows = self._rows(
            "SELECT number, time, who, what, subject, detail FROM events WHERE number > ? ORDER BY number LIMIT ?",
            after,
            limit,
        )
        found = []
        for number, at, who, what, subject, text in rows:
            detail = json.loads(text)
            if what == STEP:
                detail["evacuation"] = subject
            found.append(Event(number, at, who, what, detail))
        return found

    # -- whether new evacuations are stopped ---------------------------------------------------------------

    def save_status(self, status: ControllerStatus) -> None:
        """Write whether new evacuations are stopped."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO status VALUES (1, ?)", (json.dumps(to_dict(status)),))

    def status(self) -> ControllerStatus | None:
        """Return what was written last, or None."""
        rows = self._rows("SELECT record FROM status")
        return from_dict(ControllerStatus, json.loads(rows[0][0])) if rows else None

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
        """Note the arrival of a word about a guest; the first one counts."""
        with self._writing() as db:
            db.execute(
                "INSERT OR IGNORE INTO reports VALUES (?, ?, ?, ?, ?, ?)",
                (job, epoch, guest, state, at, ranks),
            )

    def reports(self, job: str, epoch: int) -> list[tuple[str, str, float]]:
        """Return (guest, state, time of arrival) of what was said of guests in an epoch of a job."""
        return self._rows("SELECT guest, state, time FROM reports WHERE job = ? AND epoch = ?", job, epoch)


def _save(db: sqlite3.Connection, evacuation: Evacuation) -> None:
    record = to_dict(evacuation)
    record["steps"] = []
    db.execute(
        "INSERT INTO evacuations VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record",
        (evacuation.id, json.dumps(record)),
    )


def _add_step(db: sqlite3.Connection, evacuation: str, step: str, mark: str, words: str, at: float) -> None:
    _add(db, at, ITSELF, STEP, evacuation, {"step": step, "mark": mark, "words": words})


def _add(db: sqlite3.Connection, at: float, who: str, what: str, subject: str, detail: dict[str, Any]) -> None:
    db.execute(
        "INSERT INTO events (time, who, what, subject, detail) VALUES (?, ?, ?, ?, ?)",
        (at, who, what, subject, json.dumps(detail)),
    )
