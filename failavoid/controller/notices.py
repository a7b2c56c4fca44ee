"""What the ranks of each job are told, and what the guests' agents say of them.

A job's notices are numbered by its epoch; one epoch of a job is open at a time. Serials count the changes of
all notices, so a guest that gets another job sees a greater one. Both outlive a restart through the journal.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from failavoid.controller.clock import Clock
from failavoid.controller.journal import Journal
from failavoid.services import Changes
from failavoid.shared.messages import Arrival, GuestReport, Notice

READY, RESUMED, ROOT, REACHED = "ready", "resumed", "root", "reached"
_STATES = (READY, RESUMED, ROOT, REACHED)


@dataclass
class Reports:
    """When each word about a guest arrived in one epoch of a job: its own, but for ``reached``, which is a peer's."""

    ready: dict[str, float] = field(default_factory=dict)
    resumed: dict[str, float] = field(default_factory=dict)
    root: dict[str, float] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)


class NoticeBoard:
    """All jobs' notices. Notices are replaced, never changed, so readers need no lock.

    ``news`` grows with every change of a notice; ``changed`` is notified of every guest's report.
    """

    def __init__(self, journal: Journal, changed: threading.Condition, news: Changes, clock: Clock) -> None:
        self._news = news
        self._journal = journal
        self._changed = changed
        self._clock = clock
        self._notices = {notice.job: notice for notice in journal.notices()}
        self._serial = max((notice.serial for notice in self._notices.values()), default=0)
        self._reports: dict[tuple[str, int], Reports] = {}

    def notice(self, job: str) -> Notice:
        """Return the job's notice; a job that was never told anything has epoch 0."""
        return self._notices.get(job) or self._change(job, lambda notice: {})

    def last_epoch(self, job: str) -> int:
        """Return the last epoch of the job that ranks may know of."""
        notice = self.notice(job)
        # one that was cancelled before it was posted counts: ranks would take it for closed
        return max(notice.epoch, notice.done, notice.cancelled)

    def is_open(self, job: str) -> bool:
        """Whether ranks of the job are, or may be, stopped."""
        notice = self.notice(job)
        return notice.epoch > max(notice.done, notice.cancelled)

    def post(self, job: str, epoch: int, affected: list[str], kind: str, source: str, destination: str) -> None:
        """Tell the job's ranks that these guests will move, from where to where; may be repeated."""
        told = {"epoch": epoch, "affected": sorted(affected), "kind": kind}
        self._change(job, lambda notice: {**told, "source": source, "destination": destination})

    def ask_about(self, job: str, arrivals: list[Arrival]) -> None:
        """Have the agents of the job's guests look at guests that have moved, beside what they look at already."""

        def added(notice: Notice) -> dict[str, Any]:
            asked = {arrival.guest for arrival in arrivals}
            return {"arrivals": [one for one in notice.arrivals if one.guest not in asked] + arrivals}

        self._change(job, added)

    def finish(self, job: str, epoch: int) -> None:
        """Release the ranks: the guests of the epoch have moved; may be repeated."""
        self._change(job, lambda notice: {"done": max(notice.done, epoch), "arrivals": []})

    def cancel(self, job: str, epoch: int) -> None:
        """Release the ranks: nobody moves in the epoch; may be repeated."""
        self._change(job, lambda notice: {"cancelled": max(notice.cancelled, epoch), "arrivals": []})

    def _change(self, job: str, change: Callable[[Notice], dict[str, Any]]) -> Notice:
        with self._changed:
            old = self._notices.get(job)
            before = old or Notice(job, 0, 0, [], 0, 0)
            after = dataclasses.replace(before, **change(before))
            if after == old:
                return old
            after.serial = self._serial + 1
            self._journal.save_notice(after)
            self._serial = after.serial
            self._notices[job] = after
            self._changed.notify_all()
        self._news.bump()
        return after

    def report(self, guest: str, report: GuestReport) -> None:
        """Take a guest's word; it may be repeated, the first arrival counts. Raises ValueError."""
        at = self._clock.now()
        if report.state not in _STATES:
            raise ValueError(f"a guest reports one of {', '.join(_STATES)}, not {report.state!r}")
        with self._changed:
            about = guest
            if report.state in (ROOT, REACHED):
                about = report.about if report.state == REACHED else guest
                asked = [one for one in self.notice(report.job).arrivals if one.guest == about]
                if not asked or (report.state == REACHED and asked[0].peer != guest):
                    return  # nobody asks any more
            arrived = getattr(self.reports(report.job, report.epoch), report.state)
            if about not in arrived:
                self._journal.note_report(report.job, report.epoch, about, report.state, report.ranks, at)
                arrived[about] = at
                self._changed.notify_all()

    def reports(self, job: str, epoch: int) -> Reports:
        """Return what the guests said in an epoch of a job."""
        with self._changed:
            found = self._reports.get((job, epoch))
            if found is None:
                found = self._reports[job, epoch] = Reports()
                for guest, state, at in self._journal.reports(job, epoch):
                    getattr(found, state)[guest] = at
            return found
