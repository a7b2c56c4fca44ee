"""An evacuation's way from alarm to retired host: journal first, side effects repeatable.

PREDICTED -> LEASED -> NOTICED -> GATHERED -> MIGRATING -> VERIFIED -> RELEASED -> RETIRED, or MOVED where other jobs'
guests stay on the host. The ways back are CANCELLED (until the gate opens) and FAILED; a spare that fails leads back to
PREDICTED, with the next attempt. Where nothing is to move, NOTICED -> GATHERED -> CHECKPOINTED. A restarted controller
goes on from the state in the journal: each state names what comes next, and what was begun is simply done again.
Whatever happens, the ranks are released.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from failavoid.controller.clock import NEVER
from failavoid.controller.fleet import WITHOUT_RANKS, Fleet, destinations
from failavoid.controller.manager import ManagerError
from failavoid.controller.moving import Move
from failavoid.controller.planning import CHECKPOINT, NOTHING, OFF, lead_of
from failavoid.controller.playbooks import MoveOrder, preparation
from failavoid.controller.ranks import Ranks
from failavoid.controller.reach import Reach
from failavoid.controller.spare import NoSpareError, Spare, SpareFailedError
from failavoid.controller.steps import Steps
from failavoid.controller.surroundings import Surroundings
from failavoid.controller.verification import MOVED, STAYED, UNCLEAR
from failavoid.playbook_runner import PlaybookResult
from failavoid.shared.messages import Evacuation, Guest, Migration, Placement

log = logging.getLogger(__name__)

_TRIES = 3  # to reach the resource manager, while ranks wait


class CancelledEvacuation(Exception):
    """Nothing moves any more, and nothing has moved that did not arrive: the reason."""


class FailedEvacuation(Exception):
    """The move did not come out as it should: what is known, and what a person must decide."""


class Way:
    """The way of ``evacuation``, for its thread. Each method but `end_attempt` is a step, or an end.

    ``opened``: the gate may be open, ``ready_for_notice``: it waits for the job's notice.
    """

    def __init__(self, evacuation: Evacuation, around: Surroundings, fleet: Fleet, steps: Steps, ranks: Ranks) -> None:
        self.opened = False  # also after a restart, until the spare is known to be ours
        self.ready_for_notice = False
        self._evacuation = evacuation
        self._around = around
        self._fleet = fleet
        self._steps = steps
        self._ranks = ranks
        self._move: Move | None = None
        self._spare = Spare(evacuation, fleet, around.manager, around.journal, around.limits, around.clock)
        self._reach = Reach(evacuation, around, self._spare)

    def go_on(self) -> None:
        """Take the step that comes next. Raises what ends the evacuation, or its present attempt."""
        if self._steps.begun("failed"):
            raise FailedEvacuation(self._evacuation.error)
        if self._steps.begun("cancelled"):
            raise CancelledEvacuation(self._evacuation.error)
        if failed := self._steps.find("attempt_failed"):
            raise SpareFailedError(failed.detail, self._reach.spare_is_dead())
        checkpoint = self._evacuation.kind == CHECKPOINT
        ways: dict[str, Callable[[], None]] = {
            "PREDICTED": self._notice if checkpoint else self._lease,
            "LEASED": self._notice,
            "NOTICED": self._gather,
            "GATHERED": self._checkpointed if checkpoint else self._open_gate,
            "MIGRATING": self._migrate,
            "VERIFIED": self._release,
            "RELEASED": self._finish,
        }
        ways[self._evacuation.state]()

    def _lease(self) -> None:
        evacuation, policy = self._evacuation, self._around.policy
        if evacuation.plan is None:
            self._wait(lambda: self._interrupted() or not self._fleet.waits_for_arrivals(evacuation))
            self._plan()
            return
        self._wait(lambda: self._interrupted() or self._fleet.may_lease(evacuation))
        self._give_way()
        guests = self._guests_to_move()
        self._steps.begin("leased")
        try:
            placements = self._spare.take(sorted(guests), policy.on_no_spare == "pack")
        except NoSpareError as refusal:
            raise self._no_spare(sorted(guests), str(refusal)) from refusal
        except ManagerError as silence:
            raise CancelledEvacuation(str(silence)) from silence
        with self._around.changed:
            evacuation.migrations = [m for m in evacuation.migrations if m.attempt != evacuation.attempt] + [
                Migration(
                    *(p.guest, evacuation.host, p.host, p.cores, p.numa_node),
                    address=guests[p.guest].address,
                    attempt=evacuation.attempt,
                    devices=p.devices,
                )
                for p in placements
            ]
        words = f"{', '.join(destinations(evacuation))} for {', '.join(sorted(guests))}"
        self._steps.done("leased", "LEASED", words)

    def _plan(self) -> None:
        evacuation, around = self._evacuation, self._around
        self._give_way()
        self._steps.begin("planned")
        job, host = around.cluster.job(evacuation.job), around.cluster.host(evacuation.host)
        if job is None or host is None:
            raise CancelledEvacuation(f"there is no {'host ' + evacuation.host if job else 'job ' + evacuation.job}")
        guests: dict[str, Guest] = {} if job.resource == "hosts" else self._guests_to_move()
        past = [run.evacuation for run in self._fleet.runs.values()]
        lead = lead_of(evacuation.alarm, around.clock.now())
        others = [other for other in around.cluster.refresh().hosts if other.name != host.name]
        plan = around.planner.plan(host, job, list(guests.values()), lead, past, others)
        words = f"{plan.decision}: {'; '.join(plan.reasons)}"
        with around.changed:
            evacuation.plan = plan
            evacuation.kind = CHECKPOINT if plan.decision == CHECKPOINT else "move"
        if plan.decision != OFF:
            self._suspect()
        self._steps.done("planned", None, words)
        if plan.decision == OFF:
            raise CancelledEvacuation(words)
        if plan.decision == NOTHING:
            log.error("%s: NOTHING HELPS the guests on %s: %s", evacuation.id, evacuation.host, words)
            if around.policy.on_short_lead == "cancel":
                raise CancelledEvacuation(words)

    def _suspect(self) -> None:
        """Have the host get no new work; an evacuation goes on without that too."""
        evacuation, suspect = self._evacuation, self._around.manager.suspect
        self._steps.begin("suspected")
        heard = self._try(
            f"have {evacuation.host} suspected",
            lambda: self._spare.insist(
                lambda: suspect(evacuation.host, self._cause(), evacuation.id, evacuation.job), attempts=1
            ),
        )
        self._steps.done("suspected", None, "" if heard else "the resource manager did not answer")

    def _no_spare(self, guests: list[str], refusal: str) -> Exception:
        """Return what follows from there being no spare; say it loudly."""
        evacuation = self._evacuation
        words = f"no spare to move to: {refusal}"
        words = "; ".join([words, *(f"{host} failed: {why}" for host, why in evacuation.failed_spares.items())])
        log.error("%s: NO SPARE for %s: %s", evacuation.id, evacuation.host, words)
        return self._unmoved(f"{', '.join(guests)} stay on {evacuation.host}: {words}")

    def _notice(self) -> None:
        evacuation, around = self._evacuation, self._around
        if not evacuation.epoch:
            self._wait_for_confirmation()
            self._take_epoch()
        self._give_way()
        self._steps.begin("noticed")
        with around.changed:
            affected, (left, spares) = self._fleet.affected(evacuation), self._fleet.places(evacuation)
            around.board.post(evacuation.job, evacuation.epoch, affected, evacuation.kind, left, spares)
        self._steps.done("noticed", "NOTICED", f"epoch {evacuation.epoch}, {evacuation.kind}")

    def _wait_for_confirmation(self) -> None:
        evacuation = self._evacuation
        if not evacuation.needs_confirmation or evacuation.confirmed_by:
            return
        self._steps.begin("confirmed")
        asked = next(step.begun for step in evacuation.steps if step.name == "confirmed")
        until = asked + self._around.limits.confirm_timeout_s
        self._wait(lambda: evacuation.confirmed_by or self._interrupted(), until)
        self._give_way()
        if not evacuation.confirmed_by:
            raise CancelledEvacuation(f"nobody confirmed it within {self._around.limits.confirm_timeout_s:.0f} s")
        self._steps.done("confirmed", None, f"by {evacuation.confirmed_by}")

    def _take_epoch(self) -> None:
        """Wait for the job's notice to be free, and give its next epoch to all that are ready for it."""
        evacuation, around, fleet = self._evacuation, self._around, self._fleet
        with around.changed:
            self.ready_for_notice = True
            around.changed.notify_all()
        soon = around.clock.now() + around.limits.join_timeout_s

        def settled() -> object:
            return self._interrupted() or evacuation.epoch

        self._wait(lambda: settled() or fleet.others_are_ready(evacuation), soon)
        while not evacuation.epoch:
            self._wait(lambda: settled() or fleet.epoch_is_free(evacuation))
            with around.changed:
                self._give_way()
                if evacuation.epoch or not fleet.epoch_is_free(evacuation):  # somebody else was faster
                    continue
                around.journal.save(*fleet.joined(evacuation))
                around.changed.notify_all()

    def _gather(self) -> None:
        evacuation = self._evacuation
        self._steps.begin("gathered")
        if evacuation.kind != CHECKPOINT:
            self._start_move()
        guests, deadline = self._guests(), self._ranks.deadline()

        def settled() -> object:
            return self._interrupted() or self._playbook_ended() or self._ranks.ready(guests) == guests

        began = self._around.clock.now()
        self._wait(settled, deadline)
        if not settled() and self._reach.wait_while_cut_off():  # nobody could be heard: they get the same time again
            self._wait(settled, self._around.clock.now() + max(deadline - began, self._around.limits.gather_minimum_s))
        with self._around.changed:
            ready = self._ranks.ready(guests)
        self._give_way()
        words = f"{len(ready)} of {len(guests)} guests ready"
        if len(ready) < len(guests):
            words = f"at the deadline {words}"
            if evacuation.kind == CHECKPOINT:
                log.warning("%s: %s; the job goes on", evacuation.id, words)
            elif self._ranks.on_deadline() == "cancel" and evacuation.attempt == 1:
                raise CancelledEvacuation(f"{words}, and the policy is to cancel then")
            else:
                log.warning("%s: %s; they are moved all the same", evacuation.id, words)
        self._steps.done("gathered", "GATHERED", words)

    def _open_gate(self) -> None:
        """From here on guests move; who asked to cancel before has been heard, who asks later is too late."""
        self._spare.keep(guests_move=False)
        with self._around.changed:
            self._give_way()
            self._evacuation.state = "MIGRATING"
            for migration in self._moves():
                migration.state = "running"
            self._steps.begin("migrating")
            self.opened = True
        self._around.news.bump()

    def _migrate(self) -> None:
        evacuation = self._evacuation
        move = self._start_move()
        if self._may_go_on_moving():
            self._hear_out(move)
            while self._playbook_ended() and not move.has_verified_all() and self._reach.wait_while_cut_off():
                self._move = None  # the moves went on without their playbook: the next one attaches to them
                move = self._start_move()
                self._hear_out(move)
        result, unnamed = move.settle()
        self._note_preparation(result)
        self._steps.done("migrating", None, f"the playbook: {result.status}, {len(unnamed)} guests not named")
        self._steps.begin("verified")
        troubles = self._around.verifier.verify(evacuation, self._moves())
        troubles += [f"the playbook says nothing of {guest}" for guest in unnamed]
        troubles += [f"the playbook: {failure}" for failure in result.failures]
        moved = self._in_state(MOVED)
        if self._job_over() and not self._in_state(UNCLEAR):
            # nobody's ranks are left to care for, and where the guests are is known
            if not self._ranks.has_moved:
                raise CancelledEvacuation("; ".join([f"job {evacuation.job} has ended, nothing has moved", *troubles]))
            words = "; ".join([f"job {evacuation.job} has ended; {', '.join(moved) or 'none'} moved", *troubles])
        elif self._in_state(STAYED) and not self._in_state(UNCLEAR):
            dead = not moved and self._reach.spare_is_dead()
            raise SpareFailedError("; ".join(troubles), dead)
        elif troubles:
            raise FailedEvacuation("; ".join(troubles))
        else:
            words = f"{len(moved)} guests run on {', '.join(destinations(evacuation))}"
        self._steps.done("verified", "VERIFIED", words)

    def _hear_out(self, move: Move) -> None:
        """Wait for all that the playbook says; while it verifies guests that have moved, agents look at them too."""
        self._wait(lambda: move.all_have_moved() or move.has_said_all())
        if move.all_have_moved():
            self._around.verifier.ask(self._evacuation, self._moves())
        self._wait(move.has_said_all)

    def _may_go_on_moving(self) -> bool:
        """After a restart: open the gate again, unless the spare was given to somebody else meanwhile.

        A resource manager that is silent may have done that before: it is waited for.
        """
        if self.opened:
            return True
        while True:
            try:
                self._spare.keep(guests_move=True)
            except SpareFailedError as loss:
                log.error("%s: %s; what still moves is given up", self._evacuation.id, loss)
                return False
            if self._spare.is_ours or self._playbook_ended():
                break
            self._around.clock.wait(self._playbook_ended, self._spare.renew_at)
        self.opened = True
        self._around.news.bump()
        return True

    def _release(self) -> None:
        # Before the ranks run: a job that ends right away is then cleaned up where its guests are.
        committed = self._commit(attempts=1)
        self._ranks.release()
        if not committed:
            self._commit(None)
        with self._around.changed:
            self._evacuation.state = "RELEASED"
            self._around.journal.save(self._evacuation)
            self._around.changed.notify_all()  # the job's next evacuation may post its notice

    def _finish(self) -> None:
        """Retire the host, once the playbook has ended well too and nobody else leaves it."""
        if self._move is not None:
            self._around.clock.wait(self._playbook_ended)
            assert self._move.result is not None
            if self._move.result.failures and not self._job_over():
                raise FailedEvacuation("; ".join(f"the playbook: {failure}" for failure in self._move.result.failures))
        self._around.clock.wait(lambda: not self._fleet.others_leave(self._evacuation))
        staying = self._staying()
        if staying:
            log.error("%s: %s is not retired: it has %s", self._evacuation.id, self._evacuation.host, staying)
            self._steps.begin("retired")
            self._steps.done("retired", "MOVED", f"not retired: it has {staying}")
            return
        self._retire("RETIRED")

    def _staying(self) -> str:
        """Say which other jobs' guests stay on the host, if any do."""
        guests = self._around.cluster.refresh().guests
        found = [g for g in guests if g.host == self._evacuation.host and g.job not in (None, self._evacuation.job)]
        found = [g for g in found if g.state != "lost" and g.job and not self._around.cluster.job_is_over(g.job)]
        return ", ".join(f"{guest.name} of job {guest.job}" for guest in found)

    def _checkpointed(self) -> None:
        self._ranks.release()
        self._steps.begin("checkpointed")
        job, host = self._around.cluster.job(self._evacuation.job), self._evacuation.host
        bare = job is not None and job.resource == "hosts"
        words = f"the job runs on {host} itself and stays there" if bare else f"the job's guests stay on {host}"
        self._steps.done("checkpointed", "CHECKPOINTED", words)

    # -- the ways back -------------------------------------------------------------------------------------

    def end_attempt(self, reason: str, dead: bool) -> None:
        """Give up the spare, not the evacuation: guests that moved stay moved, the others go to the next spare."""
        evacuation = self._evacuation
        spares = destinations(evacuation)
        log.error("%s: attempt %d, spare %s: %s", evacuation.id, evacuation.attempt, ", ".join(spares), reason)
        blamed = self._to_blame()
        with self._around.changed:
            evacuation.failed_spares.update(dict.fromkeys(blamed, reason))
            self._steps.begin("attempt_failed", reason)
        self._around.news.bump()  # who waits at the gate is sent home
        cut_off = self._reach.wait_while_cut_off()
        end = self._around.clock.now() + self._around.limits.give_back_timeout_s
        if self._move is not None:
            self._move.end(end, self._around.clock.wait)
            self._move = None
        if self._in_state(MOVED):
            if not self._commit(_TRIES):
                raise FailedEvacuation(f"{reason}; the resource manager does not answer")
        else:
            if dead and not evacuation.packed_onto:  # a host of a job is not set aside: it has guests of its own
                words = f"{evacuation.id} could not move guests here: {reason}"
                self._try(f"keep {evacuation.spare} from others", lambda: self._spare.set_aside(words, _TRIES))
            self._spare.give_back(end)
        with self._around.changed:
            for migration in self._moves():
                if migration.state != MOVED:
                    migration.state = STAYED if migration.state in (STAYED, UNCLEAR) else "cancelled"
            last = evacuation.attempt >= self._around.policy.attempts
            if not last:
                self.opened = False
                for host in blamed if cut_off and not dead else []:
                    del evacuation.failed_spares[host]  # the next attempt may well go there
                self._steps.next_attempt(reason)
        if last:
            raise self._unmoved(f"{reason}; {evacuation.attempt} spares were tried")

    def _to_blame(self) -> list[str]:
        """Return the hosts that a failed attempt is put down to: none if one is known to fail itself.

        Of several, those that guests did not come to, or that are silent: there is nowhere else to go.
        """
        if self._lost():
            return []
        spares = destinations(self._evacuation)
        if len(spares) < 2:
            return spares
        missed = {m.destination for m in self._moves() if m.state in (STAYED, UNCLEAR)}
        return [host for host in spares if host in missed or not self._around.verifier.can_be_asked(host)]

    def _unmoved(self, reason: str) -> Exception:
        """Return what ends an evacuation whose guests can't all move: a person is needed once moves have failed."""
        tried = any(m.state in (MOVED, STAYED) for m in self._evacuation.migrations)
        return FailedEvacuation(reason) if tried else CancelledEvacuation(reason)

    def cancelled(self, reason: str) -> None:
        """Release the ranks, end the playbook, return the spare: nothing moves any more."""
        evacuation = self._evacuation
        with self._around.changed:
            moved = sorted(f"{m.guest} moved to {m.destination}" for m in evacuation.migrations if m.state == MOVED)
            if not self._steps.begun("cancelled"):
                evacuation.error = "; ".join([reason, *moved])
            for migration in self._moves():
                if migration.state != MOVED:
                    migration.state = "cancelled"
            self._steps.begin("cancelled", evacuation.error)
        self._around.news.bump()
        self._ranks.leave_epoch()
        end = self._around.clock.now() + self._around.limits.give_back_timeout_s
        if self._move is not None:
            self._move.end(end, self._around.clock.wait)
        if self._holds_lease():
            self._spare.give_back(end)
        if self._steps.begun("suspected") and not self._fleet.others_on(evacuation):
            trust = self._around.manager.trust
            self._try(
                f"trust {evacuation.host} again", lambda: self._spare.insist(lambda: trust(evacuation.host), _TRIES)
            )
        log.warning("%s: cancelled: %s", evacuation.id, evacuation.error)
        self._steps.done("cancelled", "CANCELLED")

    def failed(self, reason: str) -> None:
        """Keep what is known: moved guests are committed, ranks released; a person decides the rest."""
        evacuation = self._evacuation
        log.error("%s: FAILED: %s", evacuation.id, reason)
        with self._around.changed:
            evacuation.error = reason
            self._steps.begin("failed", reason)
        moved, unclear = self._in_state(MOVED), self._in_state(UNCLEAR)
        told = not moved or self._try("tell where the guests run", lambda: self._commit(1))
        self._ranks.release()
        if not told:
            self._try("tell where the guests run", lambda: self._commit(None))
        if unclear and not moved and not evacuation.packed_onto:  # where a guest might be, nobody else is placed
            words = f"guests of {evacuation.id} may run here: look"
            self._try(f"keep {evacuation.spare} from others", lambda: self._spare.set_aside(words, None))
        elif not moved and not unclear and self._holds_lease():
            self._spare.give_back(self._around.clock.now() + self._around.limits.give_back_timeout_s)
        elif moved and not self._in_state(STAYED) and not unclear and not self._staying():
            self._try(f"retire {evacuation.host}", lambda: self._retire(None))
        self._steps.done("failed", "FAILED", evacuation.error)

    def _try(self, what: str, act: Callable[[], bool]) -> bool:
        """Do what can still be done; a refusal is said, and the rest goes on. False if nobody has heard."""
        try:
            return act()
        except (FailedEvacuation, ManagerError) as refusal:
            log.error("%s: could not %s: %s", self._evacuation.id, what, refusal)
            words = f"could not {what}: {refusal}"
            self._evacuation.error = "; ".join(filter(None, [self._evacuation.error, words]))
            return True

    # -- parts of the way ----------------------------------------------------------------------------------

    def _interrupted(self) -> bool:
        """Whether something keeps the evacuation from going on as it was planned."""
        evacuation = self._evacuation
        return bool(evacuation.cancel) or self._job_over() or bool(self._lost())

    def _lost(self) -> list[str]:
        """Return the hosts, of those that guests are to go to, that must not be gone to any more."""
        return [host for host in destinations(self._evacuation) if host in self._evacuation.failed_spares]

    def _give_way(self) -> None:
        """Raise what ends the evacuation, or this attempt, before the move."""
        evacuation = self._evacuation
        if evacuation.cancel:
            raise CancelledEvacuation(evacuation.cancel)
        if self._job_over():
            raise CancelledEvacuation(f"job {evacuation.job} has ended")
        if lost := self._lost():
            raise SpareFailedError("; ".join(evacuation.failed_spares[host] for host in lost), dead=True)
        if self._move is not None and self._move.result is not None:
            failures = "; ".join(self._move.result.failures) or "it ended before the guests were allowed to move"
            dead = self._reach.spare_is_dead()
            raise SpareFailedError(f"the destination could not be prepared: {failures}", dead)

    def _guests_to_move(self) -> dict[str, Guest]:
        """Return the guests that are to leave, as the resource manager knows them now, by name."""
        evacuation = self._evacuation
        membership = self._around.cluster.refresh()
        # its last word, where it does not answer now, may be older than an earlier attempt
        moved = {migration.guest for migration in evacuation.migrations if migration.state == MOVED}
        found = {
            guest.name: guest
            for guest in membership.guests
            if (guest.host, guest.job) == (evacuation.host, evacuation.job)
            and guest.state not in WITHOUT_RANKS
            and guest.name not in moved
        }
        if not found:
            raise CancelledEvacuation(f"no guest of job {evacuation.job} is on {evacuation.host} any more")
        return found

    def _wait(self, happened: Callable[[], object], until: float = NEVER) -> None:
        """Wait until ``happened``, at the latest until that time, and keep the lease meanwhile."""
        clock, moving = self._around.clock, self._evacuation.state == "MIGRATING"
        while True:
            wake = max(self._spare.renew_at, clock.now() + 1.0) if self._evacuation.lease else NEVER
            if clock.wait(happened, min(until, wake)) or clock.now() >= until:
                return
            try:
                self._spare.keep(guests_move=moving)
            except SpareFailedError as loss:
                if not moving:
                    raise
                log.error("%s: %s; it is too late to go elsewhere", self._evacuation.id, loss)
                self._spare.renew_at = NEVER

    def _start_move(self) -> Move:
        """Start this attempt's playbook, or go on hearing it."""
        if self._move is None:
            around, evacuation = self._around, self._evacuation
            membership, moves = around.cluster.refresh(), self._moves()
            hosts, moving = {host.name: host for host in membership.hosts}, {move.guest for move in moves}
            memory_kb = sum(guest.memory_kb for guest in membership.guests if guest.name in moving)
            order = MoveOrder(evacuation.id, evacuation.attempt, moves, hosts, memory_kb)
            self._move = Move(order, around.migrate, around.abort, around.changed, around.clock)
            self._move.start()
        return self._move

    def _playbook_ended(self) -> bool:
        return self._move is not None and self._move.result is not None

    def _note_preparation(self, result: PlaybookResult) -> None:
        if times := preparation(result):
            self._steps.begin("prepare_destination", at=times[0])
            self._steps.done("prepare_destination", at=times[1])

    def _commit(self, attempts: int | None) -> bool:
        """Tell the resource manager where the guests run now; without ``attempts`` until it has heard."""
        if self._steps.is_done("committed"):
            return True
        moved = [m for m in self._moves() if m.state == MOVED]
        placements = [Placement(m.guest, m.destination, m.cores, m.numa_node, m.devices) for m in moved]
        self._steps.begin("committed")
        try:
            if not self._spare.commit(placements, attempts):
                return False
        except ManagerError as refusal:
            # the lease ends with the commit: its answer may have been lost, or written down no more
            hosts = {guest.name: guest.host for guest in self._around.cluster.refresh().guests}
            if any(hosts.get(m.guest, m.destination) != m.destination for m in moved):
                raise FailedEvacuation(str(refusal)) from refusal
        self._steps.done("committed", None)
        return True

    def _retire(self, state: str | None) -> bool:
        """Have the host retired, however long that takes; True. Raises FailedEvacuation."""
        evacuation = self._evacuation
        self._steps.begin("retired")
        try:
            retire = self._around.manager.retire
            self._spare.insist(lambda: retire(evacuation.host, self._cause(), evacuation.id, evacuation.job))
        except ManagerError as refusal:
            raise FailedEvacuation(str(refusal)) from refusal
        self._steps.done("retired", state)
        return True

    # -- small things --------------------------------------------------------------------------------------

    def _moves(self) -> list[Migration]:
        return [m for m in self._evacuation.migrations if m.attempt == self._evacuation.attempt]

    def _guests(self) -> list[str]:
        return self._ranks.affected if self._evacuation.kind == CHECKPOINT else sorted(m.guest for m in self._moves())

    def _job_over(self) -> bool:
        return self._around.cluster.job_is_over(self._evacuation.job)

    def _in_state(self, state: str) -> list[str]:
        return sorted(m.guest for m in self._moves() if m.state == state)

    def _holds_lease(self) -> bool:
        """Whether a spare was asked for in this attempt."""
        return self._evacuation.lease is not None or self._steps.begun("leased")

    def _cause(self) -> str:
        """Return why the host is left, as the resource manager keeps it."""
        alarm = self._evacuation.alarm
        return f"evacuated as {self._evacuation.id}: " + (
            f"rule {alarm.rule}, {alarm.metric} {alarm.value:.2f}" if alarm else self._evacuation.reason
        )
