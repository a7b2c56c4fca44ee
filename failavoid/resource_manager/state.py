"""What the resource manager knows, and how a host's pool follows from it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from failavoid.shared.messages import Difference, Guest, Host, Job, Lease, Mark, Placement

KINDS: dict[str, type] = {
    "hosts": Host,
    "guests": Guest,
    "jobs": Job,
    "leases": Lease,
    "reserved": Placement,
    "differences": Difference,
}
WORDS = ("public_keys", "terms")  # guest -> a word
ENDED = ("completed", "failed")
PROGRAM = "resource-manager"  # as the owner of marks, and in the audit log
_ENDED_STAYS_S = 300.0  # an ended job stays at least so long, for those that learn from it or tell its story


@dataclass
class State:
    """All that is known, by name.

    ``reserved`` are places on a destination, by guest; ``public_keys`` the guests' SSH host keys; ``terms`` what a
    guest was told of its user and the site, as a digest; ``differences`` what libvirt says otherwise, by host and
    guest. ``noted`` is what the change under way adds to the audit log.
    """

    hosts: dict[str, Host] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    reserved: dict[str, Placement] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    public_keys: dict[str, str] = field(default_factory=dict)
    terms: dict[str, str] = field(default_factory=dict)
    noted: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def note(self, who: str, what: str, **detail: Any) -> None:
        """Have the change under way in the audit log."""
        self.noted.append((who, what, detail))

    def forget(self, guest: str) -> None:
        """Remove a guest from the picture."""
        for held in (self.guests, self.public_keys, self.terms, self.reserved):
            held.pop(guest, None)

    def forget_old_jobs(self, kept: int, now: float) -> None:
        """Of the jobs that have ended, remember the last ``kept``, those that ended just now, and guests' own.

        ``now`` is in seconds since the epoch, as the jobs' times are.
        """
        ended = sorted((job.ended, job.id) for job in self.jobs.values() if job.ended is not None)
        held = {guest.job for guest in self.guests.values()}  # being cleared; without its job a guest seems in use
        for at, ident in ended[: max(0, len(ended) - kept)]:
            if at < now - _ENDED_STAYS_S and ident not in held:
                del self.jobs[ident]

    def guests_on(self, host: str) -> list[Guest]:
        """The guests that are placed on a host, lost ones too."""
        return [guest for guest in self.guests.values() if guest.host == host]

    def leased(self) -> set[str]:
        """Names of the hosts that are held for evacuations."""
        return {host for lease in self.leases.values() for host in held(lease)}

    def settle(self) -> None:
        """Give every host the pool that follows from its marks and jobs, and the reason for it."""
        jobs: dict[str, set[str]] = {name: set() for name in self.hosts}
        for guest in self.guests.values():
            if guest.job and guest.host in jobs:
                jobs[guest.host].add(guest.job)
        for job in self.jobs.values():
            if job.state not in ENDED:
                for name in set(job.hosts) & jobs.keys():
                    jobs[name].add(job.id)
        evacuations = {host: lease.evacuation for lease in self.leases.values() for host in held(lease)}
        for host in self.hosts.values():
            host.pool, host.reason = _pool(host, sorted(jobs[host.name]), evacuations.get(host.name, ""))


def held(lease: Lease) -> list[str]:
    """The hosts that a lease holds."""
    return lease.packed_onto or [lease.host]


def _pool(host: Host, jobs: list[str], evacuation: str) -> tuple[str, str]:
    retired = [mark.reason for mark in host.marks if mark.kind == "retired"]
    if retired:
        return "defunct", "; ".join(retired)
    if jobs:
        return "allocated", " ".join(jobs)
    if host.marks:
        return "suspect", "; ".join(mark.reason for mark in host.marks)
    if evacuation:
        return "free", f"leased to {evacuation}"
    return "free", "reserved spare" if host.reserved_spare else ""


def mark(host: Host, kind: str, who: str, reason: str, by_program: bool) -> None:
    """Mark a host; the same owner's mark of the same kind gets the new reason."""
    for known in host.marks:
        if (known.kind, known.who) == (kind, who):
            known.reason = reason
            return
    host.marks.append(Mark(kind, who, by_program, time.time(), reason))


def unmark(host: Host, kind: str, who: str) -> bool:
    """Take back the owner's mark of that kind, and nobody else's; False if there is none."""
    kept = [known for known in host.marks if (known.kind, known.who) != (kind, who)]
    taken_back = len(kept) < len(host.marks)
    host.marks = kept
    return taken_back
