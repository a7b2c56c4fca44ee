"""Looks at the hosts' libvirt and finds guests that are gone."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable

from failavoid.resource_manager.launch import Launcher
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.store import Store
from failavoid.shared.messages import Membership

log = logging.getLogger(__name__)

TLS_PORT = 16514
LOOKS = 2  # a guest is lost when it was missed so many times in a row
CONNECT_S = 2.0

Look = Callable[[str], "set[str] | None"]


def domains(address: str) -> set[str] | None:
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

    def follow(self, stop: threading.Event) -> None:
        """Look again and again until ``stop``; for a thread of its own."""
        while not stop.wait(self._settings.look_s):
            try:
                self.once()
            except Exception:
                log.exception("the hosts could not be looked at")

    def once(self) -> None:
        """One look at every host that should have guests, and at those they may be moving to."""
        membership = self._store.membership()
        with self._store.change() as state:
            elsewhere = {name: placed.host for name, placed in state.reserved.items()}
        expected = [guest for guest in membership.guests if guest.state == "ready"]
        addresses = {host.name: host.address for host in membership.hosts}
        seen = {name: self._look(addresses[name]) for name in _hosts_to_see(membership, elsewhere)}
        for guest in expected:
            places = {guest.host, elsewhere.get(guest.name, guest.host)}
            answers = [seen.get(place) for place in places]
            found = any(guest.uuid in answer for answer in answers if answer is not None)
            silent = any(answer is None for answer in answers)
            self._missed[guest.uuid] = 0 if found or silent else self._missed[guest.uuid] + 1
            if self._missed[guest.uuid] >= LOOKS:
                self._lost(guest.name, guest.uuid)
        known = {guest.uuid for guest in expected}
        self._missed = Counter({uuid: count for uuid, count in self._missed.items() if uuid in known})

    def _lost(self, name: str, uuid: str) -> None:
        job = None
        with self._store.change() as state:
            guest = state.guests.get(name)
            if guest is None or guest.uuid != uuid:
                return
            guest.state = "lost"
            job, host = guest.job, guest.host
            if job is None:
                del state.guests[name]
                state.public_keys.pop(name, None)
        log.error("guest %s is gone from host %s, job %s", name, host, job)
        if job:
            self._launcher.end(job, "failed", None, f"guest {name} was lost on host {host}")


def _hosts_to_see(membership: Membership, elsewhere: dict[str, str]) -> set[str]:
    return {guest.host for guest in membership.guests if guest.state == "ready"} | set(elsewhere.values())
