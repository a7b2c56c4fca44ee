"""Where jobs and guests go: pure functions on the state. Errors are sentences for the user."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import State
from failavoid.shared.messages import Guest, Host, JobRequest, Placement


class NoRoomError(Exception):
    """What was asked for is not to be had; the message says why, with figures."""


@dataclass(frozen=True)
class Load:
    """What is to be placed on one host: ``guests`` guests of one size."""

    guests: int
    memory_kb: int
    vcpus: int

    @staticmethod
    def of(request: JobRequest, resource: str) -> Load:
        """A job's load on each of its hosts; none where it runs without guests."""
        if resource == "hosts":
            return Load(0, 0, 1)
        return Load(request.guests_per_host, request.guest_memory_kb, request.guest_vcpus)


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
        size = f"with {needed // 1024} MiB{cores} for guests " if load.guests else ""
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
        and guest.memory_kb == request.guest_memory_kb
        and len(guest.cores) == request.guest_vcpus
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
    there = {guest.name: guest for guest in [*_holders(state, host.name), *guests]}
    needed = sum(guest.memory_kb for guest in there.values())
    if needed > host.memory_kb - settings.reserve_kb:
        return (
            f"{host.name} has {host.memory_kb // 1024} MiB, {settings.reserve_kb // 1024} of them its own; with "
            f"{', '.join(guest.name for guest in guests)} its guests would need {needed // 1024} MiB"
        )
    return ""


def _holders(state: State, host: str) -> list[Guest]:
    """The guests that hold cores and memory of a host: those there, and those with a place reserved."""
    names = {guest.name for guest in state.guests_on(host) if guest.state != "lost"}
    names |= {name for name, reserved in state.reserved.items() if reserved.host == host and name in state.guests}
    return [state.guests[name] for name in sorted(names)]


def _held_cores(state: State, host: str, but: str) -> Counter[int]:
    held: Counter[int] = Counter()
    for guest in state.guests_on(host):
        if guest.name != but and guest.state != "lost":
            held.update(guest.cores)
    for name, reserved in state.reserved.items():
        if reserved.host == host and name != but:
            held.update(reserved.cores)
    return held


def _is_too_small(host: Host, load: Load, settings: Settings) -> bool:
    """Whether a host is too small for a load of its own: guests that no job uses make room for it."""
    cores = [len(cores) // load.vcpus for cores in host.numa.values()]
    enough = any(cores) if settings.share_cores else sum(cores) >= load.guests
    return load.guests > 0 and (not enough or host.memory_kb - settings.reserve_kb < load.guests * load.memory_kb)


def place(state: State, host: Host, guest: str, vcpus: int = 1, share: bool = False) -> Placement:
    """Cores for a guest on a host: within one NUMA node, the least used first. Raises NoRoomError.

    A core that another guest has is given again only where the site lets guests ``share``.
    """
    held = _held_cores(state, host.name, guest)
    chosen = {}
    for node, cores in host.numa.items():
        allowed = [core for core in cores if share or not held[core]]
        if len(allowed) >= vcpus:
            chosen[node] = sorted(allowed, key=lambda core: (held[core], core))[:vcpus]
    if not chosen:
        raise NoRoomError(
            f"host {host.name} has no NUMA node with {vcpus} {'' if share else 'free '}cores for guest {guest}; its "
            f"nodes are {host.numa}" + ("" if share else f", in use are {sorted(held)}")
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
