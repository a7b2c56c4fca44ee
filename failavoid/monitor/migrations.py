"""How long migrations have taken on this site: what the rules' horizon follows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from failavoid.services import client
from failavoid.shared.messages import Evacuation, from_dict

log = logging.getLogger(__name__)
POLL_S = 30.0
KEPT = 50  # evacuations
SLOW = 90.0  # percentile
DONE = "released"  # the step that ends a rank's wait


def durations(evacuations: Sequence[Evacuation]) -> list[float]:
    """Seconds from each alarm, or from the first step, to the release of the ranks."""
    found = []
    for evacuation in evacuations:
        begun = evacuation.alarm.time if evacuation.alarm else min((s.begun for s in evacuation.steps), default=None)
        done = next((step.done for step in evacuation.steps if step.name == DONE and step.done is not None), None)
        if begun is not None and done is not None and done > begun:
            found.append(done - begun)
    return found


class MigrationTimes:
    """Asks the controller now and then; without an answer, or before a first evacuation, there is nothing to follow."""

    def __init__(self, url: str, token: str, authority: str = "") -> None:
        self._client = client(url, token, authority, timeout=10.0)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="migrations", daemon=True)
        self._slow_s = 0.0

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._client.close()

    def slow_s(self) -> float:
        """What nine of ten evacuations took at most, in seconds; 0 if nothing is known."""
        return self._slow_s

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                answer = self._client.get("/evacuations")
                answer.raise_for_status()
                document: Any = answer.json()
                known = durations([from_dict(Evacuation, one) for one in document])[-KEPT:]
                slow = float(np.percentile(known, SLOW)) if known else 0.0
                if round(slow) != round(self._slow_s):
                    log.info("nine of ten evacuations took at most %.0f s: the horizon follows", slow)
                self._slow_s = slow
            except (httpx.HTTPError, ValueError, RuntimeError, TypeError) as error:
                log.debug("migration times are not known: %s", error)
            self._stopped.wait(POLL_S)
