"""The controller's own look at what runs on a host: read-only, over libvirt's TLS port.

It is the second opinion on every move. A host that is about to fail may not answer: looks have a time limit.
"""

from __future__ import annotations

import socket
import threading

TLS_PORT = 16514

RUNNING = "running"
OTHER = "not running"  # there, but paused, being received, or in another state

# Domain's name -> RUNNING or OTHER; None: the host could not be asked.
View = dict[str, str] | None


def look(address: str, timeout_s: float = 5.0) -> View:
    """Return the active domains of the host at ``address``, or None if it can't be asked in time."""
    try:
        # libvirt itself would wait minutes for a host that is gone
        socket.create_connection((address, TLS_PORT), timeout=min(2.0, timeout_s)).close()
    except OSError:
        return None
    found: list[dict[str, str]] = []
    thread = threading.Thread(target=lambda: found.extend(_ask(address)), daemon=True, name=f"look-{address}")
    thread.start()
    thread.join(timeout_s)
    return found[0] if found else None


def _ask(address: str) -> list[dict[str, str]]:
    import libvirt  # the distribution's package: only the head has it

    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors are raised, not also printed
    try:
        connection = libvirt.openReadOnly(f"qemu+tls://{address}/system")
    except libvirt.libvirtError:
        return []
    try:
        found = {}
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            try:
                running = domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:  # it left just now
                    continue
                raise
            found[domain.name()] = RUNNING if running else OTHER
        return [found]
    except libvirt.libvirtError:
        return []
    finally:
        connection.close()


def answers(address: str, port: int = 22, timeout_s: float = 1.0) -> bool:
    """Whether somebody listens at ``address``: a guest that has arrived and whose network works."""
    try:
        socket.create_connection((address, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True
