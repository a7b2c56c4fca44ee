"""Ranks of real MPI jobs stop at their barriers while their guests move, and run on afterwards.

One job for each MPI and wrapper goes through all of it; each test is an evacuation or two of that job.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mpi.installations import Builds, Flavour
from tests.mpi.site import GUESTS, JOB, Controller, Job, Site, wait_for


class Shared:
    """The job that the tests have in common; another one is started when a test has left it unfit for the next."""

    def __init__(self, flavour: Flavour, builds: Builds, folder: Path) -> None:
        self._flavour, self._builds, self._folder = flavour, builds, folder
        self._site: Site | None = None

    def take(self) -> Site:
        """The site of the job, which runs as if nothing had been before."""
        if self._site is None:
            self._start()
        site = self._site
        assert site is not None
        assert site.job is not None
        site.job.forget()
        site.controller.reports.clear()
        site.affected = ()
        return site

    def _start(self) -> None:
        folder = self._folder / str(time.monotonic_ns())
        folder.mkdir()
        self._site = Site(self._flavour, folder, Controller(), self._builds)
        try:
            self._site.start(GUESTS).wait_for_barriers(5)
        except AssertionError:
            self.close()
            raise

    def give_back(self) -> None:
        """Let the job come to rest. Raises AssertionError if it doesn't."""
        site = self._site
        assert site is not None
        assert site.job is not None
        try:
            site.job.do("world")
            site.cancel()
            for guest in site.affected:
                site.resumed(guest)
            site.job.wait_for_barriers(2)
        except AssertionError:
            self.close()
            raise

    def end(self) -> None:
        """Let the job's program come to its end."""
        if self._site is not None and self._site.job is not None:
            self._site.job.end()

    def close(self) -> None:
        if self._site is not None:
            self._site.close()
        self._site = None


