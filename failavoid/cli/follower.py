"""Keeps a job alive while its client runs, and hears at once what becomes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from failavoid.cli.api import call, name
from failavoid.cli.settings import CliError
from failavoid.shared.messages import Job, from_dict

POLL_S = 15.0  # the resource manager may answer sooner; it hears of the job as long as it is asked
RETRY_S = 1.0


class Follower:
    """Asks for a job's state again and again, in a thread of its own: that is how the resource manager hears of it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._at_end: Callable[[], None] = lambda: None
        threading.Thread(target=self._run, daemon=True, name="follower").start()

    def wait_until_allocated(self, timeout_s: float) -> bool:
        """Whether the job has left the state allocating within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.job.state != "allocating", timeout_s)

    def at_end(self, act: Callable[[], None]) -> None:
        """Have ``act`` done, once, when the job ends by another's word; at once if it has."""
        with self._changed:
            self._at_end = act
            ended = self.job.ended is not None
        if ended:
            act()

    def stop(self) -> None:
        """The job is over for its client: nothing more is to be heard."""
        self._stopped.set()
        self._at_end = lambda: None

    def _run(self) -> None:
        path = f"/jobs/{name(self.job.id)}/alive"
        while not self._stopped.is_set():
            asked = time.monotonic()
            try:
                body = {"state": self.job.state, "timeout": POLL_S}
                job = from_dict(Job, call("resource_manager", "POST", path, body, timeout=POLL_S + 10))
            except CliError as error:
                if error.answer == 404:  # it is not known there any more; anything else may pass
                    return
                self._stopped.wait(RETRY_S)
                continue
            with self._changed:
                changed, self.job = job.state != self.job.state, job
                act = self._at_end
                self._changed.notify_all()
            if job.ended is not None:
                act()
                return
            if not changed and time.monotonic() - asked < 1:
                self._stopped.wait(RETRY_S)  # it did not wait: do not ask in a circle
