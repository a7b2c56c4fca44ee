"""The resource manager's settings, from /etc/failavoid/resource_manager.yml."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from failavoid.services import Tls, check_url
from failavoid.shared.names import check_domain, check_name

RELOCATE = ("kvm", "always", "never")  # kvm: between hosts that have it, where a move takes less than a boot


@dataclass
class HostSettings:
    """A host as the inventory and the host itself describe it."""

    name: str
    address: str
    memory_kb: int
    numa: dict[str, list[int]]
    machine: str = ""  # the same for hosts that share a kernel, and so its cores; empty where that is not known
    hardware_class: str = ""
    reserved_spare: bool = False
    domains: dict[str, str] = field(default_factory=dict)  # failure domains, e.g. {"rack": "r1", "psu": "p3"}
    hugepages: dict[str, dict[str, int]] = field(default_factory=dict)  # NUMA node -> size in kB -> number set aside
    devices: dict[str, list[str]] = field(default_factory=dict)  # for guests: kind -> PCI addresses
    kvm: bool = False  # its guests run on its processors; otherwise they are emulated

    def __post_init__(self) -> None:
        for kind, name in self.domains.items():
            check_domain(f"{kind}={name}")
        for kind in self.devices:
            check_name("device kind", kind)


@dataclass
class WarmPool:
    """Guests that are booted before anybody asks: ``guests`` of one size, for ``user`` or, if empty, for anyone."""

    guests: int
    memory_kb: int = 262144
    vcpus: int = 1
    per_host: int = 1
    user: str = ""
    hugepage_kb: int = 0


@dataclass
class Hooks:
    """The site's commands, by occasion; each is a line for the shell."""

    alarm: list[str] = field(default_factory=list)
    retire: list[str] = field(default_factory=list)
    restore: list[str] = field(default_factory=list)
    timeout_s: float = 10.0  # for each command
    must_succeed: bool = False  # a command that fails stops a retirement or a return to service


@dataclass
class Settings:
    """What the resource manager can be told. Durations are seconds."""

    hosts: list[HostSettings]
    head_address: str
    guest_network: str  # where guests' addresses are taken from, e.g. 10.77.2.0/23
    prefix: int  # of the network that hosts and guests share
    listen: str = "0.0.0.0"
    port: int = 7412
    monitor: str = "https://127.0.0.1:7411"
    controller: str = "https://127.0.0.1:7413"
    tls: Tls = field(default_factory=Tls)
    secret: str = "/etc/failavoid/secret"
    state: str = "/var/lib/failavoid/resource_manager"
    inventory: str = "/etc/failavoid/inventory/hosts.yml"
    host_keys: str = "/etc/failavoid/ssh/known_hosts"
    sysimage: str = "/var/lib/failavoid/sysimage"
    boot: str = "/var/lib/failavoid/boot"
    spares: int = 1  # hosts that no job gets
    share_cores: bool = False  # whether two guests may be pinned to one core
    compatible: dict[str, list[str]] = field(default_factory=dict)  # class -> other classes whose guests it can run
    lease_s: float = 300.0
    look_s: float = 2.0  # between looks at the libvirt of hosts with guests
    look_at_all_s: float = 30.0  # between looks at all hosts
    silence_s: float = 60.0  # a job whose client was not heard for so long is ended
    ended_jobs: int = 200  # so many jobs that have ended are remembered
    idle_guest_s: float = 3600.0  # a guest that its user did not use for so long is removed
    on_hosts_below_s: float = 0.0  # jobs expected to end sooner run on hosts without guests
    restore_memory_share: float = 0.8  # of the memory for guests; less must not be available on a restored host
    warm_pools: list[WarmPool] = field(default_factory=list)
    relocate_warm: str = "kvm"  # of RELOCATE: to move guests that are up to a job's hosts, rather than boot others
    hooks: Hooks = field(default_factory=Hooks)
    guest_interval_s: float = 5.0
    guest_hugepage_kb: int = 0  # of guests whose job does not say; 0: ordinary pages
    guest_mounts: list[dict[str, Any]] = field(default_factory=list)
    guest_root_keys: list[str] = field(default_factory=list)
    reserve_kb: int = 262144  # of a host's memory that no guest gets

    def __post_init__(self) -> None:
        self.tls.check(self.listen)
        check_url("monitor", self.monitor)
        if self.spares < 1:
            raise ValueError(
                f"setting 'spares' is {self.spares}; without a spare no host can be evacuated: use 1 or more"
            )
        for name, least in (
            ("look_s", 0.2),
            ("look_at_all_s", 0.2),
            ("silence_s", 10.0),
            ("lease_s", 1.0),
            ("ended_jobs", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"setting {name!r} is {getattr(self, name)}; use {least:g} or more")
        if self.relocate_warm not in RELOCATE:
            raise ValueError(f"setting 'relocate_warm' is {self.relocate_warm!r}; use one of {', '.join(RELOCATE)}")
        if not 0 <= self.restore_memory_share <= 1:
            raise ValueError(
                f"setting 'restore_memory_share' is {self.restore_memory_share}; it is a share, from 0 to 1"
            )
        if not 0 < self.hooks.timeout_s <= 600:
            raise ValueError(f"setting 'timeout_s' is {self.hooks.timeout_s}; use more than 0, up to 600 seconds")
        for pool in self.warm_pools:
            if pool.user:
                check_name("user", pool.user)
            for name, least in (("guests", 0), ("memory_kb", 131072), ("vcpus", 1), ("per_host", 1)):
                if getattr(pool, name) < least:
                    raise ValueError(f"setting {name!r} is {getattr(pool, name)}; use {least} or more")
