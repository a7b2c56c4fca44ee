"""Leases of spares, and what an evacuation does with them."""

from __future__ import annotations

import time

from failavoid.resource_manager import placement
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import State, mark
from failavoid.shared.messages import Guest, Host, Lease, Placement


def take(state: State, evacuation: str, guests: list[str], settings: Settings, number: int) -> Lease:
    """Hold a spare for an evacuation; asked again, the same one, for longer. Raises NoRoomError.

    ``guests`` are those that will come: the spare has room for them and is of a class they can run on. Reserved
    spares are taken first. Guests on it that no job uses are nobody's to use from now on: the caller removes them,
    for the evacuation needs their memory.
    """
    for lease in state.leases.values():
        if lease.evacuation == evacuation:
            lease.expires = time.time() + settings.lease_s
            return lease
    leased = state.leased()
    spares = [host for host in state.hosts.values() if host.pool == "free" and host.name not in leased]
    coming = [state.guests[name] for name in guests if name in state.guests]
    objections = {host.name: _too_small(state, host, coming, settings) for host in spares}
    fitting = [host for host in spares if not objections[host.name]]
    if not fitting:
        pools = ", ".join(
            f"{host.name} {'leased' if host.name in leased and host.pool == 'free' else host.pool}"
            for host in sorted(state.hosts.values(), key=lambda host: host.name)
        )
        words = ". ".join(filter(None, [pools, *(objections[name] for name in sorted(objections))]))
        raise placement.NoRoomError(f"there is no spare for {evacuation}: {words}. Restore a host, or end a job")

    def burden(host: Host) -> tuple[bool, int, int, str]:
        return not host.reserved_spare, len(state.guests_on(host.name)), -host.memory_kb, host.name

    spare = min(fitting, key=burden)
    lease = Lease(f"lease-{number}", spare.name, evacuation, time.time() + settings.lease_s)
    state.leases[lease.id] = lease
    for guest in state.guests_on(spare.name):
        if guest.job is None:
            guest.state = "lost"
    return lease


def _too_small(state: State, spare: Host, coming: list[Guest], settings: Settings) -> str:
    """Why guests can't come to a spare once it is rid of those that no job uses, or nothing."""
    empty = State(guests={guest.name: guest for guest in coming})
    trouble = placement.objection(empty, spare, coming, settings)
    if trouble or settings.share_cores:
        return trouble
    try:
        for guest in coming:
            placed = placement.place(empty, spare, guest.name, len(guest.cores))
            empty.reserved[guest.name] = placed
    except placement.NoRoomError as error:
        return str(error)
    return ""


def give_back(state: State, lease: Lease) -> None:
    """End a lease; places on its spare are given up."""
    state.leases.pop(lease.id, None)
    for name in [name for name, place in state.reserved.items() if place.host == lease.host]:
        del state.reserved[name]


def reserve(state: State, guests: list[str], host: str, settings: Settings) -> list[Placement]:
    """Reserve cores and memory for guests on a host; asked again, the same ones. Raises NoRoomError."""
    if host not in state.hosts:
        raise placement.NoRoomError(f"there is no host {host}")
    unknown = [name for name in guests if name not in state.guests]
    if unknown:
        raise placement.NoRoomError(f"there is no guest {', '.join(unknown)}")
    trouble = placement.objection(state, state.hosts[host], [state.guests[name] for name in guests], settings)
    if trouble:
        raise placement.NoRoomError(trouble)
    placed = []
    for name in guests:
        reserved = state.reserved.get(name)
        if reserved is None or reserved.host != host:
            vcpus = len(state.guests[name].cores)
            reserved = placement.place(state, state.hosts[host], name, vcpus, settings.share_cores)
            state.reserved[name] = reserved
        placed.append(reserved)
    return placed


def commit(state: State, lease: Lease, placements: list[Placement], who: str) -> None:
    """The guests run where they were placed; the spare belongs to their job now. Raises NoRoomError.

    A host that they all left takes no other guest: it is marked as retired already, before `retire` says why.
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
            mark(state.hosts[name], "retired", who, f"evacuated as {lease.evacuation}", by_program=True)
    give_back(state, lease)


def expire(state: State, now: float) -> list[Lease]:
    """Give back the leases whose time is over; returns them.

    That of a host set aside stays, until the host is restored: guests may be there, and are looked for there.
    """
    aside = {host.name for host in state.hosts.values() if host.pool == "defunct"}
    over = [lease for lease in state.leases.values() if lease.expires < now and lease.host not in aside]
    for lease in over:
        give_back(state, lease)
    return over
