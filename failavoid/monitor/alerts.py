"""Tells people, by mail and webhook, what they should know at once: alarms, ends of evacuations, silence, no spare."""

from __future__ import annotations

import logging
import smtplib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from typing import Any

import httpx

from failavoid.monitor.settings import AlertSettings
from failavoid.shared.messages import EVACUATION_ENDS, Alarm, Finding, Membership
from failavoid.shared.words import plural

log = logging.getLogger(__name__)
LOOK_S = 1.0
AGAIN_S = 600.0  # an alarm that was not raised again for so long is news when it is
RETRY_S, TRIES = 10.0, 6
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Alert:
    """One thing to tell. ``occasion`` is one of the settings', ``link`` the page of the display that shows it."""

    occasion: str
    time: float
    subject: str
    text: str
    link: str = ""


@dataclass
class Seen:
    """What the monitor knows at a moment. ``since`` is when it began: what had ended before is no news."""

    now: float
    since: float
    alarms: Iterable[Alarm]
    evacuations: Iterable[dict[str, Any]]
    findings: Iterable[Finding]
    membership: Membership


def holding(seen: Seen) -> dict[str, Alert]:
    """All that is so now and is worth an alert, by a name that stays the same while it is so."""
    found: dict[str, Alert] = {}
    for alarm in seen.alarms:
        if alarm.time >= max(seen.since, seen.now - AGAIN_S):
            evidence = alarm.evidence
            left = "" if evidence.predicted_failure_s is None else f", failure in {evidence.predicted_failure_s:.0f} s"
            text = (
                f"{alarm.metric} {evidence.value:.0%}, its group {evidence.centre:.0%}, z {evidence.z:.1f}{left}; "
                f"rule {alarm.rule}, alarm {alarm.id}"
            )
            where = alarm.domain or alarm.host
            about = f"{where} of job {alarm.job} is about to fail" if alarm.job else f"{where} is about to fail"
            found[f"alarm {where} {alarm.job} {alarm.metric}"] = Alert(
                "alarm", alarm.time, about, text, f"#/host/{alarm.host}"
            )
    for one in seen.evacuations:
        steps = one["steps"]
        ended = max((step["done"] or step["begun"] for step in steps), default=0.0)
        if one["state"] in EVACUATION_ENDS and ended >= seen.since:
            text = f"evacuation {one['id']} of job {one['job']}: {_moved(one['migrations'])}"
            text += f"; {one['error']}" if one["error"] else ""
            found[f"evacuation {one['id']}"] = Alert(
                "evacuation", ended, f"{one['host']}: {one['state']}", text, f"#/evacuation/{one['id']}"
            )
    for finding in seen.findings:
        if finding.kind == "silent":
            found[f"silent {finding.subject}"] = Alert(
                "silent", finding.time, f"{finding.subject} is silent", finding.text, f"#/host/{finding.subject}"
            )
    running = [job.id for job in seen.membership.jobs if job.state == "running"]
    if running and not any(host.pool == "free" for host in seen.membership.hosts):
        text = f"while {plural(len(running), 'job')} run: the next host that is about to fail can't be left for a spare"
        found["no-spare"] = Alert("no-spare", seen.now, "no spare is left", text, "#/")
    return found


def _moved(migrations: list[dict[str, Any]]) -> str:
    """Say how many guests have moved, and where to: a spare that was leased is no guest that came there."""
    moved = [one for one in migrations if one["state"] == "moved"]
    if not moved:
        unclear = any(one["state"] == "running" for one in migrations)  # the evacuation has ended all the same
        return "whether a guest moved is not clear" if unclear else "no guest moved"
    return f"{plural(len(moved), 'guest')} to {', '.join(sorted({one['destination'] for one in moved}))}"


class Alerter:
    """Looks once a second what has become so, and tells each receiver, some times if it does not answer."""

    def __init__(self, receivers: list[AlertSettings], display_url: str, look: Callable[[], Seen]) -> None:
        self._receivers, self._display_url, self._look = receivers, display_url, look
        self._held: set[str] = set()
        self._pending: list[tuple[float, int, AlertSettings, Alert]] = []  # when to try, which try it is
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def start(self) -> None:
        """Begin to look, if there is anybody to tell."""
        if self._receivers:
            self._thread.start()

    def stop(self) -> None:
        """End the thread; what could not be told by now is lost."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_S):
            try:
                self._take(holding(self._look()))
                self._tell(time.monotonic())
            except Exception:  # one look that fails must not end the watch
                log.exception("looking for what to alert people of failed")

    def _take(self, now: dict[str, Alert]) -> None:
        for name in now.keys() - self._held:
            for receiver in self._receivers:
                if now[name].occasion in receiver.occasions:
                    self._pending.append((0.0, 1, receiver, now[name]))
        self._held = set(now)

    def _tell(self, moment: float) -> None:
        waiting, self._pending = self._pending, []
        for due, tries, receiver, alert in waiting:
            if due > moment:
                self._pending.append((due, tries, receiver, alert))
                continue
            try:
                deliver(receiver, alert, self._display_url)
            except (OSError, smtplib.SMTPException, httpx.HTTPError) as error:
                why = _why(error)
                if tries < TRIES:
                    log.warning("%s can't be told of '%s' (%s); trying on", receiver.name, alert.subject, why)
                    self._pending.append((moment + RETRY_S * tries, tries + 1, receiver, alert))
                else:
                    log.error("%s could not be told of '%s': %s", receiver.name, alert.subject, why)


def _why(error: Exception) -> str:
    """What went wrong, without a webhook's URL, whose path may be a secret."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answered {error.response.status_code}"
    return type(error).__name__ if isinstance(error, httpx.HTTPError) else str(error)


def deliver(receiver: AlertSettings, alert: Alert, display_url: str) -> None:
    """Tell one receiver. Raises OSError, smtplib.SMTPException or httpx.HTTPError."""
    link = f"{display_url.rstrip('/')}/display/{alert.link}" if display_url else ""
    if receiver.kind == "webhook":
        document = {**asdict(alert), "link": link, "text": f"failavoid: {alert.subject}: {alert.text}"}
        answer = httpx.post(receiver.url, json=document, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return
    message = EmailMessage()
    message["Subject"] = f"failavoid: {alert.subject}"
    message["From"], message["To"] = receiver.sender, ", ".join(receiver.to)
    message["Date"] = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(alert.time))
    message.set_content(f"{alert.subject}\n{alert.text}\n" + (f"\n{link}\n" if link else ""))
    with smtplib.SMTP(receiver.server, receiver.port, timeout=TIMEOUT_S) as server:
        if receiver.starttls:
            server.starttls()
        server.send_message(message)
