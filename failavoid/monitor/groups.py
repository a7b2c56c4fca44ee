"""Follows the resource manager's membership: which hosts now run guests of which job."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from failavoid.services import client
from failavoid.shared.messages import Host, Job, JobRequest, Membership, from_dict

log = logging.getLogger(__name__)
JUDGED_STATES = ("ready", "running")
ROOM = 0.75  # of a host's memory, that guests may take
POLL_S = 10.0
RETRY_S = 1.0
_INTERPRETER = re.compile(r"-|(.*/)?(python[\d.]*|failavoid-mpi|failavoid\.mpi)$")


@dataclass(frozen=True)
class Group:
    """Hosts that can be compared: those of one job that are of one hardware class."""

    job: str
    application: str  # what its learned distribution is kept under
    hardware: str  # cores and memory, as in 24x63g; empty if unknown
    hosts: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the group, among all."""
        return f"{self.job}/{self.hardware}" if self.hardware else self.job


def groups_of(membership: Membership) -> list[Group]:
    """The hosts of each job that is ready or runs, by the guests they hold now, split by hardware class."""
    hardware = {host.name: hardware_class(host) for host in membership.hosts}
    groups = []
    for job in membership.jobs:
        if job.state in JUDGED_STATES:
            hosts = {g.host for g in membership.guests if g.job == job.id and g.state != "lost"}
            by_class: dict[str, list[str]] = {}
            for host in sorted(hosts):
                by_class.setdefault(hardware.get(host, ""), []).append(host)
            groups += [Group(job.id, application_of(job), kind, tuple(alike)) for kind, alike in by_class.items()]
    return groups


def hardware_class(host: Host) -> str:
    """Cores and memory, so that hosts of one delivery are alike although each finds a few MiB more or less."""
    cores = sum(len(cores) for cores in host.numa.values())
    return f"{cores}x{round(host.memory_kb / 2**20)}g" if cores or host.memory_kb else ""


def application_of(job: Job) -> str:
    """The name its user gave the job, else its program's."""
    if job.request.name != JobRequest.name or not job.command:
        return job.request.name
    program = next((word for word in job.command if not _INTERPRETER.match(word)), job.command[0])
    return program.rpartition("/")[2]


class Follower:
    """Keeps the groups up to date by long polls, and reconnects for as long as it takes.

    While the resource manager is silent, the groups stay as they were.
    """

    def __init__(self, url: str, token: str, authority: str = "") -> None:
        self._client = client(url, token, authority)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="membership", daemon=True)
        self._groups: list[Group] = []
        self._membership = Membership(-1, [], [], [])
        self._guests: dict[str, str] = {}
        self._trouble = ""

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a poll under way is cut off."""
        self._stopped.set()
        self._client.close()

    def groups(self) -> Sequence[Group]:
        """All groups as last heard. Not to be changed."""
        return self._groups

    def membership(self) -> Membership:
        """All of what was last heard. Not to be changed."""
        return self._membership

    def is_member(self, job: str, host: str) -> bool:
        """Whether guests of a job are on a host."""
        return any(group.job == job and host in group.hosts for group in self._groups)

    def has_room_for(self, host: str) -> bool:
        """Whether a free host could hold the guests of this one even if they filled all of their memory."""
        guests = sum(guest.memory_kb for guest in self._membership.guests if guest.host == host)
        free = [one.memory_kb for one in self._membership.hosts if one.pool == "free"]
        return bool(free) and guests <= ROOM * max(free)

    def is_guest(self, name: str, uuid: str) -> bool:
        """Whether the site has this very guest now."""
        return self._guests.get(name) == uuid

    def _run(self) -> None:
        version = -1
        while not self._stopped.is_set():
            try:
                version = self._poll(version)
            except (httpx.HTTPError, ValueError, RuntimeError) as error:
                if self._stopped.is_set():
                    return
                self._note(f"the resource manager's membership: {error or type(error).__name__}; trying on")
                version = -1  # it may have lost count too: ask for the whole picture
                self._stopped.wait(RETRY_S)

    def _poll(self, version: int) -> int:
        query = {"after": version, "timeout": POLL_S}
        answer = self._client.get("/membership", params=query, timeout=httpx.Timeout(5, read=POLL_S + 10))
        answer.raise_for_status()
        membership = from_dict(Membership, answer.json())
        self._note("")
        if membership.version != version:
            self._guests = {guest.name: guest.uuid for guest in membership.guests}
            groups = groups_of(membership)
            self._membership = membership
            if groups != self._groups:
                before, after = ({group.name: group.hosts for group in some} for some in (self._groups, groups))
                for name in sorted(before.keys() | after.keys()):
                    if before.get(name) != after.get(name):
                        log.info("job %s: hosts %s", name, ", ".join(after.get(name, ())) or "none")
                self._groups = groups
        return membership.version

    def _note(self, trouble: str) -> None:
        """Say that it does not work, and that it works again, once each."""
        if bool(trouble) != bool(self._trouble):
            log.warning(trouble) if trouble else log.info("the resource manager answers again")
        self._trouble = trouble
