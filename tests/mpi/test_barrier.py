"""Ranks of real MPI jobs stop at their barriers while their guests move, and run on afterwards."""

import os
import signal
import time
from pathlib import Path

import pytest

from failavoid.shared.page import Page
from tests.mpi.installations import EVERY, OPENMPI5, OVER_TCP, Flavour
from tests.mpi.site import JOB, Site, bytes_received, wait_for

GUESTS = ("g1", "g1", "g2", "g3")  # of ranks 0 to 3


def notice(site: Site, epoch: int, affected: list[str], guests=("g1", "g2", "g3")) -> None:
    for guest in guests:
        site.controller.tell(guest, epoch=epoch, affected=affected)


def done(site: Site, epoch: int, guests=("g1", "g2", "g3")) -> None:
    for guest in guests:
        site.controller.tell(guest, done=epoch)


PYTHON = [flavour for flavour in EVERY if flavour.wrapper == "python"]
on_every_mpi = pytest.mark.parametrize("flavour", EVERY, ids=lambda flavour: flavour.name)


def test_without_a_notice_barriers_are_barriers_and_nothing_is_said(site):
    job = site.start(GUESTS, "loop")
    job.wait_for_barriers(50)
    assert job.end() == ""
    assert len(set(job.counts())) == 1
    assert site.controller.reports == []


def test_a_program_is_untouched_without_a_job(site):
    job = site.start(("g1", "g2"), "loop", with_agents=False, FAILAVOID_JOB="")
    job.wait_for_barriers(50)
    assert job.end() == ""


@on_every_mpi
def test_ranks_of_affected_guests_stop_until_the_move_is_done(site):
    job = site.start(GUESTS, "loop")
    job.wait_for_barriers(5)
    notice(site, 1, ["g1", "g2"])
    assert site.wait_for_report("g1", "ready", 1) == 2
    assert site.wait_for_report("g2", "ready", 1) == 1
    held = job.counts()
    time.sleep(0.5)
    assert job.counts() == held, "ranks passed the barrier during the move"
    assert len(set(held)) == 1
    assert site.controller.reported("g1", "resumed", 1) is None

    done(site, 1)
    assert site.wait_for_report("g1", "resumed", 1) == 2
    assert site.wait_for_report("g2", "resumed", 1) == 1
    job.wait_for_barriers(5)
    job.end()
    (line,) = job.said()
    assert f"job {JOB}: guests g1, g2 moved; 3 ranks stopped for" in line
    assert {report[0] for report in site.controller.reports} == {"g1", "g2"}, "an unaffected guest spoke"


@pytest.mark.parametrize("guests", [("g1", "g2"), ("g1", "g2", "g3", "g4") * 2], ids=["2 ranks", "8 ranks"])
def test_two_ranks_or_eight_over_tcp_stop_and_go_on_alike(site, guests):
    job = site.start(guests, "loop", tcp=True)
    job.wait_for_barriers(3)
    names = sorted(set(guests))
    for epoch, affected in ((1, names[-1:]), (2, names[:2])):  # rank 0 held by others, then leading
        notice(site, epoch, affected, names)
        assert [site.wait_for_report(guest, "ready", epoch) for guest in affected] == [
            guests.count(guest) for guest in affected
        ]
        done(site, epoch, names)
        for guest in affected:
            site.wait_for_report(guest, "resumed", epoch)
        job.wait_for_barriers(3)
    job.end()
    assert len(set(job.counts())) == 1


@pytest.mark.parametrize("first", ["g1", "g2", "g3"])
def test_guests_may_hear_of_a_notice_at_different_moments(site, first):
    job = site.start(GUESTS, "loop")
    job.wait_for_barriers(5)
    others = [guest for guest in ("g1", "g2", "g3") if guest != first]
    notice(site, 1, ["g1", "g2"], [first])
    # one guest's page is enough for all to stop: the list is agreed on, nobody is held as unaffected
    held = wait_for("all ranks stopped", lambda: _standing_still(job))
    notice(site, 1, ["g1", "g2"], others)
    site.wait_for_report("g1", "ready", 1)
    site.wait_for_report("g2", "ready", 1)
    assert job.counts() == held
    done(site, 1, ["g2"])
    site.wait_for_report("g2", "resumed", 1)
    done(site, 1, ["g1", "g3"])
    site.wait_for_report("g1", "resumed", 1)
    job.wait_for_barriers(5)
    job.end()


def _standing_still(job):
    before = job.counts()
    time.sleep(0.3)
    return before if job.counts() == before else None


def test_a_cancelled_evacuation_releases_the_ranks(site):
    job = site.start(GUESTS, "loop")
    job.wait_for_barriers(5)
    notice(site, 1, ["g2"])
    site.wait_for_report("g2", "ready", 1)
    for guest in ("g1", "g2", "g3"):
        site.controller.tell(guest, cancelled=1)
    site.wait_for_report("g2", "resumed", 1)
    job.wait_for_barriers(5)
    job.end()
    (line,) = job.said()
    assert "guest g2 did not move (cancelled); 1 rank stopped" in line


