"""Where jobs and guests go: pure functions on the state. Errors are sentences for the user."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable

from failavoid.resource_manager.store import State
from failavoid.shared.messages import Guest, Host, JobRequest, Placement


class NoRoomError(Exception):
    """What was asked for is not to be had; the message says why, with figures."""


def choose_hosts(state: State, request: JobRequest, spares: int, reserve_kb: int, image: str) -> list[Host]:
    """Free hosts for a job, those first that hold guests it can use again. Raises NoRoomError."""
    needed = request.guests_per_host * request.guest_memory_kb
    leased = {lease.host for lease in state.leases.values()}
    free = [host for host in state.hosts.values() if host.pool == "free" and host.name not in leased]
    fitting = [host for host in free if host.memory_kb - reserve_kb >= needed]
    if len(fitting) < request.hosts:
        raise NoRoomError(
            f"{request.hosts} hosts with {needed // 1024} MiB for guests are asked for; of {len(state.hosts)} hosts "
            f"{len(free)} are free and {len(fitting)} of these have that much"
        )
    if len(free) - request.hosts < spares:
        raise NoRoomError(
            f"{request.hosts} hosts are asked for, {len(free)} are free and {spares} must stay spare: "
            f"ask for {max(0, len(free) - spares)} or fewer, or wait for another job's end"
        )

    def usable(host: Host) -> int:
        return sum(fits(guest, request, image) for guest in state.guests.values() if guest.host == host.name)

    fitting.sort(key=lambda host: (-min(usable(host), request.guests_per_host), host.name))
    return sorted(fitting[: request.hosts], key=lambda host: host.name)


def fits(guest: Guest, request: JobRequest, image: str) -> bool:
    """Whether an idle guest can be used again for a job: the same user, size and image."""
    return (
        guest.job is None
        and guest.state == "ready"
        and guest.user == request.user
        and guest.memory_kb == request.guest_memory_kb
        and guest.image == image
    )


def place(state: State, host: Host, guest: str, vcpus: int = 1) -> Placement:
    """Cores for a guest on a host: within one NUMA node, the least shared first."""
    held: Counter[int] = Counter()
    for other in state.guests.values():
        if other.host == host.name and other.name != guest:
            held.update(other.cores)
    for name, reserved in state.reserved.items():
        if reserved.host == host.name and name != guest:
            held.update(reserved.cores)
    if not host.numa:
        raise NoRoomError(f"host {host.name}: its NUMA nodes are not known: run the role 'hypervisor'")

    def burden(node: str) -> tuple[int, int]:
        cores = sorted(host.numa[node], key=lambda core: (held[core], core))[:vcpus]
        return max(held[core] for core in cores) if len(cores) == vcpus else len(held) + 1000, int(node)

    node = min(host.numa, key=burden)
    cores = sorted(host.numa[node], key=lambda core: (held[core], core))[:vcpus]
    return Placement(guest, host.name, cores, int(node))


def warnings(state: State, host: Host) -> list[str]:
    """What a person should know of a host: guests that share a core."""
    held: Counter[int] = Counter()
    for guest in state.guests.values():
        if guest.host == host.name:
            held.update(guest.cores)
    shared = sorted(core for core, count in held.items() if count > 1)
    return [f"{host.name}: more than one guest is pinned to core {', '.join(map(str, shared))}"] if shared else []


def free_address(network: str, taken: Iterable[str]) -> str:
    """An address for a guest that nobody has. Raises NoRoomError."""
    used = set(taken)
    for address in ipaddress.ip_network(network).hosts():
        if str(address) not in used:
            return str(address)
    raise NoRoomError(f"all addresses of guest_network {network} are taken")


def hardware_address(address: str) -> str:
    """A guest's MAC address, from its IP address: unique where that is."""
    return "52:54:" + ":".join(f"{byte:02x}" for byte in ipaddress.ip_address(address).packed[-4:])


def netmask(prefix: int) -> str:
    """The mask of a prefix, as the kernel's ip= wants it."""
    return str(ipaddress.ip_network(f"0.0.0.0/{prefix}").netmask)
