"""Brings alarms to the controller, however long that takes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import httpx

from failavoid.services import client
from failavoid.shared.messages import Alarm, to_dict

log = logging.getLogger(__name__)
RETRY_S = 1.0
TIMEOUT_S = 10.0
_TOO_LATE = (400, 404, 405, 409, 422)  # the controller knows no such alarm, or its guests move already


class AlarmSender:
    """Posts alarms in a thread of its own until the controller has taken them.

    Of several alarms about one host and job only the last is posted. ``is_member`` (job,
    host) tells whether an alarm still has an object.
    """

    def __init__(self, url: str, token: str, is_member: Callable[[str, str], bool], authority: str = "") -> None:
        self._client = client(url, token, authority, timeout=TIMEOUT_S)
        self._is_member = is_member
        self._pending: dict[tuple[str, str], Alarm] = {}
        self._withdrawn: list[str] = []
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="alarms", daemon=True)
        self._trouble = ""

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is pending is lost, and raised again by a monitor started anew."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._client.close()

    def send(self, alarm: Alarm) -> None:
        """Take an alarm to be sent; returns at once."""
        with self._changed:
            self._pending[(alarm.job, alarm.host)] = alarm
            self._changed.notify()

    def withdraw(self, alarm: Alarm) -> None:
        """Take back an alarm whose cause is gone: what was not sent yet is not, the controller is told of the rest."""
        with self._changed:
            if self._pending.get((alarm.job, alarm.host)) is alarm:
                del self._pending[(alarm.job, alarm.host)]
            self._withdrawn.append(alarm.id)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._withdrawn or self._stopped)
                if self._stopped:
                    return
                pending, withdrawn = list(self._pending.values()), list(self._withdrawn)
            if not all([*map(self._settle, pending), *map(self._take_back, withdrawn)]):
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, RETRY_S)

    def _settle(self, alarm: Alarm) -> bool:
        """Post one alarm; False if it has to be tried again."""
        if not self._is_member(alarm.job, alarm.host):
            log.info("alarm %s is dropped: host %s has left job %s", alarm.id, alarm.host, alarm.job)
        else:
            try:
                answer = self._client.post("/alarms", json=to_dict(alarm))
                if answer.status_code in (400, 422):
                    log.error("the controller refuses alarm %s: %s", alarm.id, answer.text)
                else:
                    answer.raise_for_status()
                    log.info("alarm %s: %s", alarm.id, _outcome(answer.json()))
                self._trouble = ""
            except (httpx.HTTPError, ValueError, RuntimeError) as error:
                self._note(f"alarm {alarm.id} cannot be brought to the controller: {error}; trying on")
                return False
        with self._changed:
            if self._pending.get((alarm.job, alarm.host)) is alarm:
                del self._pending[(alarm.job, alarm.host)]
        return True

    def _take_back(self, ident: str) -> bool:
        """Tell the controller that an alarm no longer holds; False if it has to be tried again."""
        try:
            answer = self._client.post(f"/alarms/{ident}/withdraw")
            if answer.status_code in _TOO_LATE:
                log.info("alarm %s is not withdrawn: %s", ident, answer.text)
            else:
                answer.raise_for_status()
                log.info("alarm %s is withdrawn: its cause is gone", ident)
            self._trouble = ""
        except (httpx.HTTPError, RuntimeError) as error:
            self._note(f"alarm {ident} cannot be withdrawn: {error}; trying on")
            return False
        with self._changed:
            self._withdrawn.remove(ident)
        return True

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.error(trouble)
        self._trouble = trouble


def _outcome(answer: Any) -> str:
    if isinstance(answer, dict) and answer.get("id"):
        return f"evacuation {answer['id']} begins"
    return "the controller does nothing: the job's policy is off, or the host is being evacuated"
