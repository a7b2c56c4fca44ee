"""Memory limits and process groups of containers, for cgroup version 1, version 2, and machines run by systemd.

On a machine that systemd runs, a group is a transient service. Elsewhere it is a control
group below the testbed's own, in every hierarchy that is mounted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import List, Set

MOUNT = Path("/sys/fs/cgroup")
# Not joined: no container is limited in these, and nested groups of the cpu controller have been seen to get no
# time at all for minutes while guests of another container were busy (Linux 6.18, version 1). So a host's /proc/stat
# and /proc/loadavg, which lxcfs makes from these, count the whole machine's processors.
_LEFT_ALONE = {"cpu", "cpuacct", "cpu,cpuacct", "cpuset"}


class CgroupError(Exception):
    """A control group that can't be made or removed."""


def has_systemd() -> bool:
    """Tell whether systemd runs this machine."""
    return Path("/run/systemd/system").is_dir()


def hierarchies() -> List[Path]:
    """Return where control groups are mounted: one place with version 2, several with version 1."""
    if (MOUNT / "cgroup.controllers").exists():
        return [MOUNT]
    return sorted(path.parent for path in MOUNT.glob("*/cgroup.procs"))


def has_memory_limits() -> bool:
    """Tell whether this kernel can limit the memory of a group."""
    if (MOUNT / "cgroup.controllers").exists():
        return "memory" in (MOUNT / "cgroup.controllers").read_text().split()
    return (MOUNT / "memory" / "memory.limit_in_bytes").exists()


def _set(path: Path, value: str, needed: bool = True) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        if needed:
            raise CgroupError(f"{path}: can't be set to {value} ({error.strerror})") from error


