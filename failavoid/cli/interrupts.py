"""Signals that end a program, without a moment at which they would leave something behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns the first signal into KeyboardInterrupt, and later ones into nothing: the end is under way."""

    def __init__(self) -> None:
        self._came = False
        self._raised = False
        self._held = False
        for number in NUMBERS:
            signal.signal(number, self._on_signal)
        # a stopped program would not be heard of any more, while its job goes on elsewhere
        signal.signal(signal.SIGTSTP, lambda _number, _frame: None)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, nothing is interrupted; a signal that came meanwhile interrupts at the end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self._raise()

    def ignore(self) -> None:
        """From now on nothing is interrupted."""
        self._raised = True

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if not self._held:
            self._raise()

    def _raise(self) -> None:
        if self._came and not self._raised:
            self._raised = True
            raise KeyboardInterrupt
