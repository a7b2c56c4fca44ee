"""Which evacuations there are: alarms and operators begin them, a restart takes up the open ones."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from failavoid.controller.evacuation import EvacuationRun
from failavoid.controller.fleet import WITHOUT_RANKS, Fleet, destinations
from failavoid.controller.planning import lead_of
from failavoid.controller.relocations import Relocations
from failavoid.controller.surroundings import Surroundings
from failavoid.shared.messages import (
    Alarm,
    ControllerStatus,
    Evacuation,
    Membership,
    MoveProgress,
    Plan,
)

log = logging.getLogger(__name__)

CANCELLED_BY_OPERATOR = "cancelled by operator"


class RequestError(Exception):
    """A request that can't be granted: ``status`` as in HTTP, and what, why and the way out."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Controller:
    """All evacuations, each with its thread while it is under way. For any thread.

    A host is left by the guests of all its jobs, in an evacuation for each of them: each job has barriers of its own.
    """

    def __init__(
        self,
        around: Surroundings,
        mode: str = "act",
        progress: Callable[[str, list[str]], list[MoveProgress]] = lambda _address, _guests: [],
    ) -> None:
        self.around = around
        self.relocations = Relocations(around)
        self.fleet = Fleet(around.board, self.relocations)
        self._progress = progress
        self._status = around.journal.status() or ControllerStatus(mode)
        self._status.mode = mode
        for evacuation in around.journal.evacuations():
            self._add(evacuation)

    def resume(self) -> None:
        """Take up the evacuations and relocations that were open when the controller ended."""
        if self._status.stopped:
            log.warning("NEW EVACUATIONS ARE STOPPED since %s: %s", self._status.stopped_by, self._status.reason)
        for run in self.fleet.open():
            log.warning("%s: taken up again in state %s", run.evacuation.id, run.evacuation.state)
            self._start(run)
        self.relocations.resume()

    # -- beginning -----------------------------------------------------------------------------------------

    def take_alarm(self, alarm: Alarm, who: str = "monitor") -> Evacuation | None:
        """Begin evacuations if there is cause; the same alarm again gives the same answer.

        Of several evacuations that of the alarm's job is returned. Raises ManagerError while nothing is known of the
        cluster: the alarm is to be sent again.
        """
        membership = self.around.cluster.refresh()
        with self.around.changed:
            begun = [run for run in self.fleet.runs.values() if _alarm_id(run.evacuation) == alarm.id]
            if self.around.journal.alarm(alarm.id) is not None:
                return _of_job(begun, alarm.job).evacuation if begun else None
            hosts = hosts_of(alarm.domain or alarm.host, membership)
            self._spares_fail(hosts, f"alarm {alarm.id} by rule {alarm.rule}")
            wanted = {} if (objection := self._objection(alarm, hosts)) else self._wanted(hosts, membership)
            if not wanted and not begun:  # an earlier life may have begun some
                objection = objection or self._why_none(alarm, hosts, membership)
                log.warning("alarm %s of %s: no evacuation: %s", alarm.id, alarm.domain or alarm.host, objection)
                self.around.journal.note_alarm(alarm, who, objection)
                return None
            needs_confirmation = self._status.mode == "recommend"
            runs = [
                self._new(host, job, f"rule {alarm.rule}", alarm, needs_confirmation)
                for host, jobs in wanted.items()
                for job in jobs
            ]
            self.around.journal.note_alarm(alarm, who, ", ".join(run.evacuation.id for run in begun + runs))
        for run in runs:
            self._start(run)
        return _of_job(begun + runs, alarm.job).evacuation

    def order(self, where: str, reason: str, who: str) -> list[Evacuation]:
        """Begin the evacuations of a host or a failure domain, as a person asks. Raises RequestError, ManagerError."""
        membership = self.around.cluster.refresh()
        with self.around.changed:
            try:
                runs = self._ordered(where, reason, who, membership)
            except RequestError as refusal:
                self.around.journal.note_request(who, "evacuate", where, reason, f"refused: {refusal}")
                raise
            ids = ", ".join(run.evacuation.id for run in runs)
            self.around.journal.note_request(who, "evacuate", where, reason, ids)
        for run in runs:
            self._start(run)
        return [run.evacuation for run in runs]

    def _ordered(self, where: str, reason: str, who: str, membership: Membership) -> list[EvacuationRun]:
        hosts = hosts_of(where, membership)
        if not hosts:
            kind = "failure domain" if "=" in where else "host"
            raise RequestError(404, f"there is no {kind} {where}: see 'failavoid hosts' for the names")
        if self._status.stopped:
            raise RequestError(
                409,
                f"new evacuations are stopped by {self._status.stopped_by} ({self._status.reason}):"
                " 'failavoid allow-evacuations' lets them begin again",
            )
        jobs = {host: self._jobs_to_move(host, membership) for host in hosts}
        if not any(jobs.values()):
            raise RequestError(409, f"no job is on {where}: ask the resource manager to retire it instead")
        open_ = [run for host in hosts for job in jobs[host] if (run := self.fleet.open_on(host, job))]
        if len(open_) == sum(map(len, jobs.values())):
            ids = ", ".join(run.evacuation.id for run in open_)
            raise RequestError(409, f"{where} is being evacuated already, as {ids}")
        self._spares_fail(hosts, f"{who} has {where} evacuated: {reason}")
        domain = where if "=" in where else ""
        return [
            self._new(host, job, f"asked for by {who}: {reason}", None, False, domain)
            for host in hosts
            for job in jobs[host]
            if not self.fleet.open_on(host, job)
        ]

    # -- changing ------------------------------------------------------------------------------------------

    def cancel(self, evacuation_id: str, who: str, reason: str = "") -> Evacuation:
        """Ask for an evacuation's end before its guests move. Raises RequestError."""
        run = self.run(evacuation_id)
        granted = run.cancel(f"{CANCELLED_BY_OPERATOR} {who}" + (f": {reason}" if reason else ""))
        self.around.journal.note_request(who, "cancel", evacuation_id, reason, "" if granted else "refused")
        if not granted:
            raise RequestError(
                409,
                f"{evacuation_id} is {run.evacuation.state}: an evacuation can only be cancelled until its"
                " guests begin to move",
            )
        return run.evacuation

    def confirm(self, evacuation_id: str, who: str) -> Evacuation:
        """Let an evacuation go on that was recommended. Raises RequestError."""
        run = self.run(evacuation_id)
        granted = run.confirm(who)
        self.around.journal.note_request(who, "confirm", evacuation_id, "", "" if granted else "refused")
        if not granted:
            raise RequestError(409, f"{evacuation_id} is {run.evacuation.state} and waits for nobody")
        return run.evacuation

    def withdraw(self, alarm_id: str, reason: str, who: str = "monitor") -> Evacuation | None:
        """Cancel what an alarm has begun, as far as nothing moves yet; returns one of these evacuations, if any.

        Earlier alarms of the same cause go with it: the monitor raises one again under a new name while the evacuation
        belongs to the first, also after a restart of its own, and withdraws only the last.
        An alarm that is withdrawn before it arrives leads to nothing.
        """
        with self.around.changed:
            alarm = self.around.journal.alarm_document(alarm_id)
            runs = [run for run in self.fleet.open() if _is_of(run.evacuation, alarm_id, alarm)]
            cancelled = [run for run in runs if run.cancel(f"alarm {alarm_id} was withdrawn: {reason}")]
            outcome = ", ".join(f"{run.evacuation.id} cancelled" for run in cancelled) or "nothing to cancel"
            self.around.journal.note_withdrawal(alarm_id, who, reason, outcome)
        log.warning("alarm %s is withdrawn: %s; %s", alarm_id, reason, outcome)
        return runs[0].evacuation if runs else None

    def stop_evacuations(self, who: str, reason: str) -> ControllerStatus:
        """Let no new evacuation begin, also after a restart; those whose ranks know of nothing yet are cancelled."""
        with self.around.changed:
            self._set_status(ControllerStatus(self._status.mode, True, who, reason, self.around.clock.now()))
            self.around.journal.note_request(who, "stop evacuations", "", reason)
            for run in self.fleet.open():
                if not run.evacuation.epoch:
                    run.cancel(f"new evacuations were stopped by {who}: {reason}")
        log.warning("NEW EVACUATIONS ARE STOPPED by %s: %s", who, reason)
        return self._status

    def allow_evacuations(self, who: str, reason: str = "") -> ControllerStatus:
        """Let new evacuations begin again."""
        with self.around.changed:
            self._set_status(ControllerStatus(self._status.mode))
            self.around.journal.note_request(who, "allow evacuations", "", reason)
        log.warning("new evacuations are allowed again by %s", who)
        return self._status

    def _set_status(self, status: ControllerStatus) -> None:
        self.around.journal.save_status(status)
        self._status = status

    # -- looking -------------------------------------------------------------------------------------------

    @property
    def status(self) -> ControllerStatus:
        """The mode, and whether new evacuations are stopped."""
        return self._status

    def run(self, evacuation_id: str) -> EvacuationRun:
        """Return an evacuation's run. Raises RequestError."""
        try:
            return self.fleet.runs[evacuation_id]
        except KeyError:
            raise RequestError(404, f"there is no evacuation {evacuation_id}") from None

    def evacuations(self) -> list[Evacuation]:
        """Return all evacuations, oldest first."""
        return [run.evacuation for run in list(self.fleet.runs.values())]

    def plans(self, where: str) -> list[Plan]:
        """Return what would be done for each job on a host or in a failure domain now. May raise RequestError."""
        membership = self.around.cluster.refresh()
        hosts = hosts_of(where, membership)
        if not hosts:
            raise RequestError(404, f"there is no host or failure domain {where}: see 'failavoid hosts' for the names")
        known = {host.name: host for host in membership.hosts}
        jobs = {job.id: job for job in membership.jobs}
        found = []
        for host in hosts:
            others = [other for other in membership.hosts if other.name != host]
            for job in jobs_on(host, membership):
                run = self.fleet.open_on(host, job)
                lead = lead_of(run.evacuation.alarm if run else None, self.around.clock.now())
                guests = [g for g in membership.guests if (g.host, g.job) == (host, job) and g.state != "lost"]
                plan = self.around.planner.plan(known[host], jobs[job], guests, lead, self.evacuations(), others)
                found.append(plan)
        return found

    def progress(self, evacuation_id: str) -> list[MoveProgress]:
        """Return how far the guests have come that move now. Raises RequestError."""
        evacuation = self.run(evacuation_id).evacuation
        host = self.around.cluster.host(evacuation.host)
        if evacuation.state != "MIGRATING" or host is None:
            return []
        moving = [m.guest for m in evacuation.migrations if m.attempt == evacuation.attempt]
        return self._progress(host.address, moving)

    # -- parts ---------------------------------------------------------------------------------------------

    def _objection(self, alarm: Alarm, hosts: list[str]) -> str:
        """Return why an alarm leads to no evacuation whatever is on its hosts, or an empty string."""
        if not hosts:
            return f"there is no failure domain {alarm.domain}" if alarm.domain else f"there is no host {alarm.host}"
        if self.around.journal.is_withdrawn(alarm.id):
            return "it was withdrawn before it arrived"
        if self._status.mode == "observe":
            return "the mode is observe: alarms are only recorded"
        if self._status.stopped:
            return f"new evacuations are stopped by {self._status.stopped_by}: {self._status.reason}"
        return ""

    def _wanted(self, hosts: list[str], membership: Membership) -> dict[str, list[str]]:
        """Return the jobs to be moved away, by host: not only the alarm's, since all of them would die with it."""
        wanted = {}
        for host in membership.hosts:
            if host.name in hosts and host.pool != "defunct":
                jobs = self._jobs_to_move(host.name, membership)
                wanted[host.name] = [job for job in jobs if not self._stays(host.name, job, membership)]
        return {host: jobs for host, jobs in wanted.items() if jobs}

    def _jobs_to_move(self, host: str, membership: Membership) -> list[str]:
        """Return the jobs that have guests on a host, or on their way to it."""
        coming = {
            run.evacuation.job
            for run in self.fleet.open()
            if host in destinations(run.evacuation) and run.evacuation.state in ("MIGRATING", "VERIFIED")
        }
        return sorted(coming.union(jobs_on(host, membership)))

    def _stays(self, host: str, job: str, membership: Membership) -> str:
        """Return why a job's guests on a host are left alone, or an empty string."""
        policy = next((one.request.policy for one in membership.jobs if one.id == job), None)
        if policy is None:
            return f"there is no job {job}"
        if policy == "off":
            return f"failure avoidance is off for job {job}"
        if run := self.fleet.open_on(host, job):
            return f"{host} is being evacuated already, as {run.evacuation.id}"
        last = next((e for e in reversed(self.evacuations()) if (e.host, e.job) == (host, job)), None)
        if last is not None and last.state == "FAILED":
            return f"{last.id} failed and waits for a person's decision"
        if last is not None and last.error.startswith(CANCELLED_BY_OPERATOR):
            return f"{last.id} was {last.error}; who wants it after all orders it"
        return ""

    def _why_none(self, alarm: Alarm, hosts: list[str], membership: Membership) -> str:
        """Say why none of the jobs on an alarm's hosts is moved away."""
        pools = {host.name: host.pool for host in membership.hosts}
        reasons = []
        for host in hosts:
            jobs = jobs_on(host, membership)
            if pools[host] == "defunct":
                reasons.append(f"{host} is defunct already")
            elif not jobs:
                whose = f"guest of job {alarm.job}" if alarm.job else "job's guest"
                reasons.append(f"no {whose} is on {host}")
            reasons += [why for job in jobs if (why := self._stays(host, job, membership))]
        return "; ".join(reasons)

    def _spares_fail(self, hosts: list[str], reason: str) -> None:
        """Have evacuations look for another spare if theirs is about to fail."""
        for run in self.fleet.open():
            for host in destinations(run.evacuation):
                if host in hosts:
                    run.lose_destination(host, reason)

    def _new(
        self, host: str, job: str, reason: str, alarm: Alarm | None, needs_confirmation: bool, domain: str = ""
    ) -> EvacuationRun:
        """Make an evacuation and write it down; the caller holds the lock."""
        evacuation = Evacuation(
            self._new_id(host),
            host,
            job,
            "PREDICTED",
            alarm=alarm,
            reason=reason,
            domain=alarm.domain if alarm else domain,
            needs_confirmation=needs_confirmation,
        )
        self.around.journal.begin(evacuation, "alarm", reason, at=alarm.time if alarm else None)
        self.around.journal.done(evacuation, "alarm")
        log.warning("%s: host %s, job %s: %s", evacuation.id, host, job, reason)
        return self._add(evacuation)

    def _new_id(self, host: str) -> str:
        """Return a name that no earlier journal has used either: hosts keep what they did under it."""
        moment = time.gmtime(self.around.clock.now())
        stem = time.strftime("e%Y%m%d-%H%M%S", moment) + f"-{re.sub('[^a-z0-9-]', '-', host)[:36]}"
        number, name = 1, stem
        while name in self.fleet.runs:
            number += 1
            name = f"{stem}-{number}"
        return name

    def _add(self, evacuation: Evacuation) -> EvacuationRun:
        run = EvacuationRun(evacuation, self.around, self.fleet)
        self.fleet.runs[evacuation.id] = run
        return run

    def _start(self, run: EvacuationRun) -> None:
        self.around.clock.start(run.run, run.evacuation.id)


