"""What takes a job of its own to see: settings, the beginning and the end of ranks and agents, what goes over TCP."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from failavoid.shared.page import Page
from tests.mpi.installations import EVERY, MPICH4, MPICH5, OPENMPI4, OPENMPI5, THOROUGH, Flavour
from tests.mpi.site import GUESTS, Site, bytes_received, wait_for

C_ON_BOTH = (Flavour(MPICH5, "c"), Flavour(OPENMPI5, "c"))
PYTHON_AND_C = (Flavour(OPENMPI5, "python"), Flavour(MPICH5, "c"))

# Debian's MPICH 4.0 over UCX and TCP hangs now and then in MPI_Finalize, with the wrapper and without it.
OVER_TCP = [(flavour, 4) for flavour in EVERY if flavour.mpi is not MPICH4]
OVER_TCP += [(flavour, ranks) for flavour in PYTHON_AND_C for ranks in (2, 8)]


def on(*flavours: Flavour):
    return pytest.mark.parametrize("flavour", flavours, ids=lambda flavour: flavour.name)


def stop_and_go_on(site: Site, *scenario: str, **how) -> None:
    job = site.start(("g1", "g1", "g2"), *scenario, **how)
    job.wait_for_barriers(5)
    site.notice("g1")
    assert site.ready("g1") == 2
    site.done()
    site.resumed("g1")
    job.wait_for_barriers(5)
    job.end()


@on(*(flavour for flavour in EVERY if flavour not in THOROUGH))
def test_ranks_stop_and_go_on_with_older_versions_of_mpi(site):
    stop_and_go_on(site)


@on(Flavour(OPENMPI5, "python"), Flavour(MPICH5, "library"), Flavour(OPENMPI5, "c"))
def test_a_program_is_untouched_without_a_job(site):
    job = site.start(("g1", "g2"), with_agents=False, FAILAVOID_JOB="")
    job.wait_for_barriers(50)
    assert job.end() == ""


@on(*(flavour for flavour in EVERY if flavour.wrapper == "python"))
@pytest.mark.parametrize("program", ["lower_case", "imported_late"])
def test_the_ways_of_python_are_covered(site, program):
    if program == "lower_case":
        stop_and_go_on(site, do="lower_case")
    else:
        stop_and_go_on(site, "imported_late", wrapper=False)


@pytest.mark.parametrize(("flavour", "ranks"), OVER_TCP, ids=lambda value: getattr(value, "name", value))
def test_nothing_is_sent_to_a_stopped_rank(site, ranks):
    guests = {2: ("g1", "g2"), 4: GUESTS, 8: ("g1", "g2", "g3", "g4") * 2}[ranks]
    job = site.start(guests, tcp=True)
    job.wait_for_barriers(5)
    running = bytes_received(job, range(ranks))
    job.wait_for_barriers(5)
    pairs = zip(running, bytes_received(job, range(ranks)), strict=True)
    assert all(later > before for before, later in pairs), "these ranks do not speak TCP"
    for guest in ("g1", "g2"):  # rank 0 leads, or is held by others
        site.notice(guest)
        assert site.ready(guest) == guests.count(guest)
        stopped = [rank for rank in range(ranks) if guests[rank] == guest]
        before = bytes_received(job, stopped)
        time.sleep(0.3)
        assert bytes_received(job, stopped) == before
        site.done()
        site.resumed(guest)
        job.wait_for_barriers(3)
    job.end()
    assert len(set(job.counts())) == 1


@on(*C_ON_BOTH)
def test_nothing_is_sent_to_stopped_ranks_of_64(site):
    guests = [f"g{number // 8}" for number in range(64)]
    job = site.start(guests, tcp=True)
    job.wait_for_barriers(2)
    site.notice("g0", "g3")
    assert [site.ready(guest) for guest in ("g0", "g3")] == [8, 8]
    stopped = [*range(8), *range(24, 32)]
    before = bytes_received(job, stopped)
    time.sleep(1)
    assert bytes_received(job, stopped) == before
    site.done()
    site.resumed("g3")
    job.wait_for_barriers(1)
    job.end()


@on(*PYTHON_AND_C)
def test_what_a_rank_did_send_would_be_counted(site):
    job = site.start(GUESTS, "message", "5", tcp=True)
    job.wait_for_barriers(5)
    site.notice("g1")
    site.ready("g1")
    (before,) = bytes_received(job, [0])
    (site.folder / "send").touch()
    wait_for("more bytes at the stopped rank", lambda: bytes_received(job, [0])[0] >= before + 64)
    site.done()
    site.resumed("g1")
    job.wait_for_barriers(5)
    job.end()


# alone: as programs have to begin that use one-sided operations over TCP with Open MPI 4
@pytest.mark.parametrize(
    ("flavour", "scenario"),
    [*((flavour, "loop") for flavour in C_ON_BOTH), (Flavour(OPENMPI4, "c"), "alone")],
    ids=lambda value: getattr(value, "name", value),
)
def test_messages_and_one_sided_operations_under_way_survive_a_stop(site, scenario):
    job = site.start(GUESTS, scenario, do="one_sided", tcp=True)
    job.wait_for_barriers(2)
    for _ in range(2):
        site.notice("g1")
        site.ready("g1")
        time.sleep(0.3)
        site.done()
        site.resumed("g1")
        job.wait_for_barriers(2)
    job.end()


@on(*THOROUGH)
def test_the_local_limit_ends_a_hold_but_handles_nothing(site):
    job = site.start(GUESTS, FAILAVOID_LIMIT_S="0.2")
    job.wait_for_barriers(5)
    site.notice("g2")
    site.ready("g2")
    before = job.counts()[0]
    wait_for("the ranks stop a second time for the same notice", lambda: len(job.said()) >= 2)
    counted = job.counts()[0]  # one barrier a stop, and the one that may be under way at either reading
    assert counted <= before + len(job.said()) + 2, "a barrier did not look at the open notice"
    site.done()
    site.resumed("g2")
    job.wait_for_barriers(20)
    job.end()
    assert "did not move within 0.2 s (FAILAVOID_LIMIT_S)" in job.said()[0]
    # where the word that the guest has moved falls between two stops, no rank is there to say it
    assert sum("guest g2 moved" in line for line in job.said()) <= 1


@on(*THOROUGH)
def test_ranks_look_at_every_nth_barrier_of_each_communicator_and_at_once_when_they_have_asked(site):
    job = site.start(GUESTS, do="two_counts", FAILAVOID_EVERY="7")
    job.wait_for_barriers(21)
    site.notice("g1", "g3")
    site.ready("g1")
    site.ready("g3")
    site.done()
    site.resumed("g3")
    job.wait_for_barriers(21)
    job.do("asking")
    job.wait_for_barriers(10)  # the turn that was under way has three
    site.notice("g2")
    site.ready("g2")
    site.done()
    site.resumed("g2")
    job.wait_for_barriers(2)
    job.end()
    assert [count // 1_000_000 for count in job.counts()] == [1] * 4, "the next barrier did not look"


@on(*THOROUGH)
def test_finalize_with_a_notice_pending_only_deregisters(site):
    finalize(site)


def finalize(site: Site, **how) -> None:
    job = site.start(GUESTS, **how)
    job.wait_for_barriers(2)
    job.do("nothing")
    wait_for("no barrier any more", (site.folder / "nothing").exists)
    site.notice("g1")
    wait_for("the page says so", lambda: Page(str(site.page_folder("g1"))).epoch == 1)
    job.do("finalize")
    wait_for("all ranks finalized", lambda: len(list(site.folder.glob("finalized-*"))) == 4)
    assert list((site.page_folder("g1") / "slots").iterdir()) == []
    (site.folder / "end").touch()
    job.end()
    assert job.said() == []
    assert site.controller.reports == []


def is_dead(process: Path) -> bool:
    state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
    return state == "Z" and len(list((process / "task").iterdir())) == 1


# MPICH's launcher has a second process that ends the other ranks at once
@on(*(flavour for flavour in THOROUGH if flavour.mpi is OPENMPI5))
def test_a_rank_that_crashed_leaves_nothing_behind_that_counts(site):
    job = site.start(("g1", "g1", "g2"))
    job.wait_for_barriers(5)
    job.process.send_signal(signal.SIGSTOP)  # mpirun must not end the other ranks at once
    os.kill(job.pid(1), signal.SIGKILL)
    process = Path(f"/proc/{job.pid(1)}")
    # a process is a zombie as soon as its first thread is; the others may still be on their way out
    wait_for("the rank is dead", lambda: not process.exists() or is_dead(process))
    site.notice("g1", to=["g1"])
    site.done(["g1"])
    assert site.resumed("g1") == 1
    wait_for(
        "the dead rank's slot is gone",
        lambda: [slot.stem for slot in (site.page_folder("g1") / "slots").iterdir()] == [str(job.pid(0))],
    )
    job.process.send_signal(signal.SIGCONT)
    assert job.process.wait(60) != 0


@on(*PYTHON_AND_C)
def test_an_agent_may_come_after_the_ranks(site):
    job = site.start(("g1", "g2"), with_agents=False)
    job.wait_for_barriers(20)
    (line,) = job.said()
    assert "no page in" in line
    site.notice("g2")
    for guest in ("g1", "g2"):
        site.start_agent(guest)
    assert site.ready("g2") == 1
    site.done()
    site.resumed("g2")
    job.wait_for_barriers(5)
    job.end()


@on(*PYTHON_AND_C)
def test_the_page_of_an_ended_job_is_removed(site):
    job = site.start(("g1", "g2"))
    job.wait_for_barriers(5)
    site.controller.end_job("g1")
    job.wait_for_barriers(5)
    assert (site.page_folder("g1") / "page").exists(), "the page of living ranks was removed"
    job.end()
    site.controller.tell("g1", epoch=1)  # ends the agent's long poll
    wait_for("the agent has heard", lambda: Page(str(site.page_folder("g1"))).epoch == 1)
    site.controller.end_job("g1")
    wait_for("the page is gone", lambda: not site.page_folder("g1").exists())


@on(*C_ON_BOTH)
@pytest.mark.parametrize("python_first", [True, False])
def test_ranks_with_either_wrapper_may_be_of_one_job(site, python_first):
    mpi = site.flavour.mpi
    flavours = [Flavour(mpi, "python"), Flavour(mpi, "c")] * 2
    flavours = flavours if python_first else flavours[::-1]
    job = site.start(GUESTS, flavours=flavours)
    job.wait_for_barriers(5)
    for affected in (["g1"], ["g2", "g3"]):
        site.notice(*affected)
        assert [site.ready(guest) for guest in affected] == [GUESTS.count(guest) for guest in affected]
        site.done()
        for guest in affected:
            site.resumed(guest)
        job.wait_for_barriers(3)
    job.end()
    assert len(job.said()) == 2


@on(*C_ON_BOTH)
def test_threads_may_be_stopped_at_barriers_of_their_own(site):
    job = site.start(GUESTS, "threads")
    job.wait_for_barriers(5)
    for _ in range(3):
        site.notice("g1")
        site.ready("g1")
        site.done()
        site.resumed("g1")
        job.wait_for_barriers(3)
    job.end()


@on(Flavour(MPICH5, "c"))
def test_settings_that_make_no_sense_are_said_once_and_passed_over(site):
    job = site.start(GUESTS, FAILAVOID_EVERY="often", FAILAVOID_LIMIT_S="-1")
    job.wait_for_barriers(5)
    job.end()
    assert [re.sub("^.*variable ", "", line) for line in job.said()] == [
        "FAILAVOID_EVERY is 'often'; give a number, at least 1: going on with 1",
        "FAILAVOID_LIMIT_S is '-1'; give a number, at least 1: going on with 900",
    ]
