"""Where a guest really runs: read from the host's /proc, not from what was asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Set

_VCPU = re.compile(r"CPU (\d+)/")
_PAGE_KB = 4


@dataclass
class Pinning:
    """What the kernel says of a guest's process: cores by vCPU, memory policy, pages by NUMA node and their size.

    ``emulator_cores`` are those that QEMU's other threads may run on.
    """

    vcpu_cores: Dict[int, List[int]] = field(default_factory=dict)
    emulator_cores: Set[int] = field(default_factory=set)
    policies: List[str] = field(default_factory=list)
    pages: Dict[int, int] = field(default_factory=dict)
    page_kb: int = _PAGE_KB


def observe(pid: int, proc: Path = Path("/proc")) -> Pinning:
    """Read the threads' affinity and the largest mapping's pages (the guest's memory) of process ``pid``.

    The mapping's pages are counted in its own size, which numa_maps gives since Linux 3.15 (proc(5)).
    """
    found = Pinning()
    for task in (proc / str(pid) / "task").iterdir():
        try:
            vcpu, allowed = _VCPU.match((task / "comm").read_text()), _allowed(task / "status")
        except (FileNotFoundError, ProcessLookupError):  # QEMU's workers come and go
            continue
        if vcpu:
            found.vcpu_cores[int(vcpu[1])] = allowed
        else:
            found.emulator_cores.update(allowed)
    largest_kb = 0
    for line in (proc / str(pid) / "numa_maps").read_text().splitlines():
        words = line.split()
        given = [(name, value) for name, _, value in (word.partition("=") for word in words)]
        pages = {int(name[1:]): int(count) for name, count in given if _is_node(name)}
        page_kb = next((int(value) for name, value in given if name == "kernelpagesize_kB"), _PAGE_KB)
        if sum(pages.values()) * page_kb > largest_kb:
            largest_kb = sum(pages.values()) * page_kb
            found.policies, found.pages, found.page_kb = [words[1]], pages, page_kb
    return found


def differences(found: Pinning, cores: List[int], numa_node: int, vcpus: int, hugepage_kb: int = 0) -> List[str]:
    """Say in words where a guest does not run as it should; an empty list if it does.

    ``hugepage_kb`` is the size of the pages that its memory should lie on, 0 for ordinary ones.
    """
    said = []
    for vcpu in range(vcpus):
        should = [cores[vcpu % len(cores)]]
        if found.vcpu_cores.get(vcpu) != should:
            said.append(f"vCPU {vcpu} may run on cores {found.vcpu_cores.get(vcpu)}, not {should}")
    if not found.emulator_cores <= set(cores):
        said.append(
            f"QEMU's other threads may run on cores {sorted(found.emulator_cores)}, not {sorted(set(cores))} alone"
        )
    if hugepage_kb and found.page_kb != hugepage_kb:
        said.append(f"memory lies on pages of {found.page_kb} kB, not of {hugepage_kb} kB")
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
