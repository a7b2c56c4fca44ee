"""Leases of spares, and what an evacuation does with them."""

from __future__ import annotations

import time

from failavoid.resource_manager import placement
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import State, mark
from failavoid.shared.messages import Guest, Host, Lease, LeaseRequest, Placement


def take(state: State, request: LeaseRequest, settings: Settings, number: int) -> Lease:
    """Hold a spare for an evacuation; asked again, the same one, for longer. Raises NoRoomError.

    The spare has room for the guests that will come and is of a class they can run on. Guests on it that no job uses
    are nobody's to use from now on: the caller removes them, for the evacuation needs their memory.
    """
    for lease in state.leases.values():
        wanted = request.host in ("", lease.host) and lease.host not in request.avoid_hosts
        if lease.evacuation == request.evacuation and wanted:
            lease.expires = time.time() + settings.lease_s
            return lease
    spare = _choose(state, request, settings)
    lease = Lease(f"lease-{number}", spare.name, request.evacuation, time.time() + settings.lease_s)
    state.leases[lease.id] = lease
    for guest in state.guests_on(spare.name):
        if guest.job is None:
            guest.state = "lost"
    return lease


def _choose(state: State, request: LeaseRequest, settings: Settings) -> Host:
    """The host that suits best: a free one, reserved spares first, else one to share, else one of the guests' job."""
    leased = state.leased()
    coming = [state.guests[name] for name in request.guests if name in state.guests]
    hosts = [host for host in state.hosts.values() if request.host in ("", host.name)]
    allowed = [host for host in hosts if not _avoided(host, request)]
    free = [host for host in allowed if host.pool == "free" and host.name not in leased]
    objections = {host.name: _too_small(state, host, coming, settings) for host in free}
    fitting = [host for host in free if not objections[host.name]]
    if not fitting:
        beside = {lease.host for lease in state.leases.values() if lease.evacuation in request.beside}
        fitting = [
            host for host in allowed if host.name in beside and not placement.objection(state, host, coming, settings)
        ]
    if not fitting and request.pack:
        jobs = {guest.job for guest in coming if guest.job}
        used = {guest.host for guest in state.guests.values() if guest.job in jobs}
        fitting = [
            host
            for host in allowed
            if host.name in used and not host.marks and not placement.objection(state, host, coming, settings)
        ]
    if not fitting:
        pools = ", ".join(
            f"{host.name} {'leased' if host.name in leased and host.pool == 'free' else host.pool}"
            + (" (to be avoided)" if _avoided(host, request) else "")
            for host in sorted(state.hosts.values(), key=lambda host: host.name)
        )
        words = ". ".join(filter(None, [pools, *(objections[name] for name in sorted(objections))]))
        raise placement.NoRoomError(
            f"there is no spare for {request.evacuation}: {words}. Restore a host, or end a job"
        )

    def burden(host: Host) -> tuple[bool, int, int, str]:
        return not host.reserved_spare, len(state.guests_on(host.name)), -host.memory_kb, host.name

    return min(fitting, key=burden)


def _avoided(host: Host, request: LeaseRequest) -> bool:
    domains = {f"{kind}={name}" for kind, name in host.domains.items()}
    return host.name in request.avoid_hosts or not domains.isdisjoint(request.avoid_domains)


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
    """End a lease; places on its spare are given up, unless another lease shares it."""
    state.leases.pop(lease.id, None)
    if any(other.host == lease.host for other in state.leases.values()):
        return
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
