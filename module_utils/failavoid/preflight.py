"""What must hold before a testbed is made on a machine, looked at without changing anything.

``look`` collects facts, ``problems`` judges them: each problem is one sentence that names
the thing, and the way out.
"""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Tuple

from . import cgroups
from .containers import Testbed, cable

SYSTEMS = {("debian", "12"), ("debian", "13")}
PROCESSOR = "x86_64"  # of the image's kernel and of the guests
PROGRAMS = {
    "ip": "iproute2",
    "lxcfs": "lxcfs",
    "mmdebstrap": "mmdebstrap",
    "nsenter": "util-linux",
    "ssh-keygen": "openssh-client",
    "systemd-nspawn": "systemd-container",
}
_RESERVE_MIB = 512  # for the machine itself
_HOST_DISK_MIB = 150  # what a host writes
_IMAGE_DISK_MIB = 2048  # building a root, and the packages


@dataclass
class Facts:
    """What a machine offers."""

    root: bool = True
    system: Tuple[str, str] = ("debian", "12")
    processor: str = PROCESSOR
    missing_programs: List[str] = field(default_factory=list)
    missing_features: List[str] = field(default_factory=list)
    memory_mib: int = 0  # available, or in use by the testbed itself
    disk_mib: Dict[str, int] = field(default_factory=dict)  # folder -> free
    routes: List[Tuple[str, str]] = field(default_factory=list)  # (network, device)
    cables: Dict[str, str] = field(default_factory=dict)  # container -> bridge
    devices: Dict[str, str] = field(default_factory=dict)  # network device -> kind
    has_image: bool = False


def look(testbed: Testbed) -> Facts:
    """Collect the facts of this machine."""
    return Facts(
        root=os.geteuid() == 0,
        system=_system(),
        processor=platform.machine(),
        missing_programs=[name for name in PROGRAMS if shutil.which(name) is None],
        missing_features=_missing_features() if os.geteuid() == 0 else [],
        memory_mib=_memory_mib(testbed.groups),
        disk_mib={str(folder): _free_mib(folder) for folder in (testbed.base, testbed.store)},
        routes=_routes(),
        cables={c.name: bridge for c in testbed.containers for bridge in [cable(c.name)] if bridge},
        devices=_devices(),
        has_image=(testbed.store / "current").exists(),
    )


def problems(facts: Facts, testbed: Testbed, memory_share: float = 1.0) -> List[str]:
    """Return what stands in the way of the testbed, one sentence each.

    ``memory_share`` is the share of the hosts' memory that is in use at once: limits are
    no reservations.
    """
    found = []
    if not facts.root:
        found.append("The testbed makes network bridges, mounts and containers: run this as root.")
    if facts.system not in SYSTEMS:
        found.append(
            f"This system is {' '.join(facts.system)}; the testbed runs on Debian 12 and 13: use such a machine, or a"
            f" virtual one."
        )
    if facts.processor != PROCESSOR:
        found.append(
            f"This machine's processor is {facts.processor}; the system image and its guests are for {PROCESSOR}: use"
            f" such a machine."
        )
    if facts.missing_programs:
        packages = sorted({PROGRAMS[name] for name in facts.missing_programs})
        found.append(
            f"{', '.join(facts.missing_programs)}: not installed; 'apt-get install {' '.join(packages)}' does it"
            f" ('make venv' too)."
        )
    found += facts.missing_features
    found += _memory_problems(facts, testbed, memory_share)
    found += _disk_problems(facts, testbed)
    found += _network_problems(facts, testbed)
    return found


def _memory_problems(facts: Facts, testbed: Testbed, share: float) -> List[str]:
    declared = sum(container.memory_mib for container in testbed.containers)
    need = int(declared * share) + _RESERVE_MIB
    if need <= facts.memory_mib:
        return []
    often = f", of which {share:.0%} are in use at once" if share != 1 else ""
    return [
        f"Memory: {facts.memory_mib} MiB are available, {need} MiB are needed ({len(testbed.containers)} hosts with"
        f" {declared} MiB{often}, and {_RESERVE_MIB} MiB for the machine): take a smaller SCALE or inventory, lower"
        f" testbed_host_memory_mib, or end other programs."
    ]


