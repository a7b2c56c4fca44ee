"""The documents that browsers hold a copy of, and what has changed in them since a copy was made."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from typing import Any

_TOMBSTONES = 10_000  # names of what is gone that are remembered; who was away for longer gets everything anew


class Board:
    """Documents by kind and name. For any thread.

    A place in its history is ``LIFE.VERSION``; a copy made at one is brought up to date by `since`. A restart begins
    another life, whose places have nothing to do with those of the one before.
    """

    def __init__(self) -> None:
        self._life = secrets.token_hex(4)
        self._version = 0
        self._oldest = 0  # a copy of before this can't be told all that is gone
        self._lock = threading.Lock()
        self._documents: dict[str, dict[str, tuple[int, str]]] = {}
        self._gone: dict[tuple[str, str], int] = {}
        self._said: dict[str, tuple[int, str]] = {}  # the last answers: most copies are of the same place

    @property
    def place(self) -> str:
        """Where the history is now."""
        return f"{self._life}.{self._version}"

    def set(self, kind: str, documents: Mapping[str, Any]) -> None:
        """Have these and no others of a kind."""
        texts = {name: json.dumps(document, separators=(",", ":")) for name, document in documents.items()}
        with self._lock:
            known = self._documents.setdefault(kind, {})
            changed = [name for name, text in texts.items() if name not in known or known[name][1] != text]
            gone = known.keys() - texts.keys()
            if not changed and not gone:
                return
            self._version += 1
            for name in changed:
                known[name] = (self._version, texts[name])
                self._gone.pop((kind, name), None)
            for name in gone:
                del known[name]
                self._gone[(kind, name)] = self._version
            while len(self._gone) > _TOMBSTONES:
                self._oldest = max(self._oldest, self._gone.pop(next(iter(self._gone))))
            self._said.clear()

    def since(self, place: str) -> tuple[str, str]:
        """(place, JSON) that brings a copy of ``place`` up to date; empty JSON if there is nothing new.

        The JSON is {"reset": whether the copy is to be thrown away first, "put": {kind: {name: document}}, "gone":
        {kind: [name]}}.
        """
        with self._lock:
            here = self.place
            if place == here:
                return here, ""
            life, _, number = place.partition(".")
            version = int(number) if number.isdigit() and life == self._life else -1
            if not self._oldest <= version <= self._version:
                version = -1
            key = str(version)
            if key not in self._said:
                self._said[key] = (self._version, self._news(version))
            return here, self._said[key][1]

    def _news(self, version: int) -> str:
        kinds = []
        for kind, documents in self._documents.items():
            new = [f"{json.dumps(name)}:{text}" for name, (at, text) in documents.items() if at > version]
            if new:
                kinds.append(f"{json.dumps(kind)}:{{{','.join(new)}}}")
        gone: dict[str, list[str]] = {}
        for (kind, name), at in self._gone.items():
            if at > version >= 0:
                gone.setdefault(kind, []).append(name)
        reset = json.dumps(version < 0)
        return f'{{"reset":{reset},"put":{{{",".join(kinds)}}},"gone":{json.dumps(gone)}}}'
