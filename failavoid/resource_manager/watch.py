"""Looks at the hosts' libvirt and finds guests that are gone."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Optional

from failavoid.resource_manager.launch import Launcher
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.store import Store
from failavoid.shared.messages import Guest

log = logging.getLogger(__name__)

TLS_PORT = 16514
LOOKS = 2  # a guest is lost when it was missed so many times in a row
CONNECT_S = 2.0
ANSWER_S = 10.0

Domains = Optional[set[str]]  # UUIDs; None: no answer
Look = Callable[[str], Domains]


def domains(address: str) -> Domains:
    """UUIDs of the guests that a host's libvirt has, None if it does not answer."""
    import libvirt  # the distribution's package

    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        # libvirt itself waits minutes for a host that is gone
        socket.create_connection((address, TLS_PORT), timeout=CONNECT_S).close()
        connection = libvirt.openReadOnly(f"qemu+tls://{address}/system")
    except (OSError, libvirt.libvirtError):
        return None
    try:
        return {domain.UUIDString() for domain in connection.listAllDomains()}
    except libvirt.libvirtError:
        return None
    finally:
        connection.close()


class Watch:
    """Compares the mapping with what libvirt says, and never papers over a difference."""

    def __init__(self, settings: Settings, store: Store, launcher: Launcher, look: Look = domains) -> None:
        self._settings = settings
        self._store = store
        self._launcher = launcher
        self._look = look
        self._missed: Counter[str] = Counter()
        self._silent: set[str] = set()
        self._under_way: dict[str, Future[Domains]] = {}
        self._pool = ThreadPoolExecutor(max_workers=32, thread_name_prefix="look")
        self._lock = threading.Lock()

    def follow(self, stop: threading.Event) -> None:
        """Look again and again until ``stop``; for a thread of its own."""
        while not stop.wait(self._settings.look_s):
            try:
                self.once()
            except Exception:
                log.exception("the hosts could not be looked at")

    def once(self) -> None:
        """One look at every host that should have guests, and at those they may be moving to."""
        missing, seen = self._missing(None)
        with self._lock:
            self._missed = Counter({guest.uuid: self._missed[guest.uuid] + 1 for guest in missing})
        self._note_silence(seen)
        self._lost([guest for guest in missing if self._missed[guest.uuid] >= LOOKS])

    def why_ended(self, job: str) -> str:
        """A sentence if guests of ``job`` are gone: the reason why it failed. Looks now, once."""
        missing, _ = self._missing(job)
        self._lost(missing)
        return _words(missing)

    def _missing(self, job: str | None) -> tuple[list[Guest], dict[str, Domains]]:
        """Guests (of one job, or all) that are not where they should be, nor where they may be moving to."""
        with self._store.change() as state:
            elsewhere = {name: placed.host for name, placed in state.reserved.items()}
        membership = self._store.membership()
        expected = [g for g in membership.guests if g.state == "ready" and (job is None or g.job == job)]
        places = {g.name: {g.host, elsewhere.get(g.name, g.host)} for g in expected}
        addresses = {host.name: host.address for host in membership.hosts}
        seen = self._see({name: addresses[name] for named in places.values() for name in named if name in addresses})
        missing = []
        for guest in expected:
            answers = [seen.get(place) for place in places[guest.name]]
            # a host that does not answer may have it
            if all(answer is not None and guest.uuid not in answer for answer in answers):
                missing.append(guest)
        return missing, seen

    def _see(self, addresses: dict[str, str]) -> dict[str, Domains]:
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

    def _note_silence(self, seen: dict[str, Domains]) -> None:
        silent = {name for name, answer in seen.items() if answer is None}
        for name in sorted(silent - self._silent):
            log.warning("libvirt on %s does not answer: whether its guests live is not known", name)
        for name in sorted(self._silent & (seen.keys() - silent)):
            log.info("libvirt on %s answers again", name)
        self._silent = silent

    def _lost(self, missing: list[Guest]) -> None:
        """Note guests as lost; their jobs have failed."""
        jobs: dict[str, list[Guest]] = {}
        with self._store.change() as state:
            for guest in missing:
                known = state.guests.get(guest.name)
                if known is None or known.uuid != guest.uuid or known.state == "lost":
                    continue
                known.state = "lost"
                log.error("%s, job %s", _words([guest]), known.job)
                if known.job:
                    jobs.setdefault(known.job, []).append(guest)
        for job, guests in jobs.items():
            self._launcher.end(job, "failed", None, _words(guests))


def _words(guests: list[Guest]) -> str:
    return "; ".join(f"guest {guest.name} was lost on host {guest.host}" for guest in guests)
