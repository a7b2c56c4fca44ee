"""Where jobs and guests go: pure functions on the state. Errors are sentences for the user."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable

from failavoid.resource_manager.store import State
from failavoid.shared.messages import Guest, Host, JobRequest, Placement


class NoRoomError(Exception):
    """What was asked for is not to be had; the message says why, with figures."""


def choose_hosts(state: State, request: JobRequest, spares: int, reserve_kb: int, terms: str) -> list[Host]:
    """Free hosts for a job, those first that hold guests it can use again. Raises NoRoomError."""
    needed = request.guests_per_host * request.guest_memory_kb
    leased = {lease.host for lease in state.leases.values()}
    free = [host for host in state.hosts.values() if host.pool == "free" and host.name not in leased]
    fitting = [host for host in free if host.memory_kb - reserve_kb >= needed]
    if len(fitting) < request.hosts:
        raise NoRoomError(
            f"{request.hosts} hosts with {needed // 1024} MiB for guests are asked for; of {len(state.hosts)} hosts "
            f"{len(free)} are free and {len(fitting)} of these have that much beside the {reserve_kb // 1024} MiB that "
            "a host keeps. Ask for fewer or smaller guests, or wait for another job's end"
        )
    if len(free) - request.hosts < spares:
        raise NoRoomError(
            f"{request.hosts} hosts are asked for, {len(free)} are free and {spares} must stay spare: "
            f"ask for {max(0, len(free) - spares)} or fewer, or wait for another job's end"
        )

    def usable(host: Host) -> int:
        return sum(fits(state, guest, request, terms) for guest in state.guests.values() if guest.host == host.name)

    fitting.sort(key=lambda host: (-min(usable(host), request.guests_per_host), host.name))
    return sorted(fitting[: request.hosts], key=lambda host: host.name)


def fits(state: State, guest: Guest, request: JobRequest, terms: str) -> bool:
    """Whether an idle guest can be used again for a job: the size fits, and what it was told at its boot."""
    return (
        guest.job is None
        and guest.state == "ready"
        and guest.memory_kb == request.guest_memory_kb
        and state.terms.get(guest.name) == terms
    )


def place(state: State, host: Host, guest: str, vcpus: int = 1) -> Placement:
    """Cores for a guest on a host: within one NUMA node, the least shared first. Raises NoRoomError."""
    held: Counter[int] = Counter()
    for other in state.guests.values():
        if other.host == host.name and other.name != guest and other.state != "lost":
            held.update(other.cores)
    for name, reserved in state.reserved.items():
        if reserved.host == host.name and name != guest:
            held.update(reserved.cores)
    chosen = {
        node: sorted(cores, key=lambda core: (held[core], core))[:vcpus]
        for node, cores in host.numa.items()
        if len(cores) >= vcpus
    }
    if not chosen:
        raise NoRoomError(
            f"host {host.name} has no NUMA node with {vcpus} cores for guest {guest}; its nodes are {host.numa}"
        )

    def burden(node: str) -> tuple[int, int, int]:
        # of nodes alike the emptier one: its memory has more bandwidth to spare
        return max(held[core] for core in chosen[node]), sum(held[core] for core in host.numa[node]), int(node)

    node = min(chosen, key=burden)
    return Placement(guest, host.name, chosen[node], int(node))


def warnings(guests: Iterable[Guest], machines: dict[str, str]) -> dict[str, list[str]]:
    """What a person should know of each host: guests that share cores.

    ``machines`` maps hosts to what runs them: hosts may be containers or guests of one machine.
    """
    words: dict[str, list[str]] = {}
    held: Counter[tuple[str, int]] = Counter()
    for guest in guests:
        if guest.state != "lost":
            held.update((guest.host, core) for core in guest.cores)
    for host in sorted({host for host, _ in held}):
        shared = [str(core) for (name, core), count in sorted(held.items()) if name == host and count > 1]
        if shared:
            words.setdefault(host, []).append(f"{host}: more than one guest is pinned to core {', '.join(shared)}")
    for machine in sorted(set(machines.values()) - {""}):
        together = sorted(name for name, other in machines.items() if other == machine)
        if len(together) > 1:
            sentence = (
                f"{', '.join(together)} run on one machine: guests of different hosts are pinned to the same cores"
            )
            for host in together:
                words.setdefault(host, []).append(sentence)
    return words


def free_address(network: str, taken: Iterable[str]) -> str:
    """An address for a guest that nobody has. Raises NoRoomError."""
    used = set(taken)
    for address in ipaddress.ip_network(network).hosts():
        if str(address) not in used:
            return str(address)
    raise NoRoomError(f"all addresses of guest_network {network} are taken")


def netmask(prefix: int) -> str:
    """The mask of a prefix, as the kernel's ip= wants it."""
    return str(ipaddress.ip_network(f"0.0.0.0/{prefix}").netmask)
