"""The sizes in which the demonstration can be run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    """How the application's memory develops on each rank: MiB at its start, MiB/s, MiB at most."""

    start_mb: int
    rate_mb_s: float
    limit_mb: int
    hold_s: float


@dataclass(frozen=True)
class Scale:
    """Hosts in use, spares and guests of a demonstration, and how much memory its ranks take."""

    name: str
    inventory: str
    hosts_in_use: int
    hosts_idle: int
    guests_per_host: int
    guest_memory_mb: int
    growth: Growth  # runs 1 and 2
    hog_growth: Growth  # run 3: the application itself takes as much on every host
    hog_share: float = 0.5
    hog_seconds: float = 11.0

    @property
    def guests(self) -> int:
        """All guests; each runs one rank."""
        return self.hosts_in_use * self.guests_per_host


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            name="default",
            inventory="testbed",
            hosts_in_use=4,
            hosts_idle=1,
            guests_per_host=2,
            guest_memory_mb=860,
            growth=Growth(start_mb=70, rate_mb_s=4.75, limit_mb=240, hold_s=3),
            hog_growth=Growth(start_mb=70, rate_mb_s=80, limit_mb=600, hold_s=5),
        ),
        Scale(
            name="rack",
            inventory="testbed-rack",
            hosts_in_use=8,
            hosts_idle=2,
            guests_per_host=2,
            guest_memory_mb=860,
            growth=Growth(start_mb=70, rate_mb_s=4.75, limit_mb=240, hold_s=3),
            hog_growth=Growth(start_mb=70, rate_mb_s=80, limit_mb=600, hold_s=5),
        ),
        Scale(
            name="paper",
            inventory="testbed-paper",
            hosts_in_use=8,
            hosts_idle=2,
            guests_per_host=8,
            guest_memory_mb=288,
            growth=Growth(start_mb=4, rate_mb_s=0.125, limit_mb=10, hold_s=105),
            hog_growth=Growth(start_mb=4, rate_mb_s=5, limit_mb=38, hold_s=10),
            hog_seconds=180.0,
        ),
    )
}
