"""Where jobs and guests go: pure functions on the state. Errors are sentences for the user."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import State
from failavoid.shared.messages import Device, Guest, Host, JobRequest, Placement


class NoRoomError(Exception):
    """What was asked for is not to be had; the message says why, with figures."""


@dataclass(frozen=True)
class Load:
    """What is to be placed on one host: ``guests`` guests of one size, each with ``devices`` of these kinds."""

    guests: int
    memory_kb: int
    vcpus: int
    hugepage_kb: int = 0
    devices: tuple[str, ...] = ()

    @staticmethod
    def of(request: JobRequest, resource: str) -> Load:
        """A job's load on each of its hosts; none where it runs without guests."""
        if resource == "hosts":
            return Load(0, 0, 1)
        return Load(
            request.guests_per_host,
            request.guest_memory_kb,
            request.guest_vcpus,
            request.guest_hugepage_kb or 0,
            tuple(sorted(request.guest_devices)),
        )

    @staticmethod
    def of_guest(guest: Guest) -> Load:
        """What one guest takes of its host."""
        kinds = tuple(sorted(device.kind for device in guest.devices))
        return Load(1, guest.memory_kb, len(guest.cores), guest.hugepage_kb, kinds)


_SMALLEST = Load(1, 0, 1)


# -- jobs ----------------------------------------------------------------------------------------------------------


def choose_hosts(state: State, request: JobRequest, settings: Settings, resource: str, terms: set[str]) -> list[Host]:
    """Free hosts for a job, all of one hardware class, those first that hold guests it can use. Raises NoRoomError.

    As many hosts as must stay spare, of a class that the job's guests can move to, stay free.
    """
    load = Load.of(request, resource)
    leased = state.leased()
    free = [host for host in state.hosts.values() if host.pool == "free" and host.name not in leased]
    fitting = [host for host in free if not _is_too_small(host, load, settings)]
    classes = sorted({host.hardware_class for host in fitting} | {host.hardware_class for host in state.hosts.values()})
    if request.hardware_class:
        if request.hardware_class not in classes:
            raise NoRoomError(
                f"hardware class {request.hardware_class!r} is asked for; the hosts' classes are "
                f"{', '.join(map(repr, classes)) or 'none'}"
            )
        classes = [request.hardware_class]

    def usable(host: Host) -> int:
        found = sum(fits(state, guest, request, terms) for guest in state.guests_on(host.name))
        return min(found, load.guests)

    def evicted(host: Host) -> int:
        return sum(guest.state != "lost" for guest in state.guests_on(host.name)) - usable(host)

    best: tuple[int, list[Host]] | None = None
    troubles = []
    for name in classes:
        mine = [host for host in fitting if host.hardware_class == name and not host.reserved_spare]
        spares = [host for host in fitting if can_move(name, host, settings)]
        trouble = _shortage(request, load, settings, [free, mine, spares], len(state.hosts), name)
        if trouble:
            troubles.append(trouble)
            continue
        mine.sort(key=lambda host: (-usable(host), _boots(state, host), evicted(host), host.name))
        chosen = sorted(mine[: request.hosts], key=lambda host: host.name)
        found = sum(map(usable, chosen))
        if best is None or found > best[0]:
            best = found, chosen
    if best is None:
        raise NoRoomError("; ".join(dict.fromkeys(troubles)) or "there are no hosts")
    return best[1]


def _shortage(
    request: JobRequest, load: Load, settings: Settings, found: list[list[Host]], known: int, hardware_class: str
) -> str:
    """Why a class's hosts do not do for a job, or nothing; ``found`` are the free, the fitting and the spare ones."""
    free, fitting, spares = found
    of_class = f" of class {hardware_class!r}" if hardware_class else ""
    if len(fitting) < request.hosts:
        needed = load.guests * load.memory_kb
        cores = "" if settings.share_cores else f" and {load.guests * load.vcpus} cores"
        pages = f" on hugepages of {load.hugepage_kb} kB" if load.hugepage_kb else ""
        devices = f" and {load.guests} times {', '.join(load.devices)}" if load.devices else ""
        size = f"with {needed // 1024} MiB{pages}{cores}{devices} for guests " if load.guests else ""
        return (
            f"{request.hosts} hosts{of_class} {size}are asked for; of {known} hosts {len(free)} are free and "
            f"{len(fitting)} of these{of_class} have that much beside the {settings.reserve_kb // 1024} MiB that "
            "a host keeps and are no reserved spare. Ask for fewer or smaller guests, or wait for another job's end"
        )
    if len(spares) - request.hosts < settings.spares:
        return (
            f"{request.hosts} hosts{of_class} are asked for, {len(spares)} are free and {settings.spares} must stay "
            f"spare: ask for {max(0, min(len(fitting), len(spares) - settings.spares))} or fewer, or wait for another "
            "job's end"
        )
    return ""


