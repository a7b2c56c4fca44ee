"""What the ranks of each job are told, and what the guests' agents say of them.

A job's notices are numbered by its epoch; one epoch of a job is open at a time. Serials count the changes of
all notices, so a guest that gets another job sees a greater one. Both outlive a restart through the journal.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from failavoid.controller.journal import Journal
from failavoid.services import Changes
from failavoid.shared.messages import GuestReport, Notice

READY, RESUMED = "ready", "resumed"


@dataclass
class Reports:
    """When each guest's word arrived in one epoch of a job."""

    ready: dict[str, float] = field(default_factory=dict)
    resumed: dict[str, float] = field(default_factory=dict)


class NoticeBoard:
    """All jobs' notices. Notices are replaced, never changed, so readers need no lock.

    ``news`` grows with every change of a notice; ``changed`` is notified of every guest's report.
    """

    def __init__(self, journal: Journal, changed: threading.Condition, news: Changes) -> None:
        self._news = news
        self._journal = journal
        self._changed = changed
        self._notices = {notice.job: notice for notice in journal.notices()}
        self._serial = max((notice.serial for notice in self._notices.values()), default=0)
        self._reports: dict[tuple[str, int], Reports] = {}

    def notice(self, job: str) -> Notice:
        """Return the job's notice; a job that was never told anything has epoch 0."""
        return self._notices.get(job) or self._change(job, lambda notice: {})

    def next_epoch(self, job: str) -> int:
        """Return the number that the job's next notice gets."""
        return self.notice(job).epoch + 1

    def post(self, job: str, epoch: int, affected: list[str]) -> None:
        """Tell the job's ranks that these guests will move; may be repeated."""
        self._change(job, lambda notice: {"epoch": epoch, "affected": sorted(affected)})

    def finish(self, job: str, epoch: int) -> None:
        """Release the ranks: the guests of the epoch have moved; may be repeated."""
        self._change(job, lambda notice: {"done": max(notice.done, epoch)})

    def cancel(self, job: str, epoch: int) -> None:
        """Release the ranks: nobody moves in the epoch; may be repeated."""
        self._change(job, lambda notice: {"cancelled": max(notice.cancelled, epoch)})

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
        self._news.bump()
        return after

    def report(self, guest: str, report: GuestReport) -> None:
        """Take a guest's word; it may be repeated, the first arrival counts."""
        at = time.time()
        if report.state not in (READY, RESUMED):
            raise ValueError(f"a guest reports {READY} or {RESUMED}, not {report.state!r}")
        with self._changed:
            arrived = getattr(self.reports(report.job, report.epoch), report.state)
            if guest not in arrived:
                self._journal.note_report(report.job, report.epoch, guest, report.state, report.ranks, at)
                arrived[guest] = at
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
