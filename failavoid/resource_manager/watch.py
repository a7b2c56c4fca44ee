"""Looks at the hosts' libvirt: guests that are gone, guests that are elsewhere, strangers, hosts that are silent.

Where most hosts are silent at once it is the head that is cut off from them, and no host is marked for that.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Optional

from failavoid.resource_manager.jobs import Jobs
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import PROGRAM, State, mark, unmark
from failavoid.resource_manager.store import Store
from failavoid.shared.messages import Difference, Guest

log = logging.getLogger(__name__)

TLS_PORT = 16514
LOOKS = 2  # a guest is lost when it was missed so many times in a row
LOOKS_AT_DIFFERENCES = 3  # more: a guest may be on its way in or out
ASKED_BESIDE = 30  # hosts, whether the head is cut off
CONNECT_S = 2.0
ANSWER_S = 10.0
UP = ("ready", "warm", "assigned", "relocating")

HEAD = ("", "")  # where a difference is that is of no host and no guest
Domains = Optional[dict[str, str]]  # UUID -> name; None: no answer
Look = Callable[[str], Domains]


def domains(address: str) -> Domains:
    """The guests that a host's libvirt has, None if it does not answer."""
    import libvirt  # the distribution's package

    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        # libvirt itself waits minutes for a host that is gone
        socket.create_connection((address, TLS_PORT), timeout=CONNECT_S).close()
        connection = libvirt.openReadOnly(f"qemu+tls://{address}/system")
    except (OSError, libvirt.libvirtError):
        return None
    try:
        return {domain.UUIDString(): domain.name() for domain in connection.listAllDomains()}
    except libvirt.libvirtError:
        return None
    finally:
        connection.close()


@dataclass(frozen=True)
class Expected:
    """The mapping as it was when the hosts were asked. ``places`` are where a guest may be, by its name."""

    guests: dict[str, Guest]  # by UUID
    places: dict[str, set[str]]
    addresses: dict[str, str]  # of hosts

    def missing(self, seen: dict[str, Domains]) -> list[Guest]:
        """Guests that are at none of their places; a host that does not answer may have them."""
        found = []
        for guest in self.guests.values():
            answers = [seen.get(place) for place in self.places[guest.name]]
            up = guest.state in UP
            if up and all(answer is not None and guest.uuid not in answer for answer in answers):
                found.append(guest)
        return found

    def differences(self, seen: dict[str, Domains]) -> dict[tuple[str, str], str]:
        """What hosts say otherwise than the mapping, in words, by host and guest."""
        found = {}
        for host, answer in seen.items():
            if answer is None:
                found[host, ""] = f"libvirt on {host} does not answer: whether its guests live is not known"
                continue
            for uuid, name in answer.items():
                guest = self.guests.get(uuid)
                if guest is None:
                    found[host, name] = f"{host} runs {name}, which the resource manager does not know"
                elif host not in self.places[guest.name]:
                    found[host, name] = f"guest {name} runs on {host}, but should be on {guest.host}"
                elif guest.state == "lost":
                    found[host, name] = f"guest {name} still runs on {host}, but was given up"
        return found