def hosts_of(where: str, membership: Membership) -> list[str]:
    """Return the hosts that a name or a failure domain (``rack=r1``) means; none if there is no such thing."""
    kind, is_domain, name = where.partition("=")
    if not is_domain:
        return [host.name for host in membership.hosts if host.name == where]
    return [host.name for host in membership.hosts if host.domains.get(kind) == name]


def jobs_on(host: str, membership: Membership) -> list[str]:
    """Return the jobs that have guests on a host, or the host itself."""
    over = {job.id for job in membership.jobs if job.state in ("completed", "failed")}
    found = {
        guest.job
        for guest in membership.guests
        if guest.host == host and guest.job and guest.state not in WITHOUT_RANKS
    }
    found |= {job.id for job in membership.jobs if host in job.hosts}
    return sorted(job for job in found if job not in over)


def _alarm_id(evacuation: Evacuation) -> str:
    return evacuation.alarm.id if evacuation.alarm else ""


def _is_of(evacuation: Evacuation, alarm_id: str, alarm: Alarm | None) -> bool:
    """Whether an evacuation was begun by that alarm, or, where ``alarm`` is known, by an earlier one of its cause."""
    begun_by = evacuation.alarm
    if begun_by is None:
        return False
    raised_again = alarm is not None and begun_by.time <= alarm.time and _cause(begun_by) == _cause(alarm)
    return begun_by.id == alarm_id or raised_again


def _cause(alarm: Alarm) -> tuple[str, str, str, str]:
    return alarm.domain, alarm.host, alarm.job, alarm.metric


def _of_job(runs: list[EvacuationRun], job: str) -> EvacuationRun:
    return next((run for run in runs if run.evacuation.job == job), runs[0])
