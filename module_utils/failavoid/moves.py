"""Guests' moves as they are asked for and recorded, and how long and how fast they may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional

LEAST_LIMIT_S = 120.0


@dataclass
class Limits:
    """How many guests move at once and how fast, and when a move is given up.

    ``stall_s``: nothing was sent for so long. ``seconds_per_gib``: of the guest's memory; a fixed limit would end
    healthy moves of large guests. ``connections`` are those that a guest's memory is sent on. ``bandwidth_mib_s`` is
    for all moves of an evacuation together, 0 for no limit. ``unplug_s``: for a guest to give up its devices.
    """

    parallel: int = 8
    stall_s: float = 60.0
    seconds_per_gib: float = 120.0
    connections: int = 1
    bandwidth_mib_s: int = 0
    unplug_s: float = 30.0


@dataclass
class Move:
    """One guest's move, and what is known of it; the names are those of messages.Migration.

    ``devices`` are the destination's, each a ``kind`` and an ``address``: those that the guest has here are unplugged.
    """

    guest: str
    source: str
    destination: str
    destination_address: str
    cores: List[int]
    numa_node: int
    state: str = "planned"  # planned | running | moved | failed | cancelled
    elapsed_s: Optional[float] = None
    downtime_ms: Optional[float] = None
    bytes: Optional[int] = None
    memory_bps: Optional[int] = None
    iterations: Optional[int] = None
    remaining: Optional[int] = None  # bytes still to send, while it runs
    dirty_bps: Optional[int] = None  # bytes that the guest wrote to its memory in a second, when QEMU last looked
    error: str = ""
    devices: List[Dict[str, str]] = field(default_factory=list)


@dataclass
class Record:
    """All moves of one evacuation from this host, as the file holds them."""

    evacuation: str
    moves: List[Move]
    limits: Limits = field(default_factory=Limits)
    process: int = 0
    began: float = 0.0
    ended: Optional[float] = None

    def bandwidth_mib_s(self) -> int:
        """What one guest may be sent with, where a limit is set: its part of what all may take together."""
        at_once = max(1, min(self.limits.parallel, len(self.moves)))
        return max(1, self.limits.bandwidth_mib_s // at_once) if self.limits.bandwidth_mib_s else 0

    def limit_s(self, memory_kb: int) -> float:
        """How long the move of a guest with so much memory may take: also what is sent slowly on purpose arrives."""
        slowest = self.bandwidth_mib_s()
        paced = 3 * memory_kb / 1024 / slowest if slowest else 0.0
        return max(LEAST_LIMIT_S, self.limits.seconds_per_gib * memory_kb / 1024**2, paced)