class Watch:
    """Compares the mapping with what libvirt says, and never papers over a difference."""

    def __init__(self, settings: Settings, store: Store, jobs: Jobs, look: Look = domains) -> None:
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._look = look
        self._missed: Counter[str] = Counter()
        self._differing: Counter[tuple[str, str]] = Counter()
        self._under_way: dict[str, Future[Domains]] = {}
        self._pool = ThreadPoolExecutor(max_workers=32, thread_name_prefix="look")
        self._lock = threading.Lock()

    def follow(self, stop: threading.Event) -> None:
        """Look again and again until ``stop``; for a thread of its own."""
        all_at = 0.0
        while not stop.wait(self._settings.look_s):
            everywhere = time.monotonic() >= all_at
            if everywhere:
                all_at = time.monotonic() + self._settings.look_at_all_s
            try:
                self.once(everywhere)
            except Exception:
                log.exception("the hosts could not be looked at")

    def once(self, everywhere: bool = True) -> None:
        """One look at the hosts that should have guests or that something is wrong with, or at all of them."""
        expected, seen = self._see(None, everywhere)
        missing = expected.missing(seen)
        with self._lock:
            self._missed = Counter({guest.uuid: self._missed[guest.uuid] + 1 for guest in missing})
        self._lost([guest for guest in missing if self._missed[guest.uuid] >= LOOKS])
        cut_off = self._cut_off(expected, seen)
        if cut_off:  # what silent hosts would say is not known, and no news
            seen = {name: answer for name, answer in seen.items() if answer is not None}
        found = ({HEAD: cut_off} if cut_off else {}) | expected.differences(seen)
        self._note_differences({HEAD[0]: {}, **seen}, found)

    def why_ended(self, job: str) -> str:
        """A sentence if guests of ``job`` are gone: the reason why it failed. Looks now, once."""
        expected, seen = self._see(job, False)
        return _words(self._lost(expected.missing(seen)))

    def _cut_off(self, expected: Expected, seen: dict[str, Domains]) -> str:
        """A sentence if most hosts are silent, or nothing: where most of those asked are, others are asked too."""
        if not _most_are_silent(seen):
            return ""
        with self._store.view() as state:
            others = [host.name for host in state.hosts.values() if host.pool != "defunct" and host.name not in seen]
        everywhere = seen | self._ask({name: expected.addresses[name] for name in others[:ASKED_BESIDE]})
        if len(everywhere) < 2 or not _most_are_silent(everywhere):
            return ""
        return (
            "most hosts do not answer: the head seems to be cut off from them, so none of them is marked for that. "
            "Look at its network; jobs and evacuations wait meanwhile"
        )

    # -- looking ---------------------------------------------------------------------------------------------------

    def _see(self, job: str | None, everywhere: bool) -> tuple[Expected, dict[str, Domains]]:
        """The mapping and what the hosts say: those of one job, or all that are of interest."""
        with self._store.view() as state:
            expected = _expected(state)
            chosen = [guest for guest in state.guests.values() if guest.state in UP and job in (None, guest.job)]
            names = {place for guest in chosen for place in expected.places[guest.name]}
            if job is None:
                names |= {difference.host for difference in state.differences.values()}
                names |= {host for host, _ in self._differing}
            if everywhere:
                names |= {host.name for host in state.hosts.values() if host.pool != "defunct"}
        if job is not None:
            guests = {guest.uuid: guest for guest in chosen}
            expected = Expected(guests, expected.places, expected.addresses)
        return expected, self._ask({name: expected.addresses[name] for name in names & expected.addresses.keys()})

    def _ask(self, addresses: dict[str, str]) -> dict[str, Domains]:
        """Ask all hosts at once; one that hangs keeps nobody from the others, and is not asked twice."""
        with self._lock:
            for name, address in addresses.items():
                if name not in self._under_way:
                    self._under_way[name] = self._pool.submit(self._look, address)
            asked = {name: self._under_way[name] for name in addresses}
        wait(asked.values(), timeout=ANSWER_S)
        seen: dict[str, Domains] = {}
        with self._lock:
            for name, future in asked.items():
                done = future.done()
                seen[name] = future.result() if done and future.exception() is None else None
                if done and self._under_way.get(name) is future:
                    del self._under_way[name]
        return seen

    # -- what is wrong ---------------------------------------------------------------------------------------------

    def _note_differences(self, seen: dict[str, Domains], found: dict[tuple[str, str], str]) -> None:
        """Note what differs in several looks, take back what does not differ any more; mark hosts accordingly.

        A host that is silent or has a stranger gets no new work until that is over.
        """
        unseen = {key: count for key, count in self._differing.items() if key[0] not in seen}
        self._differing = Counter(unseen | {key: self._differing[key] + 1 for key in found})
        lasting = {key: found[key] for key in found if self._differing[key] >= LOOKS_AT_DIFFERENCES}
        with self._store.view() as state:
            known = {(one.host, one.guest): one.words for one in state.differences.values() if one.host in seen}
        if known == lasting:
            return
        with self._store.change() as state:
            for host, guest in known.keys() - lasting.keys():
                over = state.differences.pop(f"{host}/{guest}", None)
                if over:
                    log.info("over: %s", over.words)
                    state.note(PROGRAM, "difference over", host=host, guest=guest, words=over.words)
            for (host, guest), words in lasting.items():
                if known.get((host, guest)) != words:
                    log.warning("%s", words)
                    state.differences[f"{host}/{guest}"] = Difference(host, guest, words, time.time())
                    state.note(PROGRAM, "difference", host=host, guest=guest, words=words)
            for name in seen.keys() & state.hosts.keys():
                _mark(state, name)

    def _lost(self, missing: list[Guest]) -> list[Guest]:
        """Note guests as lost, and their jobs as failed; returns them. Those that another host has are not lost."""
        if not missing:
            return []
        with self._store.view() as state:
            addresses = {host.name: host.address for host in state.hosts.values() if host.pool != "defunct"}
        elsewhere = {uuid for answer in self._ask(addresses).values() for uuid in answer or {}}
        lost = [guest for guest in missing if guest.uuid not in elsewhere]
        jobs: dict[str, list[Guest]] = {}
        with self._store.change() as state:
            for guest in lost:
                known = state.guests.get(guest.name)
                if known is None or known.uuid != guest.uuid or known.state == "lost":
                    continue
                known.state = "lost"
                log.error("%s, job %s", _words([guest]), known.job)
                state.note(PROGRAM, "guest lost", guest=guest.name, host=guest.host, job=known.job)
                if known.job:
                    jobs.setdefault(known.job, []).append(guest)
        for job, guests in jobs.items():
            self._jobs.end(job, "failed", None, _words(guests), PROGRAM)
        return lost


def _most_are_silent(seen: dict[str, Domains]) -> bool:
    return 2 * sum(answer is None for answer in seen.values()) > len(seen)


def _expected(state: State) -> Expected:
    guests = {guest.uuid: guest for guest in state.guests.values()}
    places = {guest.name: {guest.host} for guest in state.guests.values()}
    for name, placed in state.reserved.items():
        if name in places:
            places[name].add(placed.host)
    return Expected(guests, places, {host.name: host.address for host in state.hosts.values()})


def _mark(state: State, name: str) -> None:
    """Mark a host as suspect while it is silent or has a stranger, by the program's own mark."""
    of_host = [one for one in state.differences.values() if one.host == name]
    mapped = {guest.name for guest in state.guests_on(name)}
    grave = [one.words for one in of_host if one.guest not in mapped]
    host = state.hosts[name]
    if grave:
        mark(host, "suspect", PROGRAM, "; ".join(grave), by_program=True)
    else:
        unmark(host, "suspect", PROGRAM)


def _words(guests: list[Guest]) -> str:
    return "; ".join(f"guest {guest.name} was lost on host {guest.host}" for guest in guests)
