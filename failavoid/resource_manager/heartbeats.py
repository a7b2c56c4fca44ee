"""Which jobs' clients are alive: a job without one would run for ever, with nobody to read its output."""

from __future__ import annotations

import threading
import time


class Heartbeats:
    """When each job's client was last heard, by the monotonic clock. In memory alone: a restart hears all anew."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}
        self._lock = threading.Lock()

    def hear(self, job: str) -> None:
        """A job's client lives."""
        with self._lock:
            self._heard[job] = time.monotonic()

    def silent(self, jobs: list[str], silence_s: float) -> list[str]:
        """Those of the live ``jobs`` whose clients were not heard for ``silence_s`` seconds; others are forgotten."""
        now = time.monotonic()
        with self._lock:
            self._heard = {job: self._heard.get(job, now) for job in jobs}
            return [job for job in jobs if now - self._heard[job] > silence_s]
