"""What the library calls of MPI, and of the machine, at barriers that have nothing to tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from failavoid.shared.page import PageWriter, job_folder
from tests.mpi.installations import HERE, Builds, run
from tests.mpi.site import JOB

BARRIERS = 1000

# prints what was called at the first barrier, and at the others; files opened in the job's folder; seconds it all took
PROGRAM = """
import ctypes, json, sys, time
began = time.monotonic()
mpi, library = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(sys.argv[2])
def calls():
    return {name: ctypes.c_int.in_dll(mpi, "calls_" + name).value for name in sys.argv[4:]}
def barriers(number):
    before = calls()
    for _ in range(number):
        assert library.MPI_Barrier(0x44000000) == 0
    return {name: count - before[name] for name, count in calls().items() if count != before[name]}
first, others = barriers(1), barriers(int(sys.argv[3]))
opened = ctypes.c_int.in_dll(mpi, "opened").value
print(json.dumps([first, others, opened, time.monotonic() - began]))
"""
COLLECTIVES = ("Barrier", "Allreduce", "Allgather", "Bcast", "Ibcast")
LOCAL = ("Test", "Pcontrol", "Comm_rank", "Comm_size", "Comm_test_inter", "Comm_create_keyval", "Comm_get_attr")


@pytest.fixture(scope="module")
def one_rank(builds: Builds) -> Path:
    made = builds.folder / "libone_rank.so"
    run(["gcc", "-shared", "-fPIC", "-O1", str(HERE / "one_rank.c"), "-o", str(made)])
    return made


def counted(builds: Builds, one_rank: Path, **variables: str) -> tuple[dict[str, int], dict[str, int], int, float, str]:
    """What PROGRAM prints, and what the library says to the user."""
    words = [str(one_rank), str(builds.library), str(BARRIERS), *COLLECTIVES, *LOCAL, "Comm_set_attr"]
    environment = {**os.environ, "LD_PRELOAD": str(one_rank), **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, others, opened, seconds = json.loads(done.stdout)
    return first, others, opened, seconds, done.stderr


def test_the_check_is_the_barrier_one_allreduce_and_nothing_else_that_is_sent(builds, one_rank, tmp_path):
    PageWriter(job_folder(JOB, str(tmp_path)))
    first, others, opened, _, said = counted(builds, one_rank, FAILAVOID_JOB=JOB, FAILAVOID_RUN_DIR=str(tmp_path))
    # the first barrier of a communicator also asks whether its ranks are of a job
    assert {name: first[name] for name in first if name in COLLECTIVES} == {"Allreduce": 2}
    assert others == {"Allreduce": BARRIERS, "Comm_get_attr": BARRIERS}
    assert opened == 2, "the page and the slot, once"
    assert said == ""


def test_without_an_agent_a_barrier_costs_the_same_and_that_is_said_once(builds, one_rank, tmp_path):
    _, others, opened, seconds, said = counted(builds, one_rank, FAILAVOID_JOB=JOB, FAILAVOID_RUN_DIR=str(tmp_path))
    assert others == {"Allreduce": BARRIERS, "Comm_get_attr": BARRIERS}
    assert 1 <= opened <= 1 + seconds, "the page is looked for more often than once a second"
    (line,) = said.splitlines()
    assert line == (
        f"failavoid: job {JOB}: no page in {tmp_path}/jobs/{JOB}: "
        "no notice can arrive until the guest's agent makes one"
    )


def test_without_a_job_a_barrier_is_mpi_s_own(builds, one_rank):
    _, others, opened, _, said = counted(builds, one_rank, FAILAVOID_JOB="")
    assert others == {"Barrier": BARRIERS, "Comm_get_attr": BARRIERS}
    assert (opened, said) == (0, "")
