"""Plug-in of the agent: temperatures and fans by IPMI, where hwmon does not offer them.

It runs `ipmitool sdr list full` every `EVERY_S` in a thread of its own: a management controller may take many seconds
to answer. While it does not answer, nothing of it is sent after `STALE_S`.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time

COMMAND = ["ipmitool", "-c", "sdr", "list", "full"]
EVERY_S = 30.0
STALE_S = 120.0


class Plugin:
    """Offers what the last answer said."""

    def __init__(self) -> None:
        self._found: dict[str, float] = {}
        self._at = -STALE_S
        threading.Thread(target=self._ask_for_ever, name="ipmi", daemon=True).start()

    def read(self) -> dict[str, float]:
        """Return the metrics known now."""
        return self._found if time.monotonic() - self._at < STALE_S else {}

    def _ask_for_ever(self) -> None:
        troubled = False
        while True:
            try:
                done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=STALE_S, check=True)
                self._found, self._at = parse(done.stdout), time.monotonic()
                troubled = False
            except (OSError, subprocess.SubprocessError) as error:
                if not troubled:
                    print(f"failavoid agent: ipmitool gives no answer: {error}; trying on", file=sys.stderr, flush=True)
                troubled = True
            time.sleep(EVERY_S)


def parse(text: str) -> dict[str, float]:
    """The metrics in what `ipmitool -c sdr list full` prints: name,value,unit,status."""
    temperatures, fans = [], []
    for line in text.splitlines():
        words = line.split(",")
        try:
            value, unit = float(words[1]), words[2].lower()
        except (IndexError, ValueError):
            continue  # no reading
        if unit == "degrees c":
            temperatures.append(value)
        elif unit == "rpm":
            fans.append(value)
    found = {}
    if temperatures:
        found["temperature_c"] = max(temperatures)
    if fans:
        found["fan_rpm"] = min(fans)
    return found
