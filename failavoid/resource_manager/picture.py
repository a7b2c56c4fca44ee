"""The membership as the API gives it: text that is made once for each version, however many wait for it."""

from __future__ import annotations

import json
import threading

from failavoid.resource_manager import placement
from failavoid.resource_manager.store import Store


class Picture:
    """The picture of ``store``; ``machines`` maps hosts to what runs them, for the hosts' warnings."""

    def __init__(self, store: Store, machines: dict[str, str]) -> None:
        self._store = store
        self._machines = machines
        self._lock = threading.Lock()
        self._version = -1
        self._text = b""

    def text(self) -> bytes:
        """The latest Membership in JSON. On a large site it takes a while to make: not for an event loop."""
        with self._lock:  # of those that a change wakes at once, one makes it
            if self._version != self._store.changes.version:
                with self._store.view() as state:
                    picture = self._store.picture()
                    warnings = placement.warnings(state.guests.values(), self._machines)
                for host in picture["hosts"]:
                    host["warnings"] = warnings.get(host["name"], [])
                self._text = json.dumps(picture, separators=(",", ":")).encode()
                self._version = picture["version"]
            return self._text
