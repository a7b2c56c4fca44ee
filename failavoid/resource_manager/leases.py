"""Leases of spares, and what an evacuation does with them."""

from __future__ import annotations

import time

from failavoid.resource_manager import placement
from failavoid.resource_manager.launch import free_hosts
from failavoid.resource_manager.store import State
from failavoid.shared.messages import Host, Lease, LeaseRequest, Placement


def take(state: State, request: LeaseRequest, lease_s: float, number: int, reserve_kb: int) -> Lease:
    """Hold a spare for an evacuation; asked again, the same one, for longer. Raises NoRoomError.

    Idle guests on it are nobody's to use from now on: the caller removes them, for the evacuation needs their memory.
    """
    for lease in state.leases.values():
        wanted = request.host in ("", lease.host) and lease.host not in request.avoid_hosts
        if lease.evacuation == request.evacuation and wanted:
            lease.expires = time.time() + lease_s
            return lease
    spare = _choose(state, request, reserve_kb)
    if spare.pool == "free" and not any(lease.host == spare.name for lease in state.leases.values()):
        spare.reason = f"leased to {request.evacuation}"
    lease = Lease(f"lease-{number}", spare.name, request.evacuation, time.time() + lease_s)
    state.leases[lease.id] = lease
    for guest in state.guests.values():
        if guest.host == spare.name and guest.job is None:
            guest.state = "lost"
    return lease


def _choose(state: State, request: LeaseRequest, reserve_kb: int) -> Host:
    """Return the host that suits best: a free one, else one to share, else one of the guests' job."""
    leased = {lease.host for lease in state.leases.values()}
    allowed = [host for host in state.hosts.values() if request.host in ("", host.name) and not _avoided(host, request)]
    spares = [host for host in allowed if host.pool == "free" and host.name not in leased]
    if not spares:
        beside = {lease.host for lease in state.leases.values() if lease.evacuation in request.beside}
        spares = [host for host in allowed if host.name in beside and _has_room(state, host, request, reserve_kb)]
    if not spares and request.pack:
        jobs = {guest.job for guest in state.guests.values() if guest.name in request.guests}
        used = {guest.host for guest in state.guests.values() if guest.job and guest.job in jobs}
        spares = [
            host
            for host in allowed
            if host.pool == "allocated" and host.name in used and _has_room(state, host, request, reserve_kb)
        ]
    if not spares:
        pools = ", ".join(
            f"{host.name} {'leased' if host.name in leased and host.pool == 'free' else host.pool}"
            + (" (to be avoided)" if _avoided(host, request) else "")
            for host in sorted(state.hosts.values(), key=lambda host: host.name)
        )
        raise placement.NoRoomError(
            f"there is no spare for {request.evacuation}: {pools}. Restore a host, or end a job"
        )

    def burden(host: Host) -> tuple[int, int, str]:
        return sum(guest.host == host.name for guest in state.guests.values()), -host.memory_kb, host.name

    return min(spares, key=burden)


def _avoided(host: Host, request: LeaseRequest) -> bool:
    domains = {f"{kind}={name}" for kind, name in host.domains.items()}
    return host.name in request.avoid_hosts or not domains.isdisjoint(request.avoid_domains)


def _has_room(state: State, host: Host, request: LeaseRequest, reserve_kb: int) -> bool:
    there = {name for name, placed in state.reserved.items() if placed.host == host.name}
    there |= {guest.name for guest in state.guests.values() if guest.host == host.name and guest.state != "lost"}
    there |= set(request.guests)
    needed = sum(state.guests[name].memory_kb for name in there if name in state.guests)
    return needed <= host.memory_kb - reserve_kb


def give_back(state: State, lease: Lease) -> None:
    """End a lease: the spare is free if it was not used, places on it are given up, unless another lease shares it."""
    state.leases.pop(lease.id, None)
    if any(other.host == lease.host for other in state.leases.values()):
        return
    for name in [name for name, place in state.reserved.items() if place.host == lease.host]:
        del state.reserved[name]
    host = state.hosts.get(lease.host)
    if host is not None and host.pool == "free":
        host.reason = ""


def reserve(state: State, guests: list[str], host: str, reserve_kb: int) -> list[Placement]:
    """Reserve cores and memory for guests on a host; asked again, the same ones. Raises NoRoomError."""
    if host not in state.hosts:
        raise placement.NoRoomError(f"there is no host {host}")
    unknown = [name for name in guests if name not in state.guests]
    if unknown:
        raise placement.NoRoomError(f"there is no guest {', '.join(unknown)}")
    to_be_there = set(guests) | {name for name, placed in state.reserved.items() if placed.host == host}
    to_be_there |= {guest.name for guest in state.guests.values() if guest.host == host and guest.state != "lost"}
    needed = sum(state.guests[name].memory_kb for name in to_be_there if name in state.guests)
    if needed > state.hosts[host].memory_kb - reserve_kb:
        raise placement.NoRoomError(
            f"{host} has {state.hosts[host].memory_kb // 1024} MiB, {reserve_kb // 1024} of them its own; with "
            f"{', '.join(guests)} its guests would need {needed // 1024} MiB"
        )
    placed = []
    for name in guests:
        reserved = state.reserved.get(name)
        if reserved is None or reserved.host != host:
            reserved = placement.place(state, state.hosts[host], name, len(state.guests[name].cores))
            state.reserved[name] = reserved
        placed.append(reserved)
    return placed


def commit(state: State, lease: Lease, placements: list[Placement]) -> None:
    """The guests run where they were placed; the spare belongs to their job now. Raises NoRoomError.

    A host that they all left takes no other guest: it is defunct already, before `retire` says why.
    """
    for placed in placements:
        if placed.guest not in state.guests:
            raise placement.NoRoomError(f"there is no guest {placed.guest}")
        if placed.host != lease.host:
            raise placement.NoRoomError(
                f"guest {placed.guest} is said to be on {placed.host}; {lease.id} is of {lease.host}"
            )
    left = {state.guests[placed.guest].host for placed in placements} - {lease.host}
    for placed in placements:
        guest = state.guests[placed.guest]
        guest.host, guest.cores, guest.numa_node = placed.host, placed.cores, placed.numa_node
        state.reserved.pop(placed.guest, None)
    in_use = {guest.host for guest in state.guests.values() if guest.job}
    for name in left - in_use:
        if name in state.hosts:
            state.hosts[name].pool, state.hosts[name].reason = "defunct", f"evacuated as {lease.evacuation}"
    jobs = sorted({state.guests[placed.guest].job or "" for placed in placements} - {""})
    if placements:
        state.hosts[lease.host].pool, state.hosts[lease.host].reason = "allocated", " ".join(jobs)
    give_back(state, lease)
    free_hosts(state)


def expire(state: State, now: float) -> list[Lease]:
    """Give back the leases whose time is over; returns them.

    That of a host set aside stays, until the host is restored: guests may be there, and are looked for there.
    """
    aside = {host.name for host in state.hosts.values() if host.pool == "defunct"}
    over = [lease for lease in state.leases.values() if lease.expires < now and lease.host not in aside]
    for lease in over:
        give_back(state, lease)
    return over
