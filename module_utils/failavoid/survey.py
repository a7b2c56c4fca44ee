"""What a host of a site is like, looked at without changing anything and before anything is installed on it."""

from __future__ import annotations

import json
import os
import platform
import pwd
import re
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence
from xml.etree import ElementTree

PROGRAMS = {"libvirt": ["libvirtd", "--version"], "qemu": ["qemu-system-x86_64", "--version"]}
CAPABILITIES = ["virsh", "--quiet", "--connect", "qemu:///system", "domcapabilities", "--virttype", "kvm"]


@dataclass
class Survey:
    """One host's own word. What it does not have is empty."""

    hostname: str = ""
    system: List[str] = field(default_factory=list)  # os-release's ID and VERSION_ID
    init: str = "systemd"  # the name of the first process
    python: List[int] = field(default_factory=lambda: [3, 11])
    now: float = 0.0  # seconds since the epoch by its clock
    cpu: str = ""
    cpu_flags: str = ""  # sorted, separated by spaces
    memory_kb: int = 0
    kvm: bool = False  # whether /dev/kvm is there
    cpu_model_offered: Optional[bool] = None  # the one that was asked for, by libvirt under KVM; None: it can't be told
    versions: Dict[str, str] = field(default_factory=dict)  # libvirt, qemu
    listeners: List[str] = field(default_factory=list)  # "tcp 0.0.0.0:22 users:((...))"
    bridges: List[str] = field(default_factory=list)
    links: List[str] = field(default_factory=list)
    addresses: List[str] = field(default_factory=list)  # IPv4
    file_system: str = ""  # of the folder that was asked for, or of what it will be made in
    free_mib: int = 0
    image_there: bool = False
    unknown_users: List[str] = field(default_factory=list)  # of those who were asked for


def look(folder: str, cpu_model: str = "", users: Sequence[str] = ()) -> Survey:
    """Collect what this host is like; ``folder`` is where the image store is or will be.

    ``cpu_model`` is what guests' processors are to be, if that is given; ``users`` are to be known here.
    """
    links = [path.name for path in sorted(Path("/sys/class/net").iterdir())]
    place = _existing(Path(folder))
    status = os.statvfs(place)
    cpu = _cpu()
    return Survey(
        hostname=socket.gethostname(),
        system=_system(),
        init=Path("/proc/1/comm").read_text().strip(),
        python=[int(part) for part in platform.python_version_tuple()[:2]],
        now=time.time(),
        cpu=" ".join(cpu.get("model name", "").split()),
        cpu_flags=" ".join(sorted(cpu.get("flags", "").split())),
        memory_kb=int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]),
        kvm=Path("/dev/kvm").exists(),
        cpu_model_offered=offers(_run(CAPABILITIES), cpu_model) if cpu_model and Path("/dev/kvm").exists() else None,
        versions={name: version for name, command in PROGRAMS.items() for version in [_version(command)] if version},
        listeners=_listeners(),
        bridges=[name for name in links if Path("/sys/class/net", name, "bridge").is_dir()],
        links=links,
        addresses=_addresses(),
        file_system=_file_system(place),
        free_mib=status.f_bavail * status.f_frsize >> 20,
        image_there=Path(folder, "current").exists(),
        unknown_users=[user for user in users if not _knows(user)],
    )


def offers(capabilities: str, cpu_model: str) -> Optional[bool]:
    """Whether libvirt's description of what a host can run has that CPU model; None for no description."""
    if not capabilities.strip():
        return None
    models = ElementTree.fromstring(capabilities).iterfind("cpu/mode[@name='custom']/model")
    return any(model.text == cpu_model and model.get("usable") == "yes" for model in models)


def _knows(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _system() -> List[str]:
    words = {}
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        words[key] = value.strip('"')
    return [words.get("ID", ""), words.get("VERSION_ID", "")]


def _cpu() -> Dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _run(command: List[str]) -> str:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", "LC_ALL": "C"}
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stdout
    except OSError:
        return ""


def _version(command: List[str]) -> str:
    found = re.search(r"\d+\.\d+\.\d+", _run(command))
    return found.group(0) if found else ""


def _listeners() -> List[str]:
    rows = [line.split(None, 6) for line in _run(["ss", "-Hltunp"]).splitlines()]
    return [f"{row[0]} {row[4]} {row[6].strip() if len(row) > 6 else ''}".strip() for row in rows if len(row) > 4]


def _addresses() -> List[str]:
    found: List[Any] = json.loads(_run(["ip", "-json", "-4", "address", "show"]) or "[]")
    return [one["local"] for link in found for one in link.get("addr_info", []) if "local" in one]


def _file_system(place: Path) -> str:
    """The kind of file system that a folder is on, by the longest mount point above it."""
    kinds = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind = line.split()[:3]
        kinds[mount] = kind
    for folder in [place.resolve(), *place.resolve().parents]:
        if str(folder) in kinds:
            return kinds[str(folder)]
    return ""
