"""The controller's own look at what runs on a host: read-only, over libvirt's TLS port.

It is the second opinion on every move. A host that is about to fail may not answer: looks have a time limit.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from failavoid.shared import domain_xml
from failavoid.shared.messages import MoveProgress

TLS_PORT = 16514

RUNNING = "running"
OTHER = "not running"  # there, but paused, being received, or in another state

# Domain's name -> RUNNING or OTHER; None: the host could not be asked.
View = dict[str, str] | None

T = TypeVar("T")


@dataclass
class GuestFacts:
    """What libvirt knows of a guest that its move depends on."""

    devices: list[str] = field(default_factory=list)  # passed through to it
    dirty_bps: float | None = None  # bytes a second, if somebody had it measured (virsh domdirtyrate-calc)


def look(address: str, timeout_s: float = 5.0) -> View:
    """Return the active domains of the host at ``address``, or None if it can't be asked in time."""
    return _ask(address, timeout_s, lambda connection: _of_each(connection, _state))


def facts(address: str, timeout_s: float = 2.0) -> dict[str, GuestFacts] | None:
    """Return what a plan needs to know of the guests of the host at ``address``, or None."""
    return _ask(address, timeout_s, lambda connection: _of_each(connection, _facts))


def progress(address: str, guests: list[str], timeout_s: float = 2.0) -> list[MoveProgress]:
    """Return how far those of the guests have come that move away from the host at ``address``."""
    found = _ask(address, timeout_s, lambda connection: _of_each(connection, _progress)) or {}
    return [one for guest in guests if (one := found.get(guest)) is not None]


def _ask(address: str, timeout_s: float, question: Callable[[Any], T]) -> T | None:
    try:
        # libvirt itself would wait minutes for a host that is gone
        socket.create_connection((address, TLS_PORT), timeout=min(2.0, timeout_s)).close()
    except OSError:
        return None
    found: list[T] = []
    thread = threading.Thread(
        target=lambda: found.extend(_answer(address, question)), daemon=True, name=f"look-{address}"
    )
    thread.start()
    thread.join(timeout_s)
    return found[0] if found else None


def _answer(address: str, question: Callable[[Any], T]) -> list[T]:
    import libvirt  # the distribution's package: only the head has it

    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors are raised, not also printed
    try:
        connection = libvirt.openReadOnly(f"qemu+tls://{address}/system")
    except libvirt.libvirtError:
        return []
    try:
        return [question(connection)]
    except libvirt.libvirtError:
        return []
    finally:
        connection.close()


def _of_each(connection: Any, question: Callable[[Any], T]) -> dict[str, T]:
    """Ask something of each active domain; one that leaves meanwhile is not there."""
    import libvirt

    found = {}
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            found[domain.name()] = question(domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return found


def _state(domain: Any) -> str:
    import libvirt

    return RUNNING if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING else OTHER


def _facts(domain: Any) -> GuestFacts:
    import libvirt

    try:
        said = domain.connect().domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_DIRTYRATE)[0][1]
    except libvirt.libvirtError:  # an older libvirt does not know it
        said = {}
    measured = said.get("dirtyrate.calc_status") == libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED
    dirty = said.get("dirtyrate.megabytes_per_second") if measured else None
    return GuestFacts(list(domain_xml.passed_through(domain.XMLDesc())), None if dirty is None else dirty * 2.0**20)


def _progress(domain: Any) -> MoveProgress | None:
    said = domain.jobStats()
    if "data_remaining" not in said:
        return None
    return MoveProgress(domain.name(), said.get("data_processed", 0), said["data_remaining"])


def answers(address: str, port: int = 22, timeout_s: float = 1.0) -> bool:
    """Whether somebody listens at ``address``: a guest that has arrived and whose network works."""
    try:
        socket.create_connection((address, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True
