"""The audit log of the whole site: the resource manager's and the controller's, in one order of time.

The monitor changes nothing itself: what it finds out is in the controller's log, as alarms and their withdrawal.
"""

from __future__ import annotations

from typing import Any

from failavoid.cli import evacuations, tables

Document = dict[str, Any]
SERVICES = ("resource_manager", "controller")


def entries(since: float = 0.0, about: str = "") -> list[Document]:
    """All events since a time (seconds since the epoch), each with its ``service``, oldest first.

    With ``about``, the name of a host, guest, job, alarm or evacuation, only those that speak of it. Raises CliError.
    """
    found: list[Document] = []
    for service in SERVICES:

        def take(event: Document, service: str = service) -> None:
            if event["time"] >= since and (not about or _speaks_of(event["detail"], about)):
                found.append({**event, "service": service})

        evacuations.events(0, False, take, service)
    return sorted(found, key=lambda event: float(event["time"]))


def line(event: Document) -> str:
    """An event for people: when, whom it was done through, who, what and why."""
    words = evacuations.words(event) if event["service"] == "controller" else _words(event)
    return f"{tables.moment(event['time'])} {event['service']:<16} {event['who']:<20} {words}"


def _words(event: Document) -> str:
    """An event of the resource manager: what, its details by name, and last the reason."""
    details = {name: value for name, value in event["detail"].items() if value not in (None, "", [], {})}
    reason = details.pop("reason", None) or details.pop("message", None)
    text = " ".join([event["what"], *(f"{name}={_short(value)}" for name, value in details.items())])
    return f"{text}: {reason}" if reason else text


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_short(one) for one in value)
    if isinstance(value, dict):
        return ",".join(f"{name}@{where}" for name, where in value.items())  # guests and where they went
    return str(value)


def _speaks_of(value: Any, name: str) -> bool:
    if isinstance(value, dict):
        return any(_speaks_of(one, name) for pair in value.items() for one in pair)
    if isinstance(value, list):
        return any(_speaks_of(one, name) for one in value)
    return isinstance(value, str) and name in value.replace(",", " ").split()
