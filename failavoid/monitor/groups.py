"""Follows the resource manager's membership: which hosts now run guests of which job."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

import httpx

from failavoid.services import client
from failavoid.shared.messages import Membership, from_dict

log = logging.getLogger(__name__)
JUDGED_STATES = ("ready", "running")
POLL_S = 10.0
RETRY_S = 1.0


def groups_of(membership: Membership) -> dict[str, list[str]]:
    """The hosts of each job that is ready or runs, by the guests they hold now."""
    groups = {}
    for job in membership.jobs:
        if job.state in JUDGED_STATES:
            hosts = {g.host for g in membership.guests if g.job == job.id and g.state != "lost"}
            if hosts:
                groups[job.id] = sorted(hosts)
    return groups


class Follower:
    """Keeps the groups up to date by long polls, and reconnects for as long as it takes.

    While the resource manager is silent, the groups stay as they were.
    """

    def __init__(self, url: str, token: str, authority: str = "") -> None:
        self._client = client(url, token, authority)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="membership", daemon=True)
        self._groups: dict[str, list[str]] = {}
        self._guests: dict[str, str] = {}
        self._trouble = ""

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a poll under way is cut off."""
        self._stopped.set()
        self._client.close()

    def groups(self) -> Mapping[str, list[str]]:
        """The hosts of each job as last heard. Not to be changed."""
        return self._groups

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
            if groups != self._groups:
                for job in groups.keys() | self._groups.keys():
                    if groups.get(job) != self._groups.get(job):
                        log.info("job %s: hosts %s", job, ", ".join(groups.get(job, [])) or "none")
                self._groups = groups
        return membership.version

    def _note(self, trouble: str) -> None:
        """Say that it does not work, and that it works again, once each."""
        if bool(trouble) != bool(self._trouble):
            log.warning(trouble) if trouble else log.info("the resource manager answers again")
        self._trouble = trouble
