"""The resource manager's settings, from /etc/failavoid/resource_manager.yml."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from failavoid.services import Tls


@dataclass
class HostSettings:
    """A host as the inventory and the host itself describe it."""

    name: str
    address: str
    memory_kb: int
    numa: dict[str, list[int]]
    machine: str = ""  # the same for hosts that share a kernel, and so its cores


@dataclass
class Settings:
    """What the resource manager can be told. Durations are seconds."""

    hosts: list[HostSettings]
    head_address: str
    guest_network: str  # where guests' addresses are taken from, e.g. 10.77.2.0/23
    prefix: int  # of the network that hosts and guests share
    listen: str = "0.0.0.0"
    port: int = 7412
    tls: Tls = field(default_factory=Tls)
    secret: str = "/etc/failavoid/secret"
    state: str = "/var/lib/failavoid/resource_manager"
    inventory: str = "/etc/failavoid/inventory/hosts.yml"
    sysimage: str = "/var/lib/failavoid/sysimage"
    boot: str = "/var/lib/failavoid/boot"
    spares: int = 1  # hosts that no job gets
    lease_s: float = 300.0
    look_s: float = 2.0  # between looks at the hosts' libvirt
    guest_interval_s: float = 5.0
    guest_mounts: list[dict[str, Any]] = field(default_factory=list)
    guest_root_keys: list[str] = field(default_factory=list)
    reserve_kb: int = 262144  # of a host's memory that no guest gets

    def __post_init__(self) -> None:
        self.tls.check(self.listen)
        if self.spares < 1:
            raise ValueError(
                f"setting 'spares' is {self.spares}; without a spare no host can be evacuated: use 1 or more"
            )
        if self.look_s < 0.2:
            raise ValueError(f"setting 'look_s' is {self.look_s}; use 0.2 or more")
