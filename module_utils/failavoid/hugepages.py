"""Hugepages: what a host has set aside on each NUMA node, and whether guests that are to come find enough of them free.

https://docs.kernel.org/admin-guide/mm/hugetlbpage.html
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Tuple

from . import domain_xml

NODES = Path("/sys/devices/system/node")


def set_aside(node: str) -> Dict[str, int]:
    """Number of hugepages of a NUMA node, in use or free, by their size in kB; sizes without any are not named."""
    found = {}
    for size in sorted((NODES / f"node{node}" / "hugepages").glob("hugepages-*kB")):
        pages = int((size / "nr_hugepages").read_text())
        if pages:
            found[size.name[len("hugepages-") : -len("kB")]] = pages
    return found


def lacking(peer: Any, coming: List[Tuple[str, int]]) -> List[str]:
    """Say in words which hugepages the host of the libvirt ``peer`` lacks for guests; an empty list if none.

    ``coming`` are the guests' XML and the NUMA nodes they are to have.
    """
    needed: Counter[Tuple[int, int]] = Counter()
    for xml, node in coming:
        page_kb = domain_xml.hugepage_kb_of(xml)
        if page_kb:
            needed[node, page_kb] += math.ceil(domain_xml.memory_kb_of(xml) / page_kb)
    said = []
    for (node, page_kb), pages in sorted(needed.items()):
        free = peer.getFreePages([page_kb], node, 1)[node][page_kb]
        if free < pages:
            said.append(f"has {free} free hugepages of {page_kb} kB on NUMA node {node} and {pages} are needed")
    return said
