"""Reads one host's or guest's memory and CPU use from the kernel's files.

The files are read directly: psutil would parse all of them, for a fraction that is used.
"""

from __future__ import annotations

import os
import time

from failavoid.agent.sensors import Sensors

TYPE_CHECKING = False  # the module typing costs as much as the rest of the start
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Plugin(Protocol):
        """Whatever offers metrics besides."""

        def read(self) -> dict[str, float]:
            """Return metrics by name; it must not wait."""


PRESSURES = ("cpu", "memory", "io")
PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
LIBVIRT_PIDS = "/run/libvirt/qemu"  # libvirt keeps NAME.pid there while a guest's QEMU runs
_DAEMON = "driver.pid"  # and its own
_MEMINFO = {
    b"MemTotal": "mem_total_kb",
    b"MemAvailable": "mem_available_kb",
    b"Active": "mem_active_kb",
    b"SwapTotal": "swap_total",
    b"SwapFree": "swap_free",
}


class Sampler:
    """Collects the metrics of messages.METRICS; CPU shares are those since the collection before.

    ``metrics`` limits what is collected (all if None). ``proc`` and ``pids`` are the
    folders that are read, as is ``sys``; ``plugins`` offer more metrics.
    """

    def __init__(
        self,
        kind: str,
        metrics: frozenset[str] | None = None,
        proc: str = "/proc",
        pids: str = LIBVIRT_PIDS,
        sys: str = "/sys",
        plugins: Sequence[Plugin] = (),
    ) -> None:
        self._metrics = metrics
        self._proc = proc
        self._guests = Guests(pids, proc) if kind == "host" else None
        self._sensors: list[Plugin] = [Sensors(sys), *plugins]
        self._pressure = [what for what in PRESSURES if os.path.exists(f"{proc}/pressure/{what}")]  # noqa: PTH110
        self._times: dict[bytes, tuple[int, int]] = {}
        self._cpu()

    def collect(self) -> tuple[dict[str, float], list[float]]:
        """Return the metrics and the share of each core in use. Raises OSError."""
        metrics = self._memory()
        metrics["cpu"], cores = self._cpu()
        metrics["load1"] = float(_read(f"{self._proc}/loadavg").split(None, 1)[0])
        metrics.update(self._stalls())
        for sensors in self._sensors:
            metrics.update(sensors.read())
        if self._guests:
            metrics["guests_rss_kb"] = self._guests.resident_kb()
        if self._metrics is not None:
            metrics = {name: value for name, value in metrics.items() if name in self._metrics}
        return metrics, cores

    def _memory(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for line in _read(f"{self._proc}/meminfo").splitlines():
            name, _, rest = line.partition(b":")
            if name in _MEMINFO:
                found[_MEMINFO[name]] = int(rest.split()[0])
        found["swap_used_kb"] = max(0, found.pop("swap_total", 0) - found.pop("swap_free", 0))
        return found

    def _stalls(self) -> dict[str, float]:
        """Pressure stall information (Linux 4.20 and later); one that cannot be read any more is not asked again."""
        found = {}
        for what in list(self._pressure):
            try:
                lines = _read(f"{self._proc}/pressure/{what}").splitlines()
                found[f"psi_{what}"] = _average(lines[0])
                if what == "memory":
                    found["psi_memory_full"] = _average(lines[1])
            except (OSError, IndexError, ValueError):
                self._pressure.remove(what)
        return found

    def _cpu(self) -> tuple[float, list[float]]:
        total, cores = 0.0, []
        for line in _read(f"{self._proc}/stat").splitlines():
            if not line.startswith(b"cpu"):
                break  # what follows (interrupts) is long and of no use here
            name, *fields = line.split()
            ticks = [int(field) for field in fields[:8]]
            idle, every = ticks[3] + ticks[4], sum(ticks)  # idle and waiting for input/output
            idle_before, every_before = self._times.get(name, (idle, every))
            self._times[name] = (idle, every)
            passed = every - every_before
            share = 1 - (idle - idle_before) / passed if passed > 0 else 0.0
            share = round(min(1.0, max(0.0, share)), 3)
            if name == b"cpu":
                total = share
            else:
                cores.append(share)
        return total, cores


class Guests:
    """The resident memory of the guests' QEMU processes, by the pid files libvirt keeps."""

    def __init__(self, folder: str, proc: str) -> None:
        self._folder = folder
        self._proc = proc
        self._changed = -1
        self._pids: list[str] = []

    def resident_kb(self) -> int:
        """Sum over all guests, kB; 0 where libvirt is not installed. A guest that just ended counts 0."""
        self._look()
        pages = 0
        for pid in self._pids:
            try:
                pages += int(_read(f"{self._proc}/{pid}/statm").split(None, 2)[1])
            except (OSError, IndexError):
                self._changed = -1  # the process is gone: look again
        return pages * PAGE_KB

    def _look(self) -> None:
        """Read the pid files only when the folder has changed: a stat a sample costs next to nothing."""
        try:
            changed = os.stat(self._folder).st_mtime_ns  # noqa: PTH116
            if changed == self._changed:
                return
            pids = [
                _read(f"{self._folder}/{name}").strip().decode()
                for name in os.listdir(self._folder)  # noqa: PTH208
                if name.endswith(".pid") and name != _DAEMON
            ]
            self._pids = [pid for pid in pids if pid.isdigit()]
            # files may still come within this tick of the folder's clock, or be written
            settled = time.time_ns() - changed > 2_000_000_000
            self._changed = changed if settled else -1
        except OSError:
            self._pids, self._changed = [], -1


def _average(line: bytes) -> float:
    """avg10 of a line of /proc/pressure, as a share."""
    return round(float(line.split()[1].partition(b"=")[2]) / 100, 4)


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(descriptor, 1 << 16)
        if len(data) < 1 << 12:  # the kernel's small files come whole
            return data
        while more := os.read(descriptor, 1 << 16):
            data += more
        return data
    finally:
        os.close(descriptor)
