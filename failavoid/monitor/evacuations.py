"""Follows the controller: its evacuations as they happen, how far their moves have come, what it may do."""

from __future__ import annotations

import logging
import threading
from typing import Any

import httpx

from failavoid.shared.messages import EVACUATION_ENDS

log = logging.getLogger(__name__)
POLL_S = 20.0
CLOSE_LOOK_S = 1.0  # while one is under way
RETRY_S = 2.0
KEPT = 200  # evacuations
Document = dict[str, Any]


class EvacuationFollower:
    """Keeps the last evacuations up to date by long polls, and reconnects for as long as it takes. For any thread.

    What is given are the controller's documents, not to be changed.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evacuations", daemon=True)
        self._found: dict[str, Document] = {}
        self._progress: dict[str, list[Document]] = {}
        self._status: Document = {}
        self._reachable = False

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a poll under way is cut off."""
        self._stopped.set()
        self._client.close()

    def evacuations(self) -> dict[str, Document]:
        """The last evacuations, oldest first, by id."""
        return self._found

    def progress(self) -> dict[str, list[Document]]:
        """MoveProgress of each evacuation whose guests move now."""
        return self._progress

    def status(self) -> Document:
        """The controller's, and whether it answers."""
        return {**self._status, "reachable": self._reachable}

    def order(self, evacuation: str, act: str, authorization: str, document: Any) -> httpx.Response:
        """Hand an operator's word on to the controller, which judges their own token. Raises httpx.HTTPError."""
        headers = {"Authorization": authorization}
        return self._client.post(f"/evacuations/{evacuation}/{act}", json=document, headers=headers, timeout=10.0)

    def _run(self) -> None:
        last = -1
        while not self._stopped.is_set():
            try:
                last = self._look(last)
                self._reachable = True
            except (httpx.HTTPError, ValueError, KeyError, RuntimeError) as error:
                if self._stopped.is_set():
                    return
                if self._reachable:
                    log.warning("the controller's evacuations: %s; trying on", error or type(error).__name__)
                self._reachable, last = False, -1
                self._stopped.wait(RETRY_S)

    def _look(self, last: int) -> int:
        """Follow until there is something new; return the number of the last event that was seen."""
        open_ = [one for one in self._found.values() if one["state"] not in EVACUATION_ENDS]
        if last < 0:
            news = set()
            last = self._skip_events()
            self._found = {one["id"]: one for one in self._get("/evacuations")[-KEPT:]}
        else:
            wait = CLOSE_LOOK_S if open_ else POLL_S
            events = self._get("/events", wait, after=last, timeout=wait)
            last = events["last"]
            news = {one["detail"]["evacuation"] for one in events["events"] if "evacuation" in one["detail"]}
        changed = {ident: self._get(f"/evacuations/{ident}") for ident in news | {one["id"] for one in open_}}
        if changed:
            found = {**self._found, **changed}
            self._found = dict(list(found.items())[-KEPT:])
        moving = [one["id"] for one in self._found.values() if one["state"] == "MIGRATING"]
        self._progress = {ident: self._get(f"/evacuations/{ident}/progress") for ident in moving}
        self._status = self._get("/status")
        return last

    def _skip_events(self) -> int:
        """The number of the controller's last event: what was before it is in its evacuations."""
        last = 0
        while (events := self._get("/events", after=last))["events"]:
            last = int(events["last"])
        return last

    def _get(self, path: str, wait: float = 0.0, **query: float) -> Any:
        answer = self._client.get(path, params=query, timeout=httpx.Timeout(5.0, read=wait + 10.0))
        answer.raise_for_status()
        return answer.json()
