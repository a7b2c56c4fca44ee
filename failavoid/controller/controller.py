"""Which evacuations there are: alarms and operators begin them, a restart takes up the open ones."""

from __future__ import annotations

import logging
import re
import threading
import time

from failavoid.controller.evacuation import ENDED, EvacuationRun, Surroundings
from failavoid.shared.messages import Alarm, Evacuation, Membership

log = logging.getLogger(__name__)

CANCELLED_BY_OPERATOR = "cancelled by operator"


class RequestError(Exception):
    """A request that can't be granted: ``status`` as in HTTP, and what, why and the way out."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Controller:
    """All evacuations, each with its thread while it is under way. For any thread."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self._runs: dict[str, EvacuationRun] = {}
        for evacuation in around.journal.evacuations():
            self._add(evacuation)

    def resume(self) -> None:
        """Take up the evacuations that were open when the controller ended."""
        for run in self._open():
            log.warning("%s: taken up again in state %s", run.evacuation.id, run.evacuation.state)
            self._start(run)

    # -- beginning and ending ------------------------------------------------------------------------------

    def take_alarm(self, alarm: Alarm) -> Evacuation | None:
        """Begin an evacuation if there is cause; the same alarm again gives the same answer.

        Raises ManagerError while nothing is known of the cluster: the alarm is to be sent again.
        """
        membership = self.around.cluster.refresh()
        with self.around.changed:
            seen = self.around.journal.alarm(alarm.id)
            if seen is not None:
                return self._runs[seen[0]].evacuation if seen[0] else None
            objection = self._objection(alarm, membership)
            if objection:
                log.info("alarm %s of %s: no evacuation: %s", alarm.id, alarm.host, objection)
                self.around.journal.note_alarm(alarm, None, objection)
                return None
            run = self._new(alarm.host, alarm.job, f"rule {alarm.rule}", alarm)
            self.around.journal.note_alarm(alarm, run.evacuation.id, "")
        self._start(run)
        return run.evacuation

    def order(self, host: str, reason: str, who: str) -> Evacuation:
        """Begin an evacuation that a person asks for. Raises RequestError, ManagerError."""
        membership = self.around.cluster.refresh()
        with self.around.changed:
            self.around.journal.note_request(who, f"evacuate {host}: {reason}")
            if host not in {known.name for known in membership.hosts}:
                raise RequestError(404, f"there is no host {host}: see the membership for the names")
            if run := self._open_on(host):
                raise RequestError(409, f"{host} is being evacuated already, as {run.evacuation.id}")
            jobs = sorted({g.job for g in membership.guests if g.host == host and g.job and g.state != "lost"})
            if not jobs:
                raise RequestError(409, f"no job has guests on {host}: ask the resource manager to retire it instead")
            if len(jobs) > 1:
                raise RequestError(
                    409,
                    f"{host} has guests of {', '.join(jobs)}: only one job's guests can leave a host at once",
                )
            run = self._new(host, jobs[0], f"asked for by {who}: {reason}", None)
        self._start(run)
        return run.evacuation

    def cancel(self, evacuation_id: str, who: str) -> Evacuation:
        """Ask for an evacuation's end before its guests move. Raises RequestError."""
        run = self.run(evacuation_id)
        self.around.journal.note_request(who, f"cancel {evacuation_id}")
        if not run.cancel(f"{CANCELLED_BY_OPERATOR} {who}"):
            raise RequestError(
                409,
                f"{evacuation_id} is {run.evacuation.state}: an evacuation can only be cancelled until its"
                " guests begin to move",
            )
        return run.evacuation

    # -- looking -------------------------------------------------------------------------------------------

    def run(self, evacuation_id: str) -> EvacuationRun:
        """Return an evacuation's run. Raises RequestError."""
        try:
            return self._runs[evacuation_id]
        except KeyError:
            raise RequestError(404, f"there is no evacuation {evacuation_id}") from None

    def evacuations(self) -> list[Evacuation]:
        """Return all evacuations, oldest first."""
        return [run.evacuation for run in list(self._runs.values())]

    # -- parts ---------------------------------------------------------------------------------------------

    def _objection(self, alarm: Alarm, membership: Membership) -> str:
        """Return why an alarm leads to no evacuation, or an empty string."""
        host = next((host for host in membership.hosts if host.name == alarm.host), None)
        job = next((job for job in membership.jobs if job.id == alarm.job), None)
        if host is None or job is None:
            return f"there is no {f'job {alarm.job}' if host else f'host {alarm.host}'}"
        if host.pool == "defunct":
            return f"{alarm.host} is defunct already"
        if job.request.policy == "off":
            return f"failure avoidance is off for job {job.id}"
        if run := self._open_on(alarm.host):
            return f"{alarm.host} is being evacuated already, as {run.evacuation.id}"
        if not any(guest.host == alarm.host and guest.job == alarm.job for guest in membership.guests):
            return f"no guest of job {alarm.job} is on {alarm.host}"
        last = next((e for e in reversed(self.evacuations()) if (e.host, e.job) == (alarm.host, alarm.job)), None)
        if last is not None and last.state == "FAILED":
            return f"{last.id} failed and waits for a person's decision"
        if last is not None and last.error.startswith(CANCELLED_BY_OPERATOR):
            return f"{last.id} was {last.error}; who wants it after all orders it"
        return ""

    def _new(self, host: str, job: str, reason: str, alarm: Alarm | None) -> EvacuationRun:
        """Make an evacuation and write it down; the caller holds the lock."""
        evacuation = Evacuation(self._new_id(host), host, job, "PREDICTED", alarm=alarm, reason=reason)
        self.around.journal.begin(evacuation, "alarm", reason, at=alarm.time if alarm else None)
        self.around.journal.done(evacuation, "alarm")
        log.warning("%s: host %s, job %s: %s", evacuation.id, host, job, reason)
        return self._add(evacuation)

    def _new_id(self, host: str) -> str:
        """Return a name that no earlier journal has used either: hosts keep what they did under it."""
        stem = time.strftime("e%Y%m%d-%H%M%S", time.gmtime()) + f"-{re.sub('[^a-z0-9-]', '-', host)[:40]}"
        number, name = 1, stem
        while name in self._runs:
            number += 1
            name = f"{stem}-{number}"
        return name

    def _add(self, evacuation: Evacuation) -> EvacuationRun:
        run = EvacuationRun(evacuation, self.around, lambda: self._is_first(evacuation))
        self._runs[evacuation.id] = run
        return run

    def _start(self, run: EvacuationRun) -> None:
        threading.Thread(target=run.run, daemon=True, name=run.evacuation.id).start()

    def _is_first(self, evacuation: Evacuation) -> bool:
        """Whether no earlier evacuation of the job has its epoch still to close: one is open at a time."""
        for other in self.evacuations():
            if other is evacuation:
                return True
            if other.job == evacuation.job and other.state not in (*ENDED, "RELEASED"):
                return False
        return True

    def _open(self) -> list[EvacuationRun]:
        return [run for run in self._runs.values() if run.evacuation.state not in ENDED]

    def _open_on(self, host: str) -> EvacuationRun | None:
        return next((run for run in self._open() if run.evacuation.host == host), None)
