"""Names of hosts, guests, jobs, evacuations and leases.

Names become file names, libvirt domain names and variables of playbooks, so they
are checked wherever they enter the system. Ansible evaluates templates in extra
variables on the head: a name that could hold ``{{ }}`` would run code there.
"""

from __future__ import annotations

import re

NAME_PATTERN = r"[a-z0-9-]{1,63}"
_NAME = re.compile(NAME_PATTERN)


class InvalidNameError(ValueError):
    """A name that is not safe to use; the message says which and what is allowed."""


def check_name(kind: str, name: str) -> str:
    """Return ``name`` if it is a valid name for a ``kind`` (host, guest, job, ...).

    Raises InvalidNameError otherwise.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidNameError(f"{kind} name {name!r} is not allowed: use 1 to 63 of the characters a-z, 0-9 and '-'")
    return name


def check_domain(domain: str) -> str:
    """Return ``domain`` if it is a valid failure domain, such as ``rack=r1``. Raises InvalidNameError otherwise."""
    kind, _, name = domain.partition("=")
    if not _NAME.fullmatch(kind) or not _NAME.fullmatch(name):
        raise InvalidNameError(f"failure domain {domain!r} is not allowed: write it as KIND=NAME, such as rack=r1")
    return domain
