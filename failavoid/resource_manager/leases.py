"""Leases of spares, and what an evacuation does with them."""

from __future__ import annotations

import contextlib
import time

from failavoid.resource_manager import placement
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import State, held, mark
from failavoid.shared.messages import Guest, Host, Lease, LeaseRequest, Placement


def take(state: State, request: LeaseRequest, settings: Settings, number: int) -> Lease:
    """Hold a spare for an evacuation; asked again, the same one, for longer. Raises NoRoomError.

    The spare has room for the guests that will come and is of a class they can run on. Guests on it that no job uses
    are nobody's to use from now on: the caller removes them, for the evacuation needs their memory.
    """
    for lease in state.leases.values():
        wanted = request.host in ("", lease.host) and not set(held(lease)) & set(request.avoid_hosts)
        if lease.evacuation == request.evacuation and wanted:
            lease.expires = time.time() + settings.lease_s
            return lease
    hosts = _choose(state, request, settings)
    lease = Lease(f"lease-{number}", hosts[0], request.evacuation, time.time() + settings.lease_s)
    lease.packed_onto = hosts if len(hosts) > 1 else []
    state.leases[lease.id] = lease
    for name in hosts:
        for guest in state.guests_on(name):
            if guest.job is None:
                guest.state = "lost"
    return lease


def _choose(state: State, request: LeaseRequest, settings: Settings) -> list[str]:
    """The host that suits best: a free one, reserved spares first, else one to share, else some of the guests' job."""
    leased = state.leased()
    coming = [state.guests[name] for name in request.guests if name in state.guests]
    wanted = request.packed_onto or ([request.host] if request.host else list(state.hosts))
    hosts = [host for host in state.hosts.values() if host.name in wanted]
    allowed = [host for host in hosts if not _avoided(host, request)]
    free = [host for host in allowed if host.pool == "free" and host.name not in leased]
    # a free host is rid of the guests that no job uses
    empty = State(guests={guest.name: guest for guest in coming})
    objections = {host.name: _objection(empty, host, coming, settings) for host in free}
    fitting = [host for host in free if not objections[host.name]]
    if not fitting:
        beside = {lease.host for lease in state.leases.values() if lease.evacuation in request.beside}
        fitting = [host for host in allowed if host.name in beside and not _objection(state, host, coming, settings)]
    if not fitting and request.pack and (packed := _pack(state, request, allowed, coming, settings)):
        return packed
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

    return [min(fitting, key=burden).name]


def _pack(
    state: State, request: LeaseRequest, allowed: list[Host], coming: list[Guest], settings: Settings
) -> list[str]:
    """Hosts of the guests' job that have room for them, or none: one if it has room for all, else the fewest.

    Their places on several hosts are reserved at once: where each goes is decided with the hosts.
    """
    jobs = {guest.job for guest in coming if guest.job}
    used = {guest.host for guest in state.guests.values() if guest.job in jobs}
    homes = [host for host in allowed if host.name in used and not host.marks]
    if request.packed_onto:  # the same ones again
        choices = [homes] if len(homes) == len(request.packed_onto) else []
    else:
        homes.sort(key=lambda host: (len(state.guests_on(host.name)), -host.memory_kb, host.name))
        choices = [[home] for home in homes] + [homes[:number] for number in range(2, len(homes) + 1)]
    for some in choices:
        placed = {one.guest: one for one in _spread(state, coming, some, settings)}
        taken = [host.name for host in some if any(one.host == host.name for one in placed.values())]
        if request.packed_onto or len(taken) > 1:
            state.reserved.update(placed)
        if taken:
            return request.packed_onto or taken
    return []


def _spread(state: State, coming: list[Guest], hosts: list[Host], settings: Settings) -> list[Placement]:
    """Places for all guests on some hosts, the largest guests first, or none."""
    names = {guest.name for guest in coming}
    trial = State(
        guests=dict(state.guests), reserved={name: one for name, one in state.reserved.items() if name not in names}
    )
    for guest in sorted(coming, key=lambda guest: (-guest.memory_kb, -len(guest.cores), guest.name)):
        for host in sorted(hosts, key=lambda host: len(placement.holders(trial, host.name))):
            if not placement.objection(trial, host, [guest], settings):
                with contextlib.suppress(placement.NoRoomError):
                    load = placement.Load.of_guest(guest)
                    trial.reserved[guest.name] = placement.place(trial, host, guest.name, load, settings.share_cores)
                    break
        else:
            return []
    return [trial.reserved[guest.name] for guest in coming]


def _avoided(host: Host, request: LeaseRequest) -> bool:
    domains = {f"{kind}={name}" for kind, name in host.domains.items()}
    return host.name in request.avoid_hosts or not domains.isdisjoint(request.avoid_domains)


def _objection(state: State, spare: Host, coming: list[Guest], settings: Settings) -> str:
    """Why guests can't come to a host beside those that ``state`` has there, or nothing: they are placed to see."""
    trouble = placement.objection(state, spare, coming, settings)
    if trouble:
        return trouble
    trial = State(guests=state.guests, reserved=dict(state.reserved))
    try:
        for guest in coming:
            load = placement.Load.of_guest(guest)
            trial.reserved[guest.name] = placement.place(trial, spare, guest.name, load, settings.share_cores)
    except placement.NoRoomError as error:
        return str(error)
    return ""


def give_back(state: State, lease: Lease) -> None:
    """End a lease; places on its hosts are given up, except on one that another lease shares."""
    state.leases.pop(lease.id, None)
    given_up = set(held(lease)) - state.leased()
    relocating = {guest.name for guest in state.guests.values() if guest.state == "relocating"}  # no lease's
    for name in [name for name, place in state.reserved.items() if place.host in given_up]:
        if name not in relocating:
            del state.reserved[name]


def reserve(state: State, guests: list[str], host: str, settings: Settings) -> list[Placement]:
    """Reserve cores, memory and devices for guests on a host; asked again, the same ones. Raises NoRoomError.

    Where the host is the first of several that guests are packed onto, each has its place on one of these.
    """
    if host not in state.hosts:
        raise placement.NoRoomError(f"there is no host {host}")
    unknown = [name for name in guests if name not in state.guests]
    if unknown:
        raise placement.NoRoomError(f"there is no guest {', '.join(unknown)}")
    allowed = {host}.union(*(lease.packed_onto for lease in state.leases.values() if lease.host == host))
    coming = [name for name in guests if name not in state.reserved or state.reserved[name].host not in allowed]
    trouble = placement.objection(state, state.hosts[host], [state.guests[name] for name in coming], settings)
    if coming and trouble:
        raise placement.NoRoomError(trouble)
    placed = []
    for name in guests:
        reserved = state.reserved.get(name)
        if reserved is None or name in coming:
            load = placement.Load.of_guest(state.guests[name])
            reserved = placement.place(state, state.hosts[host], name, load, settings.share_cores)
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
        if placed.host not in held(lease):
            raise placement.NoRoomError(
                f"guest {placed.guest} is said to be on {placed.host}; {lease.id} is of {', '.join(held(lease))}"
            )
    left = {state.guests[placed.guest].host for placed in placements} - set(held(lease))
    for placed in placements:
        guest = state.guests[placed.guest]
        guest.host, guest.cores, guest.numa_node = placed.host, placed.cores, placed.numa_node
        guest.devices = placed.devices
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
    over = [lease for lease in state.leases.values() if lease.expires < now and not aside & set(held(lease))]
    for lease in over:
        give_back(state, lease)
    return over