def _disk_problems(facts: Facts, testbed: Testbed) -> List[str]:
    needs = {str(testbed.base): _HOST_DISK_MIB * len(testbed.containers)}
    needs[str(testbed.store)] = needs.get(str(testbed.store), 0) + (0 if facts.has_image else _IMAGE_DISK_MIB)
    return [
        f"Disk: {folder} has {facts.disk_mib[folder]} MiB free, {need} MiB are needed: make room there, or mount a"
        f" larger file system on it."
        for folder, need in needs.items()
        if facts.disk_mib[folder] < need
    ]


def _network_problems(facts: Facts, testbed: Testbed) -> List[str]:
    found = []
    kind = facts.devices.get(testbed.bridge)
    if kind not in (None, "bridge"):
        found.append(
            f"The network device {testbed.bridge} is there and is no bridge ({kind}): remove it, or set"
            f" testbed_host_bridge to another name."
        )
    network = ipaddress.IPv4Interface(f"{testbed.address}/{testbed.prefix}").network
    for route, device in facts.routes:
        if device != testbed.bridge and network.overlaps(ipaddress.IPv4Network(route)):
            found.append(
                f"The testbed's network {network} overlaps {route}, which {device} has: take another network for"
                f" testbed_host_address and the inventory's ansible_host, or end what uses {device}."
            )
    for name, bridge in facts.cables.items():
        if bridge != testbed.bridge:
            found.append(
                f"{name}: another container of that name runs on this machine, on the bridge {bridge}: end it, or name"
                f" this host differently."
            )
    seen = {testbed.address: "this machine"}
    for container in testbed.containers:
        if ipaddress.IPv4Address(container.address) not in network:
            found.append(
                f"{container.name}: its ansible_host {container.address} is outside of {network}: correct it, or"
                f" testbed_host_address."
            )
        if container.address in seen:
            found.append(
                f"{container.name} and {seen[container.address]} have the same address {container.address}: give"
                f" each its own ansible_host."
            )
        seen[container.address] = container.name
    return found


# -- facts -------------------------------------------------------------------------------------------------


def _system() -> Tuple[str, str]:
    words = {}
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        words[key] = value.strip('"')
    return words.get("ID", "unknown"), words.get("VERSION_ID", "")


def _missing_features() -> List[str]:
    """Try what the kernel must offer, in namespaces that end with the trial."""
    trials = {
        "an overlay file system": "mount -t tmpfs t /mnt && mkdir /mnt/a /mnt/b /mnt/w /mnt/m &&"
        " mount -t overlay -o lowerdir=/mnt/a,upperdir=/mnt/b,workdir=/mnt/w o /mnt/m",
        "network bridges": "ip link add failavoid-try type bridge",
        "virtual network cables (veth)": "ip link add failavoid-a type veth peer name failavoid-b",
        "taps (/dev/net/tun)": "ip tuntap add failavoid-try mode tap",
    }
    found = []
    for what, command in trials.items():
        trial = ["unshare", "--mount", "--net", "sh", "-c", command]
        result = subprocess.run(trial, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if result.returncode != 0:
            complaint = result.stderr.strip().splitlines()
            found.append(
                f"This kernel offers no {what} ({complaint[-1] if complaint else 'it does not say why'}): use a machine"
                f" or virtual machine whose kernel does."
            )
    if not Path("/dev/fuse").exists():
        found.append("/dev/fuse is missing, which gives each host its own /proc: 'modprobe fuse', or another kernel.")
    if not cgroups.has_memory_limits():
        found.append("Memory control groups are off: boot the kernel with cgroup_enable=memory.")
    return found


def _memory_mib(groups: cgroups.Groups) -> int:
    figures = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        figures[key] = int(value.split()[0]) // 1024
    own = sum(groups.memory_usage(name) for name in groups.groups()) >> 20
    return min(figures["MemTotal"], figures["MemAvailable"] + own)


def _free_mib(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize >> 20


def _routes() -> List[Tuple[str, str]]:
    found = []
    for route in _ip("-4", "route", "show", "table", "main"):
        if route.get("dst") not in (None, "default") and "dev" in route:
            network = ipaddress.IPv4Network(str(route["dst"]), strict=False)
            found.append((str(network), str(route["dev"])))
    return found


def _devices() -> Dict[str, str]:
    return {
        str(link["ifname"]): str(link.get("linkinfo", {}).get("info_kind", "a network card"))
        for link in _ip("-details", "link", "show")
    }


def _ip(*words: str) -> List[Dict[str, Any]]:
    result = subprocess.run(["ip", "-json", *words], capture_output=True, text=True)
    parsed = json.loads(result.stdout or "[]")
    return [item for item in parsed if isinstance(item, dict)]
