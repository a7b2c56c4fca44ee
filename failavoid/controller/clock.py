"""Time and waiting, in one place: tests put a clock of their own in its stead and need not wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

NEVER = float("inf")
_AT_ONCE = 16


class Clock:
    """The head's clock, its threads, and waiting for what other threads do. Times are seconds since the epoch."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed

    def now(self) -> float:
        """Return the time."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Do nothing for so long."""
        time.sleep(seconds)

    def wait(self, happened: Callable[[], object], until: float = NEVER) -> bool:
        """Wait until ``happened``, which is asked whenever ``changed`` is notified, or the time; whether it has."""
        with self._changed:
            timeout = None if until == NEVER else max(0.0, until - time.time())
            return bool(self._changed.wait_for(happened, timeout))

    def start(self, act: Callable[[], None], name: str) -> None:
        """Do ``act`` in a thread of its own."""
        threading.Thread(target=act, daemon=True, name=name).start()

    def in_parallel(self, act: Callable[[str], T], names: list[str]) -> dict[str, T]:
        """Return what ``act`` returns for each of the names, done at the same time."""
        if not names:
            return {}
        with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(names))) as pool:
            return dict(zip(names, pool.map(act, names), strict=True))