def fits(state: State, guest: Guest, request: JobRequest, terms: set[str]) -> bool:
    """Whether a guest that no job uses does for one: its size fits, and what it was told is among ``terms``."""
    return (
        guest.job is None
        and guest.state in ("ready", "warm")
        and guest.user in ("", request.user)
        and Load.of_guest(guest) == dataclasses.replace(Load.of(request, "guests"), guests=1)
        and state.terms.get(guest.name) in terms
    )


def _boots(state: State, host: Host) -> bool:
    """Whether a guest boots there that would have to be waited for before it can be removed."""
    return any(guest.state == "booting" for guest in state.guests_on(host.name))


# -- guests --------------------------------------------------------------------------------------------------------


def can_move(hardware_class: str, host: Host, settings: Settings) -> bool:
    """Whether a guest that booted on a host of that class can run on ``host``."""
    return hardware_class in (host.hardware_class, *settings.compatible.get(host.hardware_class, []))


def objection(state: State, host: Host, guests: list[Guest], settings: Settings) -> str:
    """Why guests can't be placed on a host beside those that are there or will come, or nothing."""
    unfit = sorted({guest.name for guest in guests if not can_move(guest.hardware_class, host, settings)})
    if unfit:
        classes = sorted({guest.hardware_class for guest in guests})
        return (
            f"{host.name} is of hardware class {host.hardware_class!r}; {', '.join(unfit)} booted on "
            f"{', '.join(map(repr, classes))} and can't run there"
        )
    there = {guest.name: guest for guest in [*holders(state, host.name), *guests]}
    coming = ", ".join(guest.name for guest in guests)
    needed = sum(guest.memory_kb for guest in there.values() if not guest.hugepage_kb)
    if needed > room_kb(host, settings):
        own = host.memory_kb - room_kb(host, settings)
        return (
            f"{host.name} has {host.memory_kb // 1024} MiB, {own // 1024} of them its own or set aside as hugepages; "
            f"with {coming} its guests would need {needed // 1024} MiB"
        )
    kinds = Counter(device.kind for guest in there.values() for device in guest.devices)
    lacking = kinds - Counter({kind: len(addresses) for kind, addresses in host.devices.items()})
    short = [f"{kinds[kind]} {kind} and it has {kinds[kind] - lacking[kind]}" for kind in sorted(lacking)]
    return f"with {coming} the guests of {host.name} would need {', '.join(short)}" if short else ""


def room_kb(host: Host, settings: Settings) -> int:
    """Memory of a host for guests on ordinary pages: without what it keeps and what is set aside as hugepages."""
    aside = sum(int(size) * pages for node in host.hugepages.values() for size, pages in node.items())
    return host.memory_kb - settings.reserve_kb - aside


def holders(state: State, host: str) -> list[Guest]:
    """The guests that hold cores and memory of a host: those there, and those with a place reserved."""
    names = {guest.name for guest in state.guests_on(host) if guest.state != "lost"}
    names |= {name for name, reserved in state.reserved.items() if reserved.host == host and name in state.guests}
    return [state.guests[name] for name in sorted(names)]


def _places(state: State, host: str, but: str) -> list[Placement]:
    """What the guests of a host hold of it, and those with a place reserved, but one."""
    there = [g for g in state.guests_on(host) if g.name != but and g.state != "lost"]
    places = [Placement(g.name, host, g.cores, g.numa_node, g.devices) for g in there]
    return places + [p for name, p in state.reserved.items() if p.host == host and name != but]


