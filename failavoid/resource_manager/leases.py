"""Leases of spares, and what an evacuation does with them."""

from __future__ import annotations

import time

from failavoid.resource_manager import placement
from failavoid.resource_manager.launch import free_hosts
from failavoid.resource_manager.store import State
from failavoid.shared.messages import Lease, Placement


def take(state: State, evacuation: str, lease_s: float, number: int) -> Lease:
    """Hold a spare for an evacuation; asked again, the same one, for longer. Raises NoRoomError."""
    for lease in state.leases.values():
        if lease.evacuation == evacuation:
            lease.expires = time.time() + lease_s
            return lease
    leased = {lease.host for lease in state.leases.values()}
    spares = [host for host in state.hosts.values() if host.pool == "free" and host.name not in leased]
    if not spares:
        pools = ", ".join(f"{host.name} {host.pool}" for host in state.hosts.values())
        raise placement.NoRoomError(f"there is no spare for {evacuation}: {pools}. Restore a host, or end a job")
    # one without idle guests has its memory to itself
    spare = min(spares, key=lambda host: (sum(g.host == host.name for g in state.guests.values()), host.name))
    lease = Lease(f"lease-{number}", spare.name, evacuation, time.time() + lease_s)
    state.leases[lease.id] = lease
    spare.reason = f"leased to {evacuation}"
    return lease


def give_back(state: State, lease: Lease) -> None:
    """End a lease without use: the spare is free, places on it are given up."""
    state.leases.pop(lease.id, None)
    for name in [name for name, place in state.reserved.items() if place.host == lease.host]:
        del state.reserved[name]
    host = state.hosts.get(lease.host)
    if host is not None and host.pool == "free":
        host.reason = ""


def reserve(state: State, guests: list[str], host: str) -> list[Placement]:
    """Reserve cores for guests on a host; asked again, the same ones. Raises NoRoomError."""
    if host not in state.hosts:
        raise placement.NoRoomError(f"there is no host {host}")
    unknown = [name for name in guests if name not in state.guests]
    if unknown:
        raise placement.NoRoomError(f"there is no guest {', '.join(unknown)}")
    placed = []
    for name in guests:
        reserved = state.reserved.get(name)
        if reserved is None or reserved.host != host:
            reserved = placement.place(state, state.hosts[host], name, len(state.guests[name].cores))
            state.reserved[name] = reserved
        placed.append(reserved)
    return placed


def commit(state: State, lease: Lease, placements: list[Placement]) -> None:
    """The guests run where they were placed; the spare belongs to their job now."""
    for placed in placements:
        guest = state.guests.get(placed.guest)
        if guest is None:
            raise placement.NoRoomError(f"there is no guest {placed.guest}")
        guest.host, guest.cores, guest.numa_node = placed.host, placed.cores, placed.numa_node
        state.reserved.pop(placed.guest, None)
    spare = state.hosts[lease.host]
    jobs = sorted({state.guests[p.guest].job or "" for p in placements} - {""})
    if placements:
        spare.pool, spare.reason = "allocated", " ".join(jobs)
    give_back(state, lease)
    free_hosts(state)


def expire(state: State, now: float) -> list[Lease]:
    """Give back the leases whose time is over; returns them."""
    over = [lease for lease in state.leases.values() if lease.expires < now]
    for lease in over:
        give_back(state, lease)
    return over
