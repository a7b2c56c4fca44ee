"""The guest's agent speaks for the ranks: brings them the controller's notices and reports when they stop.

One thread listens to the controller (a long poll) and writes the page of the job; another
looks at the ranks' slots, every 50 ms while an evacuation is open, and otherwise sleeps.
The ranks wait for nobody but the page: a controller that is away delays notices, never a barrier.
"""

# pathlib alone costs an agent on an emulated CPU as much as the rest of its start
# ruff: noqa: PTH118, PTH208
from __future__ import annotations

import os
import sys
import threading
import time

from failavoid.agent.arrivals import Arrivals
from failavoid.agent.settings import Settings
from failavoid.shared.http import ApiError, Client, call
from failavoid.shared.messages import GuestReport, Notice, from_dict, to_dict
from failavoid.shared.names import check_name
from failavoid.shared.page import KINDS, RUN_DIR, PageError, PageWriter, Posted, job_folder, live_slots

POLL_S = 25.0  # the controller answers at the latest after that
LOOK_S = 0.05  # at the slots, while an evacuation is open
ARRIVAL_TRIES = 60
PAUSE_S = (0.5, 10.0)  # between tries when the controller is away: first, longest


def run(settings: Settings, run_dir: str = RUN_DIR) -> None:
    """Serve the ranks of this guest for ever. Without a controller in the settings there is nothing to do."""
    if not settings.controller:
        _say("the settings name no controller: ranks on this guest get no notices")
        return
    ranks = Ranks(settings, run_dir)
    threading.Thread(target=ranks.watch, name="slots", daemon=True).start()
    ranks.listen()


class Ranks:
    """What the two threads share: the page of the guest's job, and what has been reported of it."""

    def __init__(self, settings: Settings, run_dir: str) -> None:
        self._guest = settings.node
        self._settings = settings  # a warm guest gets its user while the agent runs
        self._url = f"{settings.controller.rstrip('/')}/guests/{settings.node}"
        self._token, self._authority = settings.token, settings.authority
        self._listening = Client(settings.token, settings.authority)  # a connection each for the two threads
        self._reporting = Client(settings.token, settings.authority)
        self._run_dir = run_dir
        self._changed = threading.Condition()
        self._job = ""
        self._page: PageWriter | None = None
        self._reported: dict[str, int] = {}  # state -> last epoch of the job
        self._arrivals = Arrivals(settings.node, self._say_of_arrival)

    def listen(self) -> None:
        """Ask the controller for notices, for ever, and write them on the page."""
        serial, pause, troubled = 0, PAUSE_S[0], False
        while True:
            asked = time.monotonic()
            try:
                where = f"{self._url}/notice?after={serial}&timeout={POLL_S:g}"
                answer = self._listening.call("GET", where, timeout=POLL_S + 10)
                before, serial = serial, self._take(answer)
            except (ApiError, ValueError, PageError) as error:
                if not troubled:
                    _say(f"no notices: {error}; trying on")
                troubled = True
                time.sleep(pause)
                pause = min(2 * pause, PAUSE_S[1])
                continue
            if troubled:
                _say("notices can arrive again")
            pause, troubled = PAUSE_S[0], False
            if serial == before and time.monotonic() - asked < 1:
                time.sleep(1)  # the controller had nothing new and did not wait: do not ask in a circle

    def _take(self, answer: object) -> int:
        """Write the notice on its job's page and return its serial; 0 while the guest has no job."""
        if not answer:
            self._clean(keep="")
            return 0
        notice = from_dict(Notice, answer)
        check_name("job", notice.job)
        if min(notice.serial, notice.epoch, notice.done, notice.cancelled) < 0:
            raise ValueError(f"a notice with a negative number: {answer}")
        if notice.kind not in KINDS:
            raise ValueError(f"a notice of kind {notice.kind!r}; known are {', '.join(KINDS)}: deploy the agent again")
        posted = Posted(
            notice.serial,
            notice.epoch,
            tuple(notice.affected),
            notice.done,
            notice.cancelled,
            notice.kind,
            notice.source,
            notice.destination,
        )
        with self._changed:
            if notice.job != self._job or self._page is None:
                self._page = PageWriter(job_folder(notice.job, self._run_dir), self._settings.job_user)
                self._job, self._reported = notice.job, {}
            self._page.post(posted)
            self._changed.notify()
        self._arrivals.take(notice)
        self._clean(keep=notice.job)
        return notice.serial

    def _say_of_arrival(self, report: GuestReport) -> None:
        """Bring a word about a guest that has moved; one that does not get through is tried for a while."""
        for _ in range(ARRIVAL_TRIES):
            try:
                call("POST", f"{self._url}/report", self._token, to_dict(report), authority=self._authority)
                return
            except ApiError as error:
                _say(f"{report.state} of {report.about or self._guest} can't be told: {error}")
                if 400 <= error.status < 500:
                    return
            time.sleep(PAUSE_S[0])

    def _clean(self, keep: str) -> None:
        """Remove the pages of other jobs, except where ranks still live: those have them mapped."""
        try:
            jobs = os.listdir(os.path.join(self._run_dir, "jobs"))
        except OSError:
            return
        for job in jobs:
            folder = job_folder(job, self._run_dir)
            if job != keep and not live_slots(folder):
                with self._changed:
                    if job == self._job:
                        self._job, self._page = "", None
                import shutil  # seldom needed, and slow to import on an emulated CPU

                shutil.rmtree(folder, ignore_errors=True)

    def watch(self) -> None:
        """Look at the slots as long as something is to be reported, for ever."""
        pause, troubled = PAUSE_S[0], False
        while True:
            with self._changed:
                while not self._pending():
                    self._changed.wait()
                assert self._page is not None
                job, posted, folder = self._job, self._page.posted, self._page.folder
            report = self._due(job, posted, folder)
            if report is None:
                time.sleep(LOOK_S)
                continue
            try:
                self._reporting.call("POST", f"{self._url}/report", to_dict(report))
            except ApiError as error:
                if not 400 <= error.status < 500:
                    if not troubled:
                        _say(f"a report does not get through: {error}; trying on")
                    troubled = True
                    time.sleep(pause)
                    pause = min(2 * pause, PAUSE_S[1])
                    continue
                _say(f"a report was refused: {error}")
            pause, troubled = PAUSE_S[0], False
            with self._changed:
                if self._job == job:
                    self._reported[report.state] = report.epoch

    def _pending(self) -> bool:
        """Whether this guest is affected by the last epoch and has something left to report of it."""
        if self._page is None or self._guest not in self._page.posted.affected:
            return False
        posted = self._page.posted
        return self._reported.get("ready" if posted.open else "resumed", 0) < posted.epoch

    def _due(self, job: str, posted: Posted, folder: str) -> GuestReport | None:
        """Return the report that is due now, if one is."""
        slots = live_slots(folder)
        if posted.kind == "checkpoint":
            ready = sum(slot.checkpointed == posted.epoch for slot in slots)
        else:
            ready = sum(slot.stopped == posted.epoch for slot in slots)
        if posted.open:
            if slots and ready == len(slots):
                return GuestReport(job, posted.epoch, "ready", len(slots))
        elif not any(slot.stopped == posted.epoch for slot in slots):
            return GuestReport(job, posted.epoch, "resumed", len(slots))
        return None


def _say(text: str) -> None:
    print(f"failavoid agent: {text}", file=sys.stderr, flush=True)
