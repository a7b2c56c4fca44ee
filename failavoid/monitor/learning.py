"""The learned distribution of each application: from its jobs that ended well, kept between runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from failavoid.monitor.groups import Group
from failavoid.monitor.state import State
from failavoid.prediction.grouping import Bools, Floats, Ints
from failavoid.prediction.models import BINS, Distribution
from failavoid.shared.messages import Membership

log = logging.getLogger(__name__)
KEEP_S = 60.0  # what a monitor that is killed may lose of what running jobs used
MIN_HOST_SAMPLES = 60  # of a job, to say anything about its application


class Learner:
    """Counts what the hosts of each running job use, and adds it to the application's when the job has completed.

    What a host used while a rule held for it is no part of what is normal.
    """

    def __init__(self, state: State, metric: str) -> None:
        self._state = state
        self._metric = metric
        # job -> application, what it used so far; what an earlier monitor saw of it counts too
        self._running: dict[str, tuple[str, Distribution]] = state.running(metric)
        self._kept = time.monotonic()
        self._tables: dict[str, Floats | None] = {}

    def take(self, groups: Sequence[Group], values: Floats, suspicious: Bools) -> None:
        """Take one collection's values; columns are the groups' hosts in their order."""
        begin = 0
        for group in groups:
            end = begin + len(group.hosts)
            if group.job not in self._running:
                self._running[group.job] = (group.application, Distribution.empty())
            self._running[group.job][1].add(values[begin:end][~suspicious[begin:end]])
            begin = end

    def close(self, membership: Membership) -> None:
        """Learn from jobs that have completed; forget those that are gone otherwise, once anything is known of jobs."""
        if membership.version < 0:
            return
        states = {job.id: job.state for job in membership.jobs}
        for job in [job for job in self._running if states.get(job) not in ("ready", "running")]:
            application, distribution = self._running.pop(job)
            if states.get(job) != "completed" or distribution.counts.sum() < MIN_HOST_SAMPLES:
                continue
            learned = self._state.distribution(application, self._metric)
            learned.merge(distribution)
            self._state.keep_distribution(application, self._metric, learned)
            self._tables.pop(application, None)
            log.info("job %s completed: %d runs of application %s are learned", job, learned.runs, application)

        if time.monotonic() - self._kept >= KEEP_S:
            self.keep()

    def keep(self) -> None:
        """Keep what the running jobs used so far, for the monitor that is started after this one."""
        self._kept = time.monotonic()
        self._state.keep_running(self._metric, self._running)

    def relative_probability(self, names: Sequence[str], of: Ints, values: Floats) -> Floats:
        """Of each value, for the application ``names[of]``; 1 where nothing was learned."""
        result = np.ones(len(values))
        places = np.clip((np.nan_to_num(values) * BINS).astype(np.intp), 0, BINS)
        for number, name in enumerate(names):
            table = self._table(name)
            if table is not None:
                mine = of == number
                result[mine] = table[places[mine]]
        return result

    def _table(self, application: str) -> Floats | None:
        """The relative probability in each bin and beyond the last; None if nothing was learned."""
        if application not in self._tables:
            learned = self._state.distribution(application, self._metric)
            middles = (np.arange(BINS) + 0.5) / BINS
            table = np.append(learned.relative_probability(middles), 0.0)
            self._tables[application] = table if learned.runs else None
        return self._tables[application]
