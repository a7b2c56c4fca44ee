"""An evacuation's way from alarm to retired host: a thread each, journal first, side effects repeatable.

PREDICTED -> LEASED -> NOTICED -> GATHERED -> MIGRATING -> VERIFIED -> RELEASED -> RETIRED, with the ways back
CANCELLED (until the gate opens) and FAILED. A restarted controller goes on from the state in the journal:
each state names what comes next, and what was begun is simply done again. Whatever happens, the ranks are
released.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from failavoid.controller.journal import Journal
from failavoid.controller.manager import Cluster, ManagerError, ResourceManager
from failavoid.controller.notices import NoticeBoard, Reports
from failavoid.controller.playbooks import MigrateGuests, note_results, preparation, verified_guests
from failavoid.controller.verification import MOVED, UNCLEAR, Verifier
from failavoid.playbook_runner import PlaybookResult
from failavoid.services import Changes
from failavoid.shared.messages import Evacuation, Host, Lease, Migration, Placement

log = logging.getLogger(__name__)

T = TypeVar("T")

ENDED = ("RETIRED", "CANCELLED", "FAILED")
BEFORE_THE_MOVE = ("PREDICTED", "LEASED", "NOTICED", "GATHERED")


@dataclass
class Limits:
    """How long an evacuation waits for others, in seconds, and what it does when ranks don't come."""

    gather_timeout_s: float = 60.0  # for ranks to find the notice, where no time of failure is predicted
    gather_minimum_s: float = 2.0  # however close the failure is
    expected_migration_s: float = 10.0  # kept free before the predicted failure
    on_deadline: str = "migrate"  # migrate | cancel: when not all ranks stopped in time
    migration_timeout_s: float = 300.0
    settle_timeout_s: float = 30.0  # for both hosts to agree where a guest is
    reach_timeout_s: float = 20.0  # for a moved guest to answer
    resume_timeout_s: float = 30.0  # for ranks to say that they run again
    retry_s: float = 2.0  # between attempts to reach the resource manager
    give_back_timeout_s: float = 30.0  # for the playbook to end and the spare to be returned after a cancellation


@dataclass
class Surroundings:
    """What evacuations work with; tests put other things in its place.

    ``changed`` guards all of the controller's memory and is notified of whatever an evacuation may wait for.
    """

    journal: Journal
    board: NoticeBoard
    manager: ResourceManager
    cluster: Cluster
    migrate: MigrateGuests
    verifier: Verifier
    limits: Limits
    changed: threading.Condition
    news: Changes  # what long polls wait for


class CancelledEvacuation(Exception):
    """Nothing has moved yet and nothing will: the reason."""


class FailedEvacuation(Exception):
    """The move did not come out as it should: what is known, and what a person must decide."""


