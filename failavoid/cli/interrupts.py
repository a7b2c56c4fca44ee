"""Signals that end a program, without a moment at which they would leave something behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
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
        self._woken, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
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

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Wait until ``process`` has ended and return its status.

        The kernel may hand a signal to another thread, whereupon a plain wait would go on; the byte that Python writes
        for each signal ends this one. Raises KeyboardInterrupt.
        """
        ended = os.pidfd_open(process.pid)
        try:
            while True:
                ready = select.select([ended, self._woken], [], [])[0]
                if ended in ready:
                    return process.wait()
                os.read(self._woken, 512)
        finally:
            os.close(ended)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if not self._held:
            self._raise()

    def _raise(self) -> None:
        if self._came and not self._raised:
            self._raised = True
            raise KeyboardInterrupt