def test_a_second_evacuation_gets_its_own_epoch(site):
    job = site.start(GUESTS, "loop")
    for epoch, guest in ((1, "g1"), (2, "g3")):
        job.wait_for_barriers(5)
        notice(site, epoch, [guest])
        site.wait_for_report(guest, "ready", epoch)
        done(site, epoch)
        site.wait_for_report(guest, "resumed", epoch)
    job.wait_for_barriers(5)
    job.end()
    assert len(job.said()) == 2


def test_the_local_limit_ends_a_hold_but_handles_nothing(site):
    job = site.start(GUESTS, "loop", FAILAVOID_LIMIT_S="0.2")
    job.wait_for_barriers(5)
    notice(site, 1, ["g2"])
    site.wait_for_report("g2", "ready", 1)
    before = job.counts()[0]
    wait_for("the ranks stop a second time for the same notice", lambda: len(job.said()) >= 2)
    counted = job.counts()[0]  # one barrier a stop, and the one that may be under way at either reading
    assert counted <= before + len(job.said()) + 2, "a barrier did not look at the open notice"
    done(site, 1)
    site.wait_for_report("g2", "resumed", 1)
    job.wait_for_barriers(20)
    job.end()
    assert "did not move within 0.2 s (FAILAVOID_LIMIT_S)" in job.said()[0]
    # where the word that the guest has moved falls between two stops, no rank is there to say it
    assert sum("guest g2 moved" in line for line in job.said()) <= 1


@pytest.mark.parametrize("how", ["dup", "split", "create", "create_group", "cart", "graph", "merge"])
def test_communicators_of_the_world_s_size_are_covered_however_they_were_made(site, how):
    stop_and_go_on(site, "derived", how)


@pytest.mark.parametrize("flavour", PYTHON, ids=lambda flavour: flavour.name)
@pytest.mark.parametrize("program", ["lower_case", "imported_late"])
def test_the_ways_of_python_are_covered(site, program):
    stop_and_go_on(site, program, wrapper=program != "imported_late")


def stop_and_go_on(site: Site, *program: str, **how) -> None:
    job = site.start(("g1", "g1", "g2"), *program, **how)
    job.wait_for_barriers(5)
    notice(site, 1, ["g1"], ["g1", "g2"])
    assert site.wait_for_report("g1", "ready", 1) == 2
    done(site, 1, ["g1", "g2"])
    site.wait_for_report("g1", "resumed", 1)
    job.wait_for_barriers(5)
    job.end()


@pytest.mark.parametrize("program", ["part", "inter"])
def test_barriers_of_a_part_of_the_world_pass_through(site, program):
    job = site.start(GUESTS, program)
    job.wait_for_barriers(5)
    notice(site, 1, ["g1", "g3"])
    job.wait_for_barriers(100)
    assert site.controller.reports == [], "a rank stopped where others could wait for it for ever"
    done(site, 1)  # moved after the deadline: migration needs no standstill
    site.wait_for_report("g1", "resumed", 1)
    job.end()
    assert job.said() == []


def test_ranks_look_at_every_nth_barrier_of_each_communicator(site):
    job = site.start(GUESTS, "two_counts", FAILAVOID_EVERY="7")
    job.wait_for_barriers(21)
    notice(site, 1, ["g1", "g3"])
    site.wait_for_report("g1", "ready", 1)
    site.wait_for_report("g3", "ready", 1)
    done(site, 1)
    site.wait_for_report("g3", "resumed", 1)
    job.wait_for_barriers(21)
    job.end()


def test_pcontrol_switches_the_wrapper_off_and_on(site):
    job = site.start(GUESTS, "switched_off")
    job.wait_for_barriers(5)
    notice(site, 1, ["g1"])
    job.wait_for_barriers(100)
    assert site.controller.reports == []
    (site.folder / "on").touch()
    site.wait_for_report("g1", "ready", 1)
    done(site, 1)
    site.wait_for_report("g1", "resumed", 1)
    job.wait_for_barriers(5)
    job.end()


