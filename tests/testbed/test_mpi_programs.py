"""Unmodified MPI programs in C and Fortran whose guests move while they run, over TCP, with messages under way."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site
from tests.mpi.installations import HERE, OPENMPI4, Builds
from tests.testbed.long_job import BOOT_S, MOVE_S
from tests.testbed.mpi_program import barriers, uploaded
from tests.testbed.test_evacuation import ended, host_of, order
from tests.testbed.test_jobs import start

TWO_HOSTS = ("--hosts", "2", "--guests-per-host", "1", "--guest-memory", "288MiB")


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("shim"))


@pytest.fixture(params=["c", "fortran"])
def folder(request: pytest.FixtureRequest, site: Site, builds: Builds) -> Iterator[str]:
    """The folder of a program that runs until `stop` is in it."""
    if request.param == "c":
        binary = builds.c(OPENMPI4, HERE / "programs.c")
    else:
        binary = builds.fortran(OPENMPI4, HERE / "loop_mpi_f08.f90")
    with uploaded(site, binary) as folder:
        yield folder


@pytest.fixture
def job(site: Site, services: Services, folder: str) -> Iterator[subprocess.Popen[str]]:
    """The program as a job on two hosts; its hosts are in service again afterwards."""
    process = start(site, "failavoid", "run", *TWO_HOSTS, "--", f"{folder}/program", "pending_messages", folder)
    yield process
    if process.poll() is None:
        site.run(site.head, "touch", f"{folder}/stop")
        process.communicate(timeout=MOVE_S)
    for host in services.membership().hosts:
        if host.pool == "defunct":
            services.restore(host.name)


def test_a_program_computes_on_while_its_guest_moves(site, services, folder, job):
    assert wait_until(lambda: barriers(site, folder, 0) > 5, BOOT_S), "the program did not start"
    ident = next(known.id for known in services.membership().jobs if known.state == "running")
    told = ended(services, order(services, host_of(services, ident)))
    assert (told.state, told.error) == ("RETIRED", "")
    assert {step.name: step.detail for step in told.steps}["gathered"] == "1 of 1 guests ready"
    left = [barriers(site, folder, rank) for rank in (0, 1)]
    assert wait_until(lambda: all(barriers(site, folder, rank) > left[rank] + 5 for rank in (0, 1)), 60), (
        "ranks do not run on"
    )
    site.run(site.head, "touch", f"{folder}/stop")
    _, errors = job.communicate(timeout=MOVE_S)
    assert job.returncode == 0, errors  # the program in C compares every message that it gets
    lines = [line for line in errors.splitlines() if f"failavoid: job {ident}: guest" in line]
    assert len(lines) == 1, errors
    assert f"guest {told.migrations[0].guest} moved" in lines[0]
