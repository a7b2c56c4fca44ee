"""Names for the shell's completion; where nobody answers there are none."""

from __future__ import annotations

from typing import Any

ANSWER_S = 2.0  # who presses a key does not wait longer


def hosts(incomplete: str) -> list[str]:
    """Names of hosts."""
    return _names(incomplete, "resource_manager", "/membership", lambda found: [one["name"] for one in found["hosts"]])


def guests(incomplete: str) -> list[str]:
    """Names of guests."""
    return _names(incomplete, "resource_manager", "/membership", lambda found: [one["name"] for one in found["guests"]])


def jobs(incomplete: str) -> list[str]:
    """Names of jobs that have not ended."""

    def live(found: Any) -> list[str]:
        return [one["id"] for one in found["jobs"] if one["ended"] is None]

    return _names(incomplete, "resource_manager", "/membership", live)


def evacuations(incomplete: str) -> list[str]:
    """Names of evacuations."""
    return _names(incomplete, "controller", "/evacuations", lambda found: [one["id"] for one in found])


def _names(incomplete: str, service: str, path: str, pick: Any) -> list[str]:
    from failavoid.cli.api import call
    from failavoid.cli.settings import CliError

    try:
        names = pick(call(service, "GET", path, timeout=ANSWER_S))
    except CliError:
        return []
    return [name for name in names if name.startswith(incomplete)]