def _remove_folders(root: Path) -> List[Path]:
    for folder, _, _ in os.walk(root, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
    return [root] if root.exists() else []


@dataclass(frozen=True)
class Groups:
    """The groups of one testbed; ``parent`` is the control group (with systemd: the slice) they are in."""

    parent: str = "failavoid"

    def unit(self, name: str) -> str:
        """Return the name of the transient service of a group, where systemd runs the machine."""
        return f"{self.parent}-testbed-{name}.service"

    def start(self, name: str, command: List[str], log: Path, memory_bytes: int = 0) -> None:
        """Start ``command`` in the group ``name``, to live on by itself; what it says goes to ``log``.

        It holds none of the caller's files. ``memory_bytes`` 0 is no limit.
        """
        with log.open("w") as output:
            subprocess.Popen(
                [*self._prefix(name, log, memory_bytes), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
            )

    def _prefix(self, name: str, log: Path, memory_bytes: int) -> List[str]:
        if has_systemd():
            words = ["systemd-run", "--quiet", f"--unit={self.unit(name)}", f"--slice={self.parent}.slice", "--collect"]
            words += ["--property=Delegate=yes", "--property=KillMode=mixed", "--property=TasksMax=infinity"]
            words += [f"--property=Standard{kind}=append:{log}" for kind in ("Output", "Error")]
            if memory_bytes:
                words += [f"--property=MemoryMax={memory_bytes}", "--property=MemorySwapMax=0"]
            return words
        procs = [str(group / "cgroup.procs") for group in self._make(name, memory_bytes)]
        return [
            "sh",
            "-c",
            'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"',
            "sh",
            *procs,
            "--",
        ]

    def _make(self, name: str, memory_bytes: int) -> List[Path]:
        groups = []
        for hierarchy in hierarchies():
            if hierarchy.name in _LEFT_ALONE:
                continue
            parent, group = hierarchy / self.parent, hierarchy / self.parent / name
            parent.mkdir(exist_ok=True)
            if hierarchy == MOUNT:
                available = (MOUNT / "cgroup.controllers").read_text().split()
                for folder in (MOUNT, parent):
                    for controller in set(available) & {"memory", "pids"}:
                        with contextlib.suppress(OSError):
                            (folder / "cgroup.subtree_control").write_text(f"+{controller}")
            elif hierarchy.name == "memory":
                _set(parent / "memory.use_hierarchy", "1", needed=False)
            group.mkdir(exist_ok=True)
            groups.append(group)
        if memory_bytes:
            self._set_memory(name, memory_bytes)
        return groups

    def _set_memory(self, name: str, memory_bytes: int) -> None:
        if (MOUNT / "cgroup.controllers").exists():
            _set(MOUNT / self.parent / name / "memory.max", str(memory_bytes))
            _set(MOUNT / self.parent / name / "memory.swap.max", "0", needed=False)
            return
        group = MOUNT / "memory" / self.parent / name
        # memory and memory+swap: whichever order the kernel accepts (the second may never be the smaller)
        for file in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.limit_in_bytes"):
            _set(group / file, str(memory_bytes), needed=False)
        if int((group / "memory.limit_in_bytes").read_text()) != memory_bytes // 4096 * 4096:
            raise CgroupError(f"{group}: the kernel refuses a limit of {memory_bytes} bytes")

    def memory_usage(self, name: str) -> int:
        """Return the memory a group uses in bytes, caches included; 0 when it is not there."""
        places = [hierarchy / self.parent / name for hierarchy in hierarchies()]
        places += [hierarchy / f"{self.parent}.slice" / self.unit(name) for hierarchy in hierarchies()]
        for place in places:
            for file in ("memory.current", "memory.usage_in_bytes"):
                with contextlib.suppress(OSError, ValueError):
                    return int((place / file).read_text())
        return 0

    def groups(self) -> List[str]:
        """Return the names of all groups that are there."""
        names: Set[str] = set()
        if has_systemd():
            shown = subprocess.run(
                ["systemctl", "list-units", "--all", "--plain", "--no-legend", self.unit("*")],
                capture_output=True,
                text=True,
            ).stdout
            before, after = self.unit("*").split("*")
            names |= {line.split()[0][len(before) : -len(after)] for line in shown.splitlines() if line.strip()}
        for hierarchy in hierarchies():
            names |= {path.name for path in (hierarchy / self.parent).glob("*") if path.is_dir()}
        return sorted(names)

    def processes(self, name: str) -> Set[int]:
        """Return the ids of all processes of a group."""
        roots = [hierarchy / self.parent / name for hierarchy in hierarchies()]
        roots += [hierarchy / f"{self.parent}.slice" / self.unit(name) for hierarchy in hierarchies()]
        found: Set[int] = set()
        for root in roots:
            for folder, _, _ in os.walk(root):
                with contextlib.suppress(OSError):
                    found |= {int(word) for word in Path(folder, "cgroup.procs").read_text().split()}
        return found - {0}

    def remove(self, name: str, patience_s: float = 15.0) -> None:
        """Kill what runs in a group and remove it. Raises CgroupError when it does not go."""
        if has_systemd():
            for verb in (["kill", "--signal=SIGKILL"], ["stop"], ["reset-failed"]):
                subprocess.run(["systemctl", *verb, self.unit(name)], capture_output=True)
        deadline = time.monotonic() + patience_s
        while True:
            for pid in self.processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            left = [path for hierarchy in hierarchies() for path in _remove_folders(hierarchy / self.parent / name)]
            if not left:
                return
            if time.monotonic() > deadline:
                alive = ", ".join(map(str, sorted(self.processes(name)))) or "none"
                raise CgroupError(
                    f"control group {left[0]} does not go away (processes: {alive}); look at them with ps"
                )
            time.sleep(0.05)

    def remove_parent(self) -> None:
        """Remove the parent of all groups once it is empty."""
        if has_systemd():
            subprocess.run(["systemctl", "stop", f"{self.parent}.slice"], capture_output=True)
        for hierarchy in hierarchies():
            with contextlib.suppress(OSError):
                (hierarchy / self.parent).rmdir()
