"""What the hardware says of itself: memory errors (EDAC), temperatures, fans and voltages (hwmon).

What a machine does not offer is not sent. The files are read every `EVERY_S` only: some drivers take milliseconds, and
none of these figures changes in a second.
"""

# pathlib costs an agent on an emulated CPU as much as the rest of its start
# ruff: noqa: PTH118, PTH208
from __future__ import annotations

import os
import time

EVERY_S = 10.0
HOUR_S = 3600.0


class Sensors:
    """Found once, at the start; a sensor that can no longer be read is left out."""

    def __init__(self, sys: str = "/sys") -> None:
        self._edac = _files(os.path.join(sys, "devices/system/edac/mc"), "mc", ("ce_count", "ue_count"))
        self._hwmon = _find_hwmon(os.path.join(sys, "class/hwmon"))
        self._errors: list[tuple[float, float]] = []  # corrected so far, over the last hour
        self._read_at = -EVERY_S
        self._last: dict[str, float] = {}

    def read(self) -> dict[str, float]:
        """Return the metrics of messages.METRICS that this machine offers."""
        now = time.monotonic()
        if now - self._read_at >= EVERY_S:
            self._read_at = now
            self._last = {**self._memory_errors(now), **self._measured()}
        return self._last

    def _memory_errors(self, now: float) -> dict[str, float]:
        corrected, uncorrected = (_sum(self._edac[name]) for name in ("ce_count", "ue_count"))
        found = {} if uncorrected is None else {"ecc_uncorrected": uncorrected}
        if corrected is not None:
            self._errors.append((now, corrected))
            while self._errors[0][0] < now - HOUR_S:
                self._errors.pop(0)
            found["ecc_corrected"] = corrected
            found["ecc_corrected_per_h"] = max(0.0, corrected - self._errors[0][1])
        return found

    def _measured(self) -> dict[str, float]:
        found: dict[str, float] = {}
        temperatures = _values(self._hwmon["temp"])
        if temperatures:
            found["temperature_c"] = max(value for value, _, _ in temperatures) / 1000
            margins = [critical - value for value, _, critical in temperatures if critical is not None and critical > 0]
            if margins:
                found["temperature_margin_c"] = min(margins) / 1000
        fans = _values(self._hwmon["fan"])
        if fans:
            found["fan_rpm"] = min(value for value, _, _ in fans)
        off = [
            abs(value - (low + high) / 2) / ((high - low) / 2)
            for value, low, high in _values(self._hwmon["in"])
            if low is not None and high is not None and high > low
        ]
        if off:
            found["voltage_deviation"] = round(max(off), 4)
        return found


def _files(folder: str, prefix: str, names: tuple[str, ...]) -> dict[str, list[str]]:
    """The files of these names in the folders that begin so."""
    folders = [os.path.join(folder, one) for one in _list(folder) if one.startswith(prefix)]
    return {name: [os.path.join(one, name) for one in folders if name in _list(one)] for name in names}


def _find_hwmon(folder: str) -> dict[str, list[tuple[str, str, str]]]:
    """All sensors by kind, with the files of their limits."""
    limits = {"temp": ("min", "crit"), "fan": ("min", "max"), "in": ("min", "max")}
    # kind -> (value file, lower limit's, upper limit's)
    found: dict[str, list[tuple[str, str, str]]] = {kind: [] for kind in limits}
    for device in _list(folder):
        for name in _list(os.path.join(folder, device)):
            stem, _, rest = name.partition("_")
            kind = stem.rstrip("0123456789")
            if rest == "input" and kind in limits:
                low, high = (os.path.join(folder, device, f"{stem}_{limit}") for limit in limits[kind])
                found[kind].append((os.path.join(folder, device, name), low, high))
    return found


def _values(sensors: list[tuple[str, str, str]]) -> list[tuple[float, float | None, float | None]]:
    """(value, lower limit, upper limit) of each sensor that can be read; a limit it has not is None."""
    found = []
    for files in list(sensors):
        value = _number(files[0])
        if value is None:
            sensors.remove(files)
        else:
            found.append((value, _number(files[1]), _number(files[2])))
    return found


def _sum(files: list[str]) -> float | None:
    numbers = [number for number in map(_number, files) if number is not None]
    return sum(numbers) if numbers else None


def _number(path: str) -> float | None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return float(file.read(64))
    except (OSError, ValueError):
        return None


def _list(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