class EvacuationRun:
    """One evacuation under way. Its thread runs `run`; the others are for the API's threads."""

    def __init__(self, evacuation: Evacuation, around: Surroundings, is_my_turn: Callable[[], bool]) -> None:
        self.evacuation = evacuation
        self.around = around
        self.is_my_turn = is_my_turn
        self.cancel_reason = ""
        self.gate_cancelled = evacuation.state == "CANCELLED" or self._begun("cancelled")
        self._playbook: threading.Thread | None = None
        self._heard = PlaybookResult(-1, "running", Path())  # what the playbook's tasks have said so far
        self._result: PlaybookResult | None = None
        self._stop_playbook = False
        self._renew_at = 0.0

    # -- what others ask -----------------------------------------------------------------------------------

    @property
    def gate_open(self) -> bool:
        """Whether guests may move: as soon as that is in the journal, as long as the move is waited for."""
        return self.evacuation.state == "MIGRATING" and not self.gate_closed

    @property
    def gate_closed(self) -> bool:
        """Whether nothing may begin to move any more."""
        return self.gate_cancelled or self.evacuation.state not in (*BEFORE_THE_MOVE, "MIGRATING")

    def cancel(self, reason: str) -> bool:
        """Ask for the evacuation's end; False if its guests may be moving already, or it has ended."""
        with self.around.changed:
            if self.evacuation.state not in BEFORE_THE_MOVE:
                return False
            self.cancel_reason = self.cancel_reason or reason
            self.around.changed.notify_all()
            return True

    # -- the way -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Go on from the present state to an end."""
        try:
            self._go_on()
        except CancelledEvacuation as reason:
            self._cancelled(str(reason))
        except FailedEvacuation as reason:
            self._failed(str(reason))
        except Exception as error:
            log.exception("%s: an error of the controller itself", self.evacuation.id)
            reason_ = f"the controller made an error ({type(error).__name__}: {error}); its log has the details"
            if self.evacuation.state in BEFORE_THE_MOVE:
                self._cancelled(reason_)
            else:
                self._failed(reason_)

    def _go_on(self) -> None:
        if self._begun("cancelled"):
            raise CancelledEvacuation(self.evacuation.error)
        if self._begun("failed"):
            raise FailedEvacuation(self.evacuation.error)
        ways: dict[str, Callable[[], object]] = {
            "PREDICTED": self._lease,
            "LEASED": self._notice,
            "NOTICED": self._gather,
            "GATHERED": self._open_gate,
            "MIGRATING": self._migrate,
            "VERIFIED": self._release,
            "RELEASED": self._finish,
        }
        while (way := ways.get(self.evacuation.state)) is not None:
            way()

    def _lease(self) -> None:
        evacuation = self.evacuation
        with self.around.changed:
            self.around.changed.wait_for(lambda: self.cancel_reason or self._job_over() or self.is_my_turn())
        self._give_way()
        self._begin("leased")
        try:
            affected = self._ask(self._affected)
            lease = self._ask(lambda: self.around.manager.lease(evacuation.id))
            evacuation.spare, evacuation.lease = lease.host, lease.id
            self._note_lease(lease)
            self.around.journal.save(evacuation)
            placements = self._ask(lambda: self.around.manager.place(affected, lease.host))
        except ManagerError as error:
            if error.status == 409 and evacuation.lease is None:
                log.error("%s: NO SPARE for %s: %s", evacuation.id, evacuation.host, error)
                raise CancelledEvacuation(f"no spare to move to: {error}") from error
            raise CancelledEvacuation(str(error)) from error
        missing = set(affected) - {placement.guest for placement in placements}
        if missing:
            raise CancelledEvacuation(f"the resource manager placed no {', '.join(sorted(missing))}")
        with self.around.changed:
            evacuation.migrations = [
                Migration(p.guest, evacuation.host, p.host, p.cores, p.numa_node, address=self._address_of(p.guest))
                for p in placements
            ]
        self._done("leased", "LEASED", f"{lease.host} for {', '.join(affected)}")

    def _notice(self) -> None:
        evacuation, board = self.evacuation, self.around.board
        self._give_way()
        if not evacuation.epoch:
            evacuation.epoch = board.next_epoch(evacuation.job)
        self._begin("noticed")
        board.post(evacuation.job, evacuation.epoch, self._guests())
        self._done("noticed", "NOTICED", f"epoch {evacuation.epoch}")

    def _gather(self) -> None:
        self._begin("gathered")
        self._start_playbook()
        deadline = self._deadline()
        self._wait(lambda: self.cancel_reason or self._result or self._job_over() or self._all_ready(), deadline)
        with self.around.changed:
            ready = [guest for guest in self._guests() if guest in self._reports().ready]
        self._give_way()
        words = f"{len(ready)} of {len(self._guests())} guests ready"
        if len(ready) < len(self._guests()):
            words = f"at the deadline {words}"
            if self.around.limits.on_deadline == "cancel":
                raise CancelledEvacuation(f"{words}, and the policy is to cancel then")
            log.warning("%s: %s; they are moved all the same", self.evacuation.id, words)
        self._done("gathered", "GATHERED", words)

    def _open_gate(self) -> None:
        """From here on guests move; who asked to cancel before has been heard, who asks later is too late."""
        self._keep_lease()
        with self.around.changed:
            self._give_way()
            self.evacuation.state = "MIGRATING"
            for migration in self.evacuation.migrations:
                migration.state = "running"
            self._begin("migrating")
        self.around.news.bump()

    def _migrate(self) -> None:
        evacuation = self.evacuation
        self._start_playbook()
        try:
            self._wait(self._playbook_has_said_all)
        except CancelledEvacuation as loss:  # it is too late for that
            log.error("%s: %s", evacuation.id, loss)
            with self.around.changed:
                self.around.changed.wait_for(self._playbook_has_said_all)
        with self.around.changed:
            result = self._result or self._heard
            named = note_results(evacuation.migrations, result)
            self._note_preparation(result)
        self._done("migrating", None, f"the playbook: {result.status}, {len(named)} guests named")
        self._begin("verified")
        troubles = self.around.verifier.verify(evacuation)
        troubles += [f"the playbook says nothing of {guest}" for guest in self._guests() if guest not in named]
        troubles += [f"the playbook: {failure}" for failure in result.failures]
        moved = self._in_state(MOVED)
        if self._job_over() and not self._in_state(UNCLEAR):
            # nobody's ranks are left to care for, and where the guests are is known
            if not moved:
                raise CancelledEvacuation("; ".join([f"job {evacuation.job} has ended, nothing has moved", *troubles]))
            words = "; ".join([f"job {evacuation.job} has ended; {', '.join(moved)} moved", *troubles])
        elif troubles:
            raise FailedEvacuation("; ".join(troubles))
        else:
            words = f"{len(moved)} guests run on {evacuation.spare}"
        self._done("verified", "VERIFIED", words)

    def _playbook_has_said_all(self) -> bool:
        """Whether it has ended, or named every guest as verified: its own end costs time that ranks need not wait."""
        return self._result is not None or verified_guests(self._heard) >= set(self._guests())

    def _address_of(self, guest: str) -> str:
        known = self.around.cluster.guest(guest)
        return known.address if known else ""

    def _release(self) -> None:
        # Before the ranks run: a job that ends right away is then cleaned up where its guests are.
        committed = self._commit(attempts=1)
        self._release_ranks()
        if not committed:
            self._commit()
        with self.around.changed:
            self.evacuation.state = "RELEASED"
            self.around.journal.save(self.evacuation)
            self.around.changed.notify_all()  # the job's next evacuation may post its notice

    def _finish(self) -> None:
        """Retire the host, once the playbook has ended well too."""
        if self._playbook is not None:
            with self.around.changed:
                self.around.changed.wait_for(lambda: self._result)
        if self._result is not None and self._result.failures and not self._job_over():
            raise FailedEvacuation("; ".join(f"the playbook: {failure}" for failure in self._result.failures))
        self._retire("RETIRED")

    def _retire(self, state: str | None, attempts: int | None = None) -> bool:
        evacuation = self.evacuation
        self._begin("retired")
        retire = self.around.manager.retire
        if not self._insist(lambda: retire(evacuation.host, self._retire_reason()), attempts):
            return False
        self._done("retired", state)
        return True

    # -- the ways back -------------------------------------------------------------------------------------

    def _cancelled(self, reason: str) -> None:
        """Release the ranks, end the playbook, return the spare: nothing has moved."""
        evacuation = self.evacuation
        with self.around.changed:
            evacuation.error = reason
            for migration in evacuation.migrations:
                migration.state = "cancelled"
            self._begin("cancelled", reason)
            self.gate_cancelled = True
        self.around.news.bump()
        if evacuation.epoch:
            self.around.board.cancel(evacuation.job, evacuation.epoch)
        end = time.monotonic() + self.around.limits.give_back_timeout_s
        if self._playbook is not None:
            self._end_playbook(end)
        self._give_back(end)
        log.warning("%s: cancelled: %s", evacuation.id, reason)
        self._done("cancelled", "CANCELLED")

    def _failed(self, reason: str) -> None:
        """Keep what is known: moved guests are committed, ranks released; a person decides the rest."""
        evacuation = self.evacuation
        log.error("%s: FAILED: %s", evacuation.id, reason)
        with self.around.changed:
            evacuation.error = reason
            self._begin("failed", reason)
            self.gate_cancelled = True
        moved, unclear = self._in_state(MOVED), self._in_state(UNCLEAR)
        if moved:
            self._try("tell where the guests run", self._commit)
        elif unclear:  # where a guest might be, nobody else is placed
            self._try(f"keep {evacuation.spare} from others", self._set_spare_aside)
        self._release_ranks()
        if not moved and not unclear:
            self._give_back(time.monotonic() + self.around.limits.give_back_timeout_s)
        elif moved == self._guests():
            self._try(f"retire {evacuation.host}", lambda attempts: self._retire(None, attempts))
        self._done("failed", "FAILED", evacuation.error)

    def _try(self, what: str, act: Callable[[int], bool]) -> None:
        """Do what can still be done of a failed evacuation; if that fails too, say so and go on."""
        try:
            trouble = "" if act(3) else "the resource manager does not answer"
        except FailedEvacuation as refusal:
            trouble = str(refusal)
        if trouble:
            self.evacuation.error += f"; could not {what}: {trouble}"

    def _set_spare_aside(self, attempts: int) -> bool:
        spare, reason = self.evacuation.spare or "", f"guests of {self.evacuation.id} may run here: look"
        return self._insist(lambda: self.around.manager.retire(spare, reason), attempts)

    # -- parts of the way ----------------------------------------------------------------------------------

    def _give_way(self) -> None:
        """Raise CancelledEvacuation if something ends the evacuation before the move."""
        if self.cancel_reason:
            raise CancelledEvacuation(self.cancel_reason)
        if self._job_over():
            raise CancelledEvacuation(f"job {self.evacuation.job} has ended")
        if self._result is not None:
            failures = "; ".join(self._result.failures) or "it ended before the guests were allowed to move"
            raise CancelledEvacuation(f"the destination could not be prepared: {failures}")

    def _affected(self) -> list[str]:
        """Return the guests that leave, as the resource manager knows them now."""
        evacuation = self.evacuation
        membership = self.around.cluster.refresh()
        found = [
            guest.name
            for guest in membership.guests
            if guest.host == evacuation.host and guest.job == evacuation.job and guest.state != "lost"
        ]
        if not found:
            raise CancelledEvacuation(f"no guest of job {evacuation.job} is on {evacuation.host} any more")
        return sorted(found)

    def _note_lease(self, lease: Lease) -> None:
        """Renew the lease at half its time."""
        self._renew_at = (time.time() + lease.expires) / 2

    def _keep_lease(self) -> None:
        """See to it that the spare stays ours, also after a restart. Raises CancelledEvacuation if it is lost."""
        evacuation, manager = self.evacuation, self.around.manager
        if time.time() < self._renew_at:
            return
        try:
            lease = manager.lease(evacuation.id)
        except ManagerError as error:
            if error.refused:
                raise CancelledEvacuation(f"the lease of {evacuation.spare} was lost: {error}") from error
            return  # who doesn't answer gives the spare to nobody else either
        if (lease.id, lease.host) != (evacuation.lease, evacuation.spare):
            lost, evacuation.lease = evacuation.spare, lease.id  # the new one is to be given back
            raise CancelledEvacuation(f"the lease of {lost} was lost: it had expired")
        self._note_lease(lease)

    def _wait(self, happened: Callable[[], object], until: float = float("inf")) -> None:
        """Wait until ``happened``, at the latest until that time, and keep the lease meanwhile."""
        while True:
            with self.around.changed:
                wake = max(0.0, min(until, max(self._renew_at, time.time() + 1.0)) - time.time())
                if self.around.changed.wait_for(happened, timeout=wake) or time.time() >= until:
                    return
            self._keep_lease()

    def _deadline(self) -> float:
        """When the guests must move, ready or not: before the predicted failure, by the time a move takes."""
        limits, alarm = self.around.limits, self.evacuation.alarm
        noticed = next(step.begun for step in self.evacuation.steps if step.name == "noticed")
        wait = limits.gather_timeout_s
        if alarm is not None and alarm.evidence.predicted_failure_s is not None:
            failure = alarm.time + alarm.evidence.predicted_failure_s
            wait = min(wait, failure - limits.expected_migration_s - noticed)
        return noticed + max(wait, limits.gather_minimum_s)

    def _start_playbook(self) -> None:
        if self._playbook is not None:
            return
        membership = self.around.cluster.refresh()
        hosts = {host.name: host for host in membership.hosts}
        self._playbook = threading.Thread(
            target=self._run_playbook, args=(hosts,), daemon=True, name=f"{self.evacuation.id}-playbook"
        )
        self._playbook.start()

    def _run_playbook(self, hosts: dict[str, Host]) -> None:
        try:
            result = self.around.migrate(self.evacuation, hosts, self._hear, lambda: self._stop_playbook)
        except Exception as error:
            log.exception("%s: the playbook could not be run", self.evacuation.id)
            result = PlaybookResult(254, "failed", Path(), {}, [f"it could not be run: {error}"])
        with self.around.changed:
            self._result = result
            self.around.changed.notify_all()

    def _hear(self, host: str, task: str, said: dict[str, Any]) -> None:
        """Take a task's result while the playbook runs."""
        with self.around.changed:
            self._heard.host_results.setdefault(host, {})[task] = said
            self.around.changed.notify_all()

    def _end_playbook(self, end: float) -> None:
        """Wait for the playbook, whose tasks find the gate cancelled; kill it if they don't."""
        assert self._playbook is not None
        self._playbook.join(max(0.0, end - time.monotonic()))
        if self._playbook.is_alive():
            self._stop_playbook = True
            self._playbook.join(10.0)

    def _note_preparation(self, result: PlaybookResult) -> None:
        if times := preparation(result):
            self.around.journal.begin(self.evacuation, "prepare_destination", at=times[0])
            self.around.journal.done(self.evacuation, "prepare_destination", at=times[1])

    def _commit(self, attempts: int | None = None) -> bool:
        """Tell the resource manager where the guests run now; without ``attempts`` until it has heard."""
        evacuation = self.evacuation
        if any(step.name == "committed" and step.done for step in evacuation.steps):
            return True
        moved = [m for m in evacuation.migrations if m.state == MOVED]
        placements = [Placement(m.guest, m.destination, m.cores, m.numa_node) for m in moved]
        self._begin("committed")
        try:
            if not self._insist(lambda: self.around.manager.commit(evacuation.lease or "none", placements), attempts):
                return False
        except FailedEvacuation:
            # the lease ends with the commit: its answer may have been lost, or written down no more
            hosts = {guest.name: guest.host for guest in self.around.cluster.refresh().guests}
            if any(hosts.get(m.guest) != m.destination for m in moved):
                raise
        self._done("committed", None)
        return True

    def _release_ranks(self) -> None:
        """Release the ranks, and wait for each guest's word that its ranks run again."""
        evacuation = self.evacuation
        if any(step.name == "released" and step.done for step in evacuation.steps):
            return
        self._begin("released")
        stayed = not self._in_state(MOVED) and not self._in_state(UNCLEAR)
        end_epoch = self.around.board.cancel if stayed else self.around.board.finish
        end_epoch(evacuation.job, evacuation.epoch)
        with self.around.changed:
            self.around.changed.wait_for(
                lambda: not self._silent() or self._job_over(),
                timeout=self.around.limits.resume_timeout_s,
            )
            reports, waiting = self._reports(), self._silent()
            resumed = [at for guest, at in reports.resumed.items() if guest in self._guests()]
        words = f"{len(resumed)} of {len(self._guests())} guests resumed"
        if waiting:
            words += f", no word from {', '.join(waiting)}"
            log.warning("%s: %s", evacuation.id, words)
        begun = next(step.begun for step in evacuation.steps if step.name == "released")
        arrived = max(resumed, default=begun) if not waiting else time.time()
        self._done("released", None, words, at=max(begun, arrived))

    def _give_back(self, end: float) -> None:
        """Return the spare; a lease that was asked for, but whose answer was lost, is asked for again."""
        evacuation, manager = self.evacuation, self.around.manager
        if not self._begun("leased"):
            return
        while True:
            try:
                manager.give_back(evacuation.lease or manager.lease(evacuation.id).id)
                return
            except ManagerError as error:
                if error.refused:
                    return
                if time.monotonic() > end:
                    log.warning("%s: the lease could not be returned, it will expire: %s", evacuation.id, error)
                    return
                time.sleep(self.around.limits.retry_s)

    def _insist(self, act: Callable[[], None], attempts: int | None = None) -> bool:
        """Do ``act`` until the resource manager answers, or ``attempts`` times; whether it did.

        Raises FailedEvacuation if it refuses.
        """
        try:
            self._ask(act, attempts)
        except ManagerError as error:
            if error.refused:
                raise FailedEvacuation(str(error)) from error
            return False
        return True

    def _ask(self, act: Callable[[], T], attempts: int | None = 3) -> T:
        """Return what ``act`` returns, repeated while the resource manager is silent. Raises ManagerError."""
        while True:
            try:
                return act()
            except ManagerError as error:
                attempts = None if attempts is None else attempts - 1
                if error.refused or attempts == 0:
                    raise
                log.warning("%s: %s; trying again", self.evacuation.id, error)
            time.sleep(self.around.limits.retry_s)

    # -- small things --------------------------------------------------------------------------------------

    def _guests(self) -> list[str]:
        return sorted(migration.guest for migration in self.evacuation.migrations)

    def _reports(self) -> Reports:
        return self.around.board.reports(self.evacuation.job, self.evacuation.epoch)

    def _all_ready(self) -> bool:
        ready = self._reports().ready
        return all(guest in ready for guest in self._guests())

    def _silent(self) -> list[str]:
        resumed = self._reports().resumed
        return [guest for guest in self._guests() if guest not in resumed]

    def _job_over(self) -> bool:
        return self.around.cluster.job_is_over(self.evacuation.job)

    def _in_state(self, state: str) -> list[str]:
        return sorted(migration.guest for migration in self.evacuation.migrations if migration.state == state)

    def _retire_reason(self) -> str:
        alarm = self.evacuation.alarm
        return f"evacuated as {self.evacuation.id}: " + (
            f"rule {alarm.rule}, {alarm.metric} {alarm.value:.2f}" if alarm else self.evacuation.reason
        )

    def _begun(self, name: str) -> bool:
        return any(step.name == name for step in self.evacuation.steps)

    def _begin(self, name: str, detail: str = "") -> None:
        with self.around.changed:
            self.around.journal.begin(self.evacuation, name, detail)

    def _done(self, name: str, state: str | None, detail: str = "", at: float | None = None) -> None:
        with self.around.changed:
            if state is not None:
                self.evacuation.state = state
                log.info("%s: %s %s", self.evacuation.id, state, detail)
            self.around.journal.done(self.evacuation, name, detail, at)
            self.around.changed.notify_all()