def _is_too_small(host: Host, load: Load, settings: Settings) -> bool:
    """Whether a host is too small for a load of its own: guests that no job uses make room for it."""
    if load.guests == 0:
        return False
    kinds = Counter(load.devices)
    if any(len(host.devices.get(kind, [])) < load.guests * kinds[kind] for kind in kinds):
        return True
    fitting = {node: len(cores) // load.vcpus for node, cores in host.numa.items()}
    if settings.share_cores:
        fitting = {node: load.guests if fitting[node] else 0 for node in fitting}
    if load.hugepage_kb:
        pages = {node: host.hugepages.get(node, {}).get(str(load.hugepage_kb), 0) for node in fitting}
        fitting = {node: min(fitting[node], pages[node] // pages_of(load)) for node in fitting}
    elif room_kb(host, settings) < load.guests * load.memory_kb:
        return True
    return sum(fitting.values()) < load.guests


def pages_of(load: Load) -> int:
    """Number of hugepages that back the memory of each guest."""
    return math.ceil(load.memory_kb / load.hugepage_kb) if load.hugepage_kb else 0


def place(state: State, host: Host, guest: str, load: Load = _SMALLEST, share: bool = False) -> Placement:
    """Cores, hugepages and devices for a guest on a host: within one NUMA node, the least used first.

    A core that another guest has is given again only where the site lets guests ``share``. Raises NoRoomError.
    """
    places = _places(state, host.name, guest)
    held = Counter(core for one in places for core in one.cores)
    chosen = {}
    for node, cores in host.numa.items():
        allowed = [core for core in cores if share or not held[core]]
        if len(allowed) >= load.vcpus and _free_hugepages(state, host, node, load, places) >= pages_of(load):
            chosen[node] = sorted(allowed, key=lambda core: (held[core], core))[: load.vcpus]
    if not chosen:
        pages = f" and {pages_of(load)} free hugepages of {load.hugepage_kb} kB" if load.hugepage_kb else ""
        raise NoRoomError(
            f"host {host.name} has no NUMA node with {load.vcpus} {'' if share else 'free '}cores{pages} for guest "
            f"{guest}; its nodes are {host.numa}"
            + ("" if share else f", in use are {sorted(held)}")
            + (f"; hugepages set aside are {host.hugepages}" if pages else "")
        )

    def burden(node: str) -> tuple[int, int, int]:
        # of nodes alike the emptier one: its memory has more bandwidth to spare
        return max(held[core] for core in chosen[node]), sum(held[core] for core in host.numa[node]), int(node)

    node = min(chosen, key=burden)
    return Placement(guest, host.name, chosen[node], int(node), _free_devices(host, guest, load, places))


def _free_hugepages(state: State, host: Host, node: str, load: Load, places: list[Placement]) -> int:
    names = [place.guest for place in places if place.numa_node == int(node)]
    there = [Load.of_guest(state.guests[name]) for name in names if name in state.guests]
    set_aside = host.hugepages.get(node, {}).get(str(load.hugepage_kb), 0)
    return set_aside - sum(pages_of(other) for other in there if other.hugepage_kb == load.hugepage_kb)


def _free_devices(host: Host, guest: str, load: Load, places: list[Placement]) -> list[Device]:
    used = {device.address for place in places for device in place.devices}
    chosen: list[Device] = []
    for kind in load.devices:
        free = [address for address in host.devices.get(kind, []) if address not in used]
        if not free:
            raise NoRoomError(
                f"host {host.name} has no free {kind} for guest {guest}; it has "
                f"{', '.join(host.devices.get(kind, [])) or 'none'} in all (hypervisor_devices)"
            )
        used.add(free[0])
        chosen.append(Device(kind, free[0]))
    return chosen


def warnings(guests: Iterable[Guest], machines: dict[str, str]) -> dict[str, list[str]]:
    """What a person should know of each host: guests that share cores.

    ``machines`` maps hosts to the machine whose kernel they run on: hosts may be containers on one of them.
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
        pinned = Counter(core for name, core in held if name in together)
        if any(hosts > 1 for hosts in pinned.values()):
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
