"""What the monitor keeps between its runs: predictions, alarms, what was learned. One SQLite file.

Without a folder for it (setting `state`) it is in memory, and gone with the process.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from failavoid.prediction.models import BINS, Distribution
from failavoid.prediction.scoring import Seen
from failavoid.shared.messages import Alarm, Finding, Prediction, RuleEvent, from_dict, to_dict

KEPT = 10000  # documents of each kind
Document = TypeVar("Document", Alarm, Finding, Prediction, RuleEvent)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
  kind TEXT NOT NULL, id TEXT NOT NULL, time REAL NOT NULL, document TEXT NOT NULL, PRIMARY KEY (kind, id));
CREATE INDEX IF NOT EXISTS documents_by_time ON documents (kind, time);
CREATE TABLE IF NOT EXISTS distributions (
  application TEXT NOT NULL, metric TEXT NOT NULL, runs INTEGER NOT NULL, counts BLOB NOT NULL,
  PRIMARY KEY (application, metric));
CREATE TABLE IF NOT EXISTS running (
  job TEXT NOT NULL, metric TEXT NOT NULL, application TEXT NOT NULL, counts BLOB NOT NULL,
  PRIMARY KEY (job, metric));
CREATE TABLE IF NOT EXISTS calibrations (mode TEXT PRIMARY KEY, seen TEXT NOT NULL);
"""


class State:
    """Written by the judging thread, read by the API's."""

    def __init__(self, folder: str) -> None:
        path = str(Path(folder) / "monitor.db") if folder else ":memory:"
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")  # the last moments may be lost with the machine, no more
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Write what is left."""
        with self._lock:
            self._database.close()

    def put(self, ident: str, document: Document) -> None:
        """Keep a document, or its new state; the oldest of its kind goes when there are more than `KEPT`."""
        kind = type(document).__name__
        row = (kind, ident, document.time, json.dumps(to_dict(document)))
        with self._lock:
            known = self._database.execute("SELECT 1 FROM documents WHERE kind=? AND id=?", (kind, ident)).fetchone()
            self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", row)
            if known is None:
                self._database.execute(
                    "DELETE FROM documents WHERE kind=?1 AND time < "
                    "(SELECT time FROM documents WHERE kind=?1 ORDER BY time DESC LIMIT 1 OFFSET ?2)",
                    (kind, KEPT),
                )

    def all(self, kind: type[Document]) -> list[Document]:
        """All documents of a kind, the oldest first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT document FROM documents WHERE kind=? ORDER BY time, id", (kind.__name__,)
            ).fetchall()
        return [from_dict(kind, json.loads(row[0])) for row in rows]

    def distribution(self, application: str, metric: str) -> Distribution:
        """What was learned of an application; an empty one if nothing was."""
        with self._lock:
            row = self._database.execute(
                "SELECT runs, counts FROM distributions WHERE application=? AND metric=?", (application, metric)
            ).fetchone()
        if row is None or len(row[1]) != 8 * BINS:
            return Distribution.empty()
        return Distribution(np.frombuffer(row[1], dtype=np.float64).copy(), row[0])

    def keep_distribution(self, application: str, metric: str, learned: Distribution) -> None:
        """Keep what was learned of an application."""
        row = (application, metric, learned.runs, learned.counts.astype(np.float64).tobytes())
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO distributions VALUES (?, ?, ?, ?)", row)

    def applications(self, metric: str) -> list[str]:
        """All of which something was learned."""
        with self._lock:
            query = "SELECT application FROM distributions WHERE metric=? ORDER BY application"
            return [row[0] for row in self._database.execute(query, (metric,))]

    def running(self, metric: str) -> dict[str, tuple[str, Distribution]]:
        """Each job that was running when `keep_running` was called last: its application, and what it used so far."""
        with self._lock:
            rows = self._database.execute(
                "SELECT job, application, counts FROM running WHERE metric=?", (metric,)
            ).fetchall()
        return {
            job: (application, Distribution(np.frombuffer(counts, dtype=np.float64).copy()))
            for job, application, counts in rows
            if len(counts) == 8 * BINS
        }

    def keep_running(self, metric: str, running: Mapping[str, tuple[str, Distribution]]) -> None:
        """Keep these in place of those kept before."""
        rows = [
            (job, metric, application, used.counts.astype(np.float64).tobytes())
            for job, (application, used) in running.items()
        ]
        with self._lock:
            self._database.execute("BEGIN")
            self._database.execute("DELETE FROM running WHERE metric=?", (metric,))
            self._database.executemany("INSERT INTO running VALUES (?, ?, ?, ?)", rows)
            self._database.execute("COMMIT")

    def came_true(self, mode: str) -> list[Seen]:
        """What `prediction.scoring.Calibration` has seen of a failure mode."""
        with self._lock:
            row = self._database.execute("SELECT seen FROM calibrations WHERE mode=?", (mode,)).fetchone()
        return [(predicted, deviation, held) for predicted, deviation, held in json.loads(row[0])] if row else []

    def keep_came_true(self, mode: str, seen: list[Seen]) -> None:
        """Keep that."""
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO calibrations VALUES (?, ?)", (mode, json.dumps(seen)))
