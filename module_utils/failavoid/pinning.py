"""Where a guest really runs: read from the host's /proc, not from what was asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Set

_VCPU = re.compile(r"CPU (\d+)/")


@dataclass
class Pinning:
    """What the kernel says of a guest's process: cores by vCPU, memory policy, pages by NUMA node."""

    vcpu_cores: Dict[int, List[int]] = field(default_factory=dict)
    policies: List[str] = field(default_factory=list)
    pages: Dict[int, int] = field(default_factory=dict)


def observe(pid: int, proc: Path = Path("/proc")) -> Pinning:
    """Read vCPU threads' affinity and the largest mapping's pages (the guest's memory) of process ``pid``."""
    found = Pinning()
    for task in (proc / str(pid) / "task").iterdir():
        vcpu = _VCPU.match((task / "comm").read_text())
        if vcpu:
            found.vcpu_cores[int(vcpu[1])] = _allowed(task / "status")
    largest = 0
    for line in (proc / str(pid) / "numa_maps").read_text().splitlines():
        words = line.split()
        pages = {int(n[1:]): int(count) for n, _, count in (w.partition("=") for w in words) if _is_node(n)}
        if sum(pages.values()) > largest:
            largest = sum(pages.values())
            found.policies, found.pages = [words[1]], pages
    return found


def differences(found: Pinning, cores: List[int], numa_node: int, vcpus: int) -> List[str]:
    """Say in words where a guest does not run as it should; an empty list if it does."""
    said = []
    for vcpu in range(vcpus):
        should = [cores[vcpu % len(cores)]]
        if found.vcpu_cores.get(vcpu) != should:
            said.append(f"vCPU {vcpu} may run on cores {found.vcpu_cores.get(vcpu)}, not {should}")
    bound: Set[str] = {policy for policy in found.policies if policy.split(":")[0] in ("bind", "membind")}
    if not bound or any(policy.split(":")[1] != str(numa_node) for policy in bound):
        said.append(f"memory has policy {', '.join(found.policies) or 'none'}, not bind:{numa_node}")
    elsewhere = {node: count for node, count in found.pages.items() if node != numa_node and count}
    if elsewhere:
        said.append(f"pages lie on other NUMA nodes than {numa_node}: {elsewhere}")
    return said


def _is_node(word: str) -> bool:
    return len(word) > 1 and word[0] == "N" and word[1:].isdigit()


def _allowed(status: Path) -> List[int]:
    for line in status.read_text().splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return parse_list(line.split(":")[1])
    return []


def parse_list(text: str) -> List[int]:
    """Numbers of a kernel list such as ``0-3,8``."""
    numbers: List[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    return numbers