@pytest.fixture(scope="module")
def shared(flavour: Flavour, builds: Builds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    shared = Shared(flavour, builds, tmp_path_factory.mktemp("job"))
    try:
        yield shared
        shared.end()
    finally:
        shared.close()


@pytest.fixture
def site(shared: Shared) -> Iterator[Site]:
    yield shared.take()
    shared.give_back()


@pytest.fixture
def job(site: Site) -> Job:
    assert site.job is not None
    return site.job


def test_without_a_notice_barriers_are_barriers_and_nothing_is_said(site, job):
    job.wait_for_barriers(20)
    assert job.errors.read_text() == ""
    assert site.controller.reports == []


def test_ranks_of_affected_guests_stop_until_the_move_is_done(site, job):
    site.notice("g1", "g2")
    assert site.ready("g1") == 2
    assert site.ready("g2") == 1
    held = job.counts()
    time.sleep(0.3)
    assert job.counts() == held, "ranks passed the barrier during the move"
    assert len(set(held)) == 1
    assert not site.has_reported("g1", "resumed")

    site.done()
    assert site.resumed("g1") == 2
    assert site.resumed("g2") == 1
    job.wait_for_barriers(5)
    (line,) = job.said()
    assert f"job {JOB}: guests g1, g2 moved; 3 ranks stopped for" in line
    assert {report[0] for report in site.controller.reports} == {"g1", "g2"}, "an unaffected guest spoke"


@pytest.mark.parametrize("first", ["g1", "g2", "g3"])
def test_guests_may_hear_of_a_notice_at_different_moments(site, job, first):
    others = [guest for guest in ("g1", "g2", "g3") if guest != first]
    site.notice("g1", "g2", to=[first])
    # one guest's page is enough for all to stop: the list is agreed on, nobody is held as unaffected
    wait_for("all affected ranks have stopped", lambda: (site.stopped("g1"), site.stopped("g2")) == (2, 1))
    held = job.counts()
    site.spread("g1", "g2", to=others)
    site.ready("g1")
    site.ready("g2")
    assert job.counts() == held
    site.done(["g2"])
    site.resumed("g2")
    site.done(["g1", "g3"])
    site.resumed("g1")
    job.wait_for_barriers(2)


def test_a_cancelled_evacuation_releases_the_ranks(site, job):
    site.notice("g2")
    site.ready("g2")
    site.cancel()
    site.resumed("g2")
    job.wait_for_barriers(2)
    (line,) = job.said()
    assert "guest g2 did not move (cancelled); 1 rank stopped" in line


def test_the_line_in_the_output_says_where_guests_went(site, job):
    site.notice("g1", "g2", source="host01", destination="host07")
    site.ready("g1")
    site.ready("g2")
    site.done()
    site.resumed("g2")
    job.wait_for_barriers(2)
    (line,) = job.said()
    assert f"job {JOB}: guests g1, g2 moved from host01 to host07; 3 ranks stopped for" in line


@pytest.mark.parametrize("how", ["dup", "split", "create", "create_group", "cart", "graph", "merge"])
def test_communicators_of_the_world_s_size_are_covered_however_they_were_made(site, job, how):
    job.do(how)
    job.wait_for_barriers(2)
    site.notice("g1")
    assert site.ready("g1") == 2
    site.done()
    site.resumed("g1")
    job.wait_for_barriers(2)


@pytest.mark.parametrize("which", ["part", "inter"])
def test_barriers_of_a_part_of_the_world_pass_through(site, job, which):
    job.do(which)
    job.wait_for_barriers(2)
    site.notice("g1", "g3")
    job.wait_for_barriers(20)
    assert site.controller.reports == [], "a rank stopped where others could wait for it for ever"
    site.done()  # moved after the deadline: migration needs no standstill
    site.resumed("g1")
    assert job.said() == []


def test_pcontrol_switches_the_wrapper_off_and_on(site, job):
    job.do("off")
    job.wait_for_barriers(2)
    site.notice("g1")
    job.wait_for_barriers(20)
    assert site.controller.reports == []
    job.do("on")
    site.ready("g1")
    site.done()
    site.resumed("g1")
    job.wait_for_barriers(2)


def test_a_program_may_ask_outside_barriers(site, job):
    job.do("asking")
    job.wait_for_barriers(5)
    site.notice("g2")
    site.ready("g2")
    site.done()
    site.resumed("g2")
    job.wait_for_barriers(5)
    assert len(job.said()) == 1


def test_the_application_is_told_before_and_after_on_every_rank(site, job):
    job.do("callbacks")
    job.wait_for_barriers(2)
    site.notice("g1")
    site.ready("g1")
    wait_for("all ranks were told that guests move", lambda: marks(site, "before-move") == 4)
    assert marks(site, "after") == 0
    site.done()
    wait_for("all ranks are told that they run on", lambda: marks(site, "after-moved") == 4)
    site.notice("g1", kind="checkpoint")
    assert site.ready("g1") == 2, "the controller does not hear of the checkpoint"
    wait_for("all ranks were told of the checkpoint", lambda: marks(site, "before-checkpoint") == 4)
    job.wait_for_barriers(2)
    site.done()
    site.resumed("g1")
    assert "the program was told to write a checkpoint" in job.said()[1]


def marks(site: Site, what: str) -> int:
    return len(list(site.folder.glob(f"{what}-*-told")))


def test_a_checkpoint_that_nobody_can_write_stops_nobody_and_is_not_reported(site, job):
    site.notice("g1", kind="checkpoint")
    wait_for("the user hears of it", job.said)
    job.wait_for_barriers(20)
    site.cancel()
    site.resumed("g1")
    (line,) = job.said()
    assert line.endswith(f"a checkpoint is asked for, but the program has no callback for it (epoch {site.epoch})")
    assert not site.has_reported("g1", "ready")


def test_a_controller_that_is_away_blocks_no_barrier(site, job):
    site.controller.stop()
    job.wait_for_barriers(20)
    site.notice("g3")
    site.controller.start()
    site.ready("g3")
    site.done()
    site.resumed("g3")
    job.wait_for_barriers(2)


def test_an_agent_that_is_restarted_during_a_hold_goes_on_where_it_was(site, job):
    site.notice("g1")
    site.ready("g1")
    site.end_agent("g1")
    held = job.counts()
    site.controller.reports.clear()
    site.start_agent("g1")
    site.ready("g1")
    assert job.counts() == held
    site.done()
    site.resumed("g1")
    job.wait_for_barriers(2)
