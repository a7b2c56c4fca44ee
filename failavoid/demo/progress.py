"""Progress of a long command: what is being done, how long it has taken, what is next."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Prints each step of a plan as it begins and ends; `note` prints what happens within it."""

    def __init__(self, plan: list[str], out: TextIO = sys.stdout) -> None:
        self._plan = plan
        self._number = 0
        self._began = time.monotonic()
        self._out = out
        self.seconds: dict[str, float] = {}

    def note(self, text: str) -> None:
        """Print one line with the seconds since the command began."""
        print(f"[{time.monotonic() - self._began:6.1f} s]   {text}", file=self._out, flush=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Do the plan's step ``name``; its duration is kept in ``seconds``."""
        self._number = self._plan.index(name) + 1
        following = self._plan[self._number] if self._number < len(self._plan) else "nothing"
        head = f"[{time.monotonic() - self._began:6.1f} s]"
        print(f"{head} {self._number}/{len(self._plan)} {name} (next: {following})", file=self._out, flush=True)
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
        self.note(f"done in {self.seconds[name]:.1f} s")
