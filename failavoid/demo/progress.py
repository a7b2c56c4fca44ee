"""Progress of a long command: what is being done, how long it has taken, what is next."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

SILENCE_S = 20.0  # after so long without a line the step says that it still goes on


class Progress:
    """Prints each step of a plan as it begins and ends; `note` prints what happens within it."""

    def __init__(self, plan: list[str], out: TextIO = sys.stdout, silence_s: float = SILENCE_S) -> None:
        self._plan = plan
        self._number = 0
        self._began = time.monotonic()
        self._out = out
        self._silence_s = silence_s
        self._noted = self._began
        self.seconds: dict[str, float] = {}

    def note(self, text: str) -> None:
        """Print one line with the seconds since the command began."""
        self._noted = time.monotonic()
        self._print(f"  {text}")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Do the plan's step ``name``; its duration is kept in ``seconds``."""
        self._number = self._plan.index(name) + 1
        following = self._plan[self._number] if self._number < len(self._plan) else "nothing"
        self._print(f"{self._number}/{len(self._plan)} {name} (next: {following})")
        began = self._noted = time.monotonic()
        ended = threading.Event()
        reminder = threading.Thread(target=self._remind, args=(name, ended), daemon=True, name="progress")
        reminder.start()
        try:
            yield
        finally:
            ended.set()
            reminder.join()
        self.seconds[name] = time.monotonic() - began
        self.note(f"done in {self.seconds[name]:.1f} s")

    def _remind(self, name: str, ended: threading.Event) -> None:
        """Say now and then that a step goes on of which nothing is heard."""
        while not ended.wait(self._silence_s):
            silent = time.monotonic() - self._noted
            if silent >= self._silence_s:
                self._print(f"  ({name} goes on; nothing new for {silent:.0f} s)")

    def _print(self, text: str) -> None:
        self._out.write(
            f"[{time.monotonic() - self._began:6.1f} s] {text}\n"
        )  # at once: lines come from several threads
        self._out.flush()
