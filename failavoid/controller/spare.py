"""What an evacuation holds of the resource manager: its spare's lease, and the word of where its guests run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TypeVar

from failavoid.controller.clock import Clock
from failavoid.controller.fleet import Fleet
from failavoid.controller.journal import Journal
from failavoid.controller.limits import Limits
from failavoid.controller.manager import ManagerError, ResourceManager
from failavoid.shared.messages import Evacuation, Lease, LeaseRequest, Placement

log = logging.getLogger(__name__)

T = TypeVar("T")


class NoSpareError(Exception):
    """There is no host to move to."""


class SpareFailedError(Exception):
    """The spare can't be used, or not any more; ``dead``: nobody else should get it either."""

    def __init__(self, reason: str, dead: bool = False) -> None:
        super().__init__(reason)
        self.dead = dead


class Spare:
    """The spare of ``evacuation``, whose ``spare`` and ``lease`` name it, or the hosts that it is ``packed_onto``."""

    def __init__(
        self,
        evacuation: Evacuation,
        fleet: Fleet,
        manager: ResourceManager,
        journal: Journal,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.evacuation = evacuation
        self._fleet = fleet
        self._manager = manager
        self._journal = journal
        self._limits = limits
        self._clock = clock
        self.renew_at = 0.0  # a lease from before a restart is renewed at once
        self._ours_until = 0.0  # as the resource manager has said since the controller was started

    def take(self, guests: list[str], pack: bool) -> list[Placement]:
        """Lease a spare for these guests, with places on it; may be repeated.

        Raises NoSpareError, SpareFailedError if they have no room there, ManagerError if nobody answers.
        """
        try:
            lease = self._lease(guests, pack)
        except ManagerError as error:
            if error.refused:
                raise NoSpareError(str(error)) from error
            raise
        evacuation = self.evacuation
        evacuation.spare, evacuation.lease, evacuation.packed_onto = lease.host, lease.id, lease.packed_onto
        self._note(lease)
        self._journal.save(evacuation)
        try:
            placements = self.ask(lambda: self._manager.place(guests, lease.host))
        except ManagerError as error:
            if error.refused:
                raise SpareFailedError(f"{lease.host} does not take the guests: {error}") from error
            raise
        missing = sorted(set(guests) - {placement.guest for placement in placements})
        if missing:
            raise SpareFailedError(f"the resource manager placed no {', '.join(missing)} on {lease.host}")
        return placements

    def _lease(self, guests: list[str], pack: bool) -> Lease:
        request = self._request(guests)
        try:
            return self.ask(lambda: self._manager.lease(request))
        except ManagerError as error:
            if not (error.refused and pack):
                raise
            log.warning("%s: %s; looking for room on hosts of the job", self.evacuation.id, error)
            request.pack = True
            return self.ask(lambda: self._manager.lease(request))

    def _request(self, guests: list[str]) -> LeaseRequest:
        evacuation, fleet = self.evacuation, self._fleet
        avoid = {evacuation.host, *evacuation.failed_spares} | fleet.failing_hosts()
        return LeaseRequest(
            evacuation.id, guests, sorted(avoid), sorted(fleet.failing_domains()), fleet.ids_beside(evacuation)
        )

    def _note(self, lease: Lease) -> None:
        """Renew the lease at half its time."""
        self.renew_at = (self._clock.now() + lease.expires) / 2
        self._ours_until = lease.expires

    @property
    def is_ours(self) -> bool:
        """Whether it is known that nobody else has the spare: not after a restart, nor once the lease has run out."""
        return self._clock.now() < self._ours_until

    def keep(self, guests_move: bool) -> None:
        """See to it that the spare stays ours, also after a restart. Raises SpareFailedError if it is lost.

        While the resource manager is silent, `is_ours` says what is known.
        Who was away for longer than the lease may get a new one of the same host: where guests move already, that
        one is as good; before, its places are not those that were planned with.
        """
        evacuation = self.evacuation
        if self._clock.now() < self.renew_at or evacuation.spare is None:
            return
        guests = sorted(m.guest for m in evacuation.migrations if m.attempt == evacuation.attempt)
        try:
            request = LeaseRequest(evacuation.id, guests, host=evacuation.spare, pack=True)
            request.packed_onto, request.beside = evacuation.packed_onto, self._fleet.ids_beside(evacuation)
            lease = self._manager.lease(request)
        except ManagerError as error:
            if error.refused:
                self._ours_until = 0.0
                raise SpareFailedError(f"the lease of {evacuation.spare} was lost: {error}") from error
            self.renew_at = self._clock.now() + self._limits.retry_s
            return
        lost = lease.id != evacuation.lease
        if lost:
            evacuation.lease = lease.id
            self._journal.save(evacuation)
        self._note(lease)
        if lost and not guests_move:
            raise SpareFailedError(f"the lease of {evacuation.spare} was lost: it had expired")

    def give_back(self, until: float) -> None:
        """Return the spare; a lease that was asked for, but whose answer was lost, is asked for again."""
        evacuation = self.evacuation
        while True:
            try:
                lease = evacuation.lease or self._manager.lease(self._request([])).id
                self._manager.give_back(lease)
                return
            except ManagerError as error:
                if error.refused:
                    return
                if self._clock.now() > until:
                    log.warning("%s: the lease could not be returned, it will expire: %s", evacuation.id, error)
                    return
                self._clock.sleep(self._limits.retry_s)

    def set_aside(self, reason: str, attempts: int | None) -> bool:
        """Keep the spare from everybody; whether the resource manager has heard. Raises ManagerError if it refuses."""
        spare = self.evacuation.spare or ""
        return self.insist(lambda: self._manager.retire(spare, reason), attempts)

    def commit(self, placements: list[Placement], attempts: int | None) -> bool:
        """Say where the guests run now; whether it was heard. Raises ManagerError if it is refused.

        A lease that has expired is taken anew, if nobody else has the spare: the guests are there.
        """
        lease = self.evacuation.lease
        try:
            return self.insist(lambda: self._manager.commit(lease or "none", placements), attempts)
        except ManagerError:
            self.renew_at = 0.0
            with contextlib.suppress(SpareFailedError):
                self.keep(guests_move=True)
            if self.evacuation.lease == lease:
                raise
            return self.insist(lambda: self._manager.commit(self.evacuation.lease or "none", placements), attempts)

    def insist(self, act: Callable[[], None], attempts: int | None = None) -> bool:
        """Do ``act`` until the resource manager answers, or ``attempts`` times; whether it did.

        Raises ManagerError if it refuses.
        """
        try:
            self.ask(act, attempts)
        except ManagerError as error:
            if error.refused:
                raise
            return False
        return True

    def ask(self, act: Callable[[], T], attempts: int | None = 3) -> T:
        """Return what ``act`` returns, repeated while the resource manager is silent. Raises ManagerError."""
        while True:
            try:
                return act()
            except ManagerError as error:
                attempts = None if attempts is None else attempts - 1
                if error.refused or attempts == 0:
                    raise
                log.warning("%s: %s; trying again", self.evacuation.id, error)
            self._clock.sleep(self._limits.retry_s)
