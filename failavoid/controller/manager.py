"""The resource manager as the controller sees it: its API, and its membership followed by a long poll."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import httpx

from failavoid.controller.clock import Clock
from failavoid.services import Changes, client
from failavoid.shared.messages import Guest, Host, Job, Lease, LeaseRequest, Membership, Placement, from_dict, to_dict

log = logging.getLogger(__name__)

_POLL_S = 25.0
_RETRY_S = 1.0


class ManagerError(Exception):
    """The resource manager refused (``status`` 4xx), failed (5xx) or gave no answer (0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def refused(self) -> bool:
        """The same request would be refused again; otherwise it may be repeated."""
        return 400 <= self.status < 500


class ResourceManager:
    """A client of the resource manager's API; usable from any thread."""

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None, authority: str = "") -> None:
        self._client = client(url, token, authority, timeout=httpx.Timeout(10.0, connect=2.0), transport=transport)

    def membership(self, after: int = -1, timeout: float = 0.0) -> Membership:
        """Return the membership, at the latest after ``timeout`` seconds if it is still ``after``."""
        answer = self._call("GET", f"/membership?after={after}&timeout={timeout}", timeout=timeout + 10)
        return from_dict(Membership, answer)

    def lease(self, request: LeaseRequest) -> Lease:
        """Hold a spare for an evacuation; asked again, the same one. Refused with 409 when there is none."""
        return from_dict(Lease, self._call("POST", "/leases", to_dict(request)))

    def give_back(self, lease: str) -> None:
        """Return a lease's spare; one that is gone already is no error."""
        try:
            self._call("DELETE", f"/leases/{lease}")
        except ManagerError as error:
            if error.status != 404:
                raise

    def place(self, guests: list[str], host: str) -> list[Placement]:
        """Reserve cores for guests on a host."""
        answer = self._call("POST", "/placements", {"guests": guests, "host": host})
        return [from_dict(Placement, one) for one in answer]

    def commit(self, lease: str, placements: list[Placement]) -> None:
        """Say that the guests now run where they were placed; the spare becomes allocated."""
        self._call("POST", f"/leases/{lease}/commit", {"placements": [to_dict(one) for one in placements]})

    def suspect(self, host: str, reason: str, evacuation: str, job: str) -> None:
        """Have a host get no new work while it may be failing; the site's own commands for alarms are run."""
        self._call("POST", f"/hosts/{host}/suspect", {"reason": reason, "evacuation": evacuation, "job": job})

    def trust(self, host: str) -> None:
        """Take that back."""
        self._call("DELETE", f"/hosts/{host}/suspect")

    def retire(self, host: str, reason: str, evacuation: str = "", job: str = "") -> None:
        """Move a host to the pool defunct."""
        body = {"reason": reason, "evacuation": evacuation, "job": job}
        self._call("POST", f"/hosts/{host}/retire", body, timeout=30)

    def _call(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Any:
        limit = httpx.USE_CLIENT_DEFAULT if timeout is None else httpx.Timeout(timeout, connect=2.0)
        try:
            response = self._client.request(method, path, json=body, timeout=limit)
        except httpx.HTTPError as error:
            raise ManagerError(0, f"the resource manager does not answer: {error}") from error
        if response.status_code >= 400:
            raise ManagerError(response.status_code, f"the resource manager: {_detail(response)}")
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise ManagerError(502, f"the resource manager answered {method} {path} without JSON") from error


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.text.strip()[:200]}"


class Cluster:
    """The latest membership. ``changed`` is notified of every new one, and ``news`` grows."""

    def __init__(self, manager: ResourceManager, changed: threading.Condition, news: Changes) -> None:
        self._manager = manager
        self._changed = changed
        self._news = news
        self.membership: Membership | None = None

    def follow(self, stop: threading.Event) -> None:
        """Follow the membership until ``stop``; for a thread of its own."""
        complained = False
        while not stop.is_set():
            after = self.membership.version if self.membership else -1
            try:
                self._take(self._manager.membership(after, _POLL_S))
                complained = False
            except (ManagerError, ValueError) as error:
                if not complained:
                    log.warning("the membership can't be followed, trying on: %s", error)
                    complained = True
                stop.wait(_RETRY_S)

    def refresh(self) -> Membership:
        """Ask for the membership now. Raises ManagerError if it isn't known at all."""
        try:
            membership = self._manager.membership()
            # The answer may have been overtaken by the follower's; a smaller number that is
            # right nevertheless (a resource manager begun anew) comes by the follower too.
            if self.membership is None or membership.version > self.membership.version:
                self._take(membership)
        except ManagerError:
            if self.membership is None:
                raise
            log.warning("the resource manager does not answer: going by its last word")
        assert self.membership is not None
        return self.membership

    def wait_until_known(self, clock: Clock, retry_s: float, interrupted: Callable[[], object] = lambda: False) -> None:
        """Wait for the first word of the resource manager since this program was started, or until ``interrupted``."""

        def settled() -> object:
            return self.membership is not None or interrupted()

        while not settled():
            try:
                self.refresh()
            except ManagerError:
                clock.wait(settled, clock.now() + retry_s)

    def _take(self, membership: Membership) -> None:
        with self._changed:
            if self.membership is not None and membership.version == self.membership.version:
                return
            self.membership = membership
            self._changed.notify_all()
        self._news.bump()

    def guest(self, name: str) -> Guest | None:
        """Return the guest of that name, if the membership has it."""
        return next((g for g in self.membership.guests if g.name == name), None) if self.membership else None

    def job(self, job: str) -> Job | None:
        """Return the job, if the membership has it."""
        return next((j for j in self.membership.jobs if j.id == job), None) if self.membership else None

    def job_on(self, host: str) -> Job | None:
        """Return the job that has a host itself, without guests, if there is one."""
        jobs = self.membership.jobs if self.membership else []
        return next((j for j in jobs if host in j.hosts and j.state not in ("completed", "failed")), None)

    def host(self, name: str) -> Host | None:
        """Return the host of that name, if the membership has it."""
        return next((h for h in self.membership.hosts if h.name == name), None) if self.membership else None

    def job_is_over(self, job: str) -> bool:
        """Whether the job has ended; one that isn't known any more has. Unknown membership: no."""
        found = self.job(job)
        return self.membership is not None and (found is None or found.state in ("completed", "failed"))