def test_finalize_with_a_notice_pending_only_deregisters(site):
    job = site.start(GUESTS, "finalize")
    job.wait_for_barriers(0)
    wait_for("all ranks at their barrier", lambda: job.counts() == [1] * 4)
    notice(site, 1, ["g1"])
    time.sleep(0.2)
    job.stop()
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
@pytest.mark.parametrize(
    "flavour", [Flavour(OPENMPI5, "python"), Flavour(OPENMPI5, "c")], ids=lambda flavour: flavour.name
)
def test_a_rank_that_crashed_leaves_nothing_behind_that_counts(site):
    job = site.start(("g1", "g1", "g2"), "loop")
    job.wait_for_barriers(5)
    job.process.send_signal(signal.SIGSTOP)  # mpirun must not end the other ranks at once
    os.kill(job.pid(1), signal.SIGKILL)
    process = Path(f"/proc/{job.pid(1)}")
    # a process is a zombie as soon as its first thread is; the others may still be on their way out
    wait_for("the rank is dead", lambda: not process.exists() or is_dead(process))
    notice(site, 1, ["g1"], ["g1"])
    done(site, 1, ["g1"])
    assert site.wait_for_report("g1", "resumed", 1) == 1
    wait_for(
        "the dead rank's slot is gone",
        lambda: [slot.stem for slot in (site.page_folder("g1") / "slots").iterdir()] == [str(job.pid(0))],
    )
    job.process.send_signal(signal.SIGCONT)
    assert job.process.wait(60) != 0


@pytest.mark.parametrize("flavour", OVER_TCP, ids=lambda flavour: flavour.name)
def test_nothing_is_sent_to_a_stopped_rank(site):
    job = site.start(GUESTS, "loop", tcp=True)
    job.wait_for_barriers(20)
    running = [bytes_received(job.pid(rank)) for rank in (0, 1)]
    job.wait_for_barriers(20)
    assert all(bytes_received(job.pid(rank)) > running[rank] for rank in (0, 1)), "these ranks do not speak TCP"
    for epoch in (1, 2, 3):
        notice(site, epoch, ["g1"])
        site.wait_for_report("g1", "ready", epoch)
        before = [bytes_received(job.pid(rank)) for rank in (0, 1)]
        time.sleep(0.3)
        assert [bytes_received(job.pid(rank)) for rank in (0, 1)] == before
        done(site, epoch)
        site.wait_for_report("g1", "resumed", epoch)
        job.wait_for_barriers(3)
    job.end()


def test_what_a_rank_did_send_would_be_counted(site):
    job = site.start(GUESTS, "message", "5", tcp=True)
    job.wait_for_barriers(5)
    notice(site, 1, ["g1"])
    site.wait_for_report("g1", "ready", 1)
    before = bytes_received(job.pid(0))
    (site.folder / "send").touch()
    wait_for("more bytes at the stopped rank", lambda: bytes_received(job.pid(0)) >= before + 64)
    done(site, 1)
    site.wait_for_report("g1", "resumed", 1)
    job.wait_for_barriers(5)
    job.end()


def test_an_agent_may_come_after_the_ranks(site):
    job = site.start(("g1", "g2"), "loop", with_agents=False)
    job.wait_for_barriers(20)
    (line,) = job.said()
    assert "no page in" in line
    for guest in ("g1", "g2"):
        site.controller.tell(guest, epoch=1, affected=["g2"])
        site.start_agent(guest)
    assert site.wait_for_report("g2", "ready", 1) == 1
    done(site, 1, ["g1", "g2"])
    site.wait_for_report("g2", "resumed", 1)
    job.wait_for_barriers(5)
    job.end()


def test_a_controller_that_is_away_blocks_no_barrier(site):
    job = site.start(GUESTS, "loop")
    job.wait_for_barriers(5)
    site.controller.stop()
    job.wait_for_barriers(100)
    notice(site, 1, ["g3"])
    site.controller.start()
    site.wait_for_report("g3", "ready", 1)
    done(site, 1)
    site.wait_for_report("g3", "resumed", 1)
    job.wait_for_barriers(5)
    job.end()


def test_an_agent_that_is_restarted_during_a_hold_goes_on_where_it_was(site):
    job = site.start(GUESTS, "loop")
    job.wait_for_barriers(5)
    notice(site, 1, ["g1"])
    site.wait_for_report("g1", "ready", 1)
    site.end_agent("g1")
    held = job.counts()
    site.controller.reports.clear()
    site.start_agent("g1")
    site.wait_for_report("g1", "ready", 1)
    assert job.counts() == held
    done(site, 1)
    site.wait_for_report("g1", "resumed", 1)
    job.wait_for_barriers(5)
    job.end()


def test_the_page_of_an_ended_job_is_removed(site):
    job = site.start(("g1", "g2"), "loop")
    job.wait_for_barriers(5)
    site.controller.end_job("g1")
    job.wait_for_barriers(5)
    assert (site.page_folder("g1") / "page").exists(), "the page of living ranks was removed"
    job.end()
    site.controller.tell("g1", epoch=1)  # ends the agent's long poll
    wait_for("the agent has heard", lambda: Page(str(site.page_folder("g1"))).epoch == 1)
    site.controller.end_job("g1")
    wait_for("the page is gone", lambda: not site.page_folder("g1").exists())
