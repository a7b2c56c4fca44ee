"""MPI programs in C and Fortran whose guests move while they run, over TCP, with messages of all kinds under way.

What ranks write is read in the first rank's guest, where it can be seen at once: the head sees it half a minute later.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site
from tests.mpi.installations import OPENMPI4, Builds
from tests.testbed.long_job import BOOT_S, MOVE_S
from tests.testbed.mpi_program import count, counter, uploaded
from tests.testbed.test_evacuation import ended, host_of, order
from tests.testbed.test_jobs import guests_of, in_guest, last_job, start

TWO_HOSTS = ("--hosts", "2", "--guests-per-host", "1", "--guest-memory", "288MiB")


@dataclass(frozen=True)
class Program:
    """What runs in two guests: which files, a scenario of tests/mpi/programs.c, what it does, and in how many ranks."""

    files: Callable[[Builds], dict[str, Path]]
    scenario: str
    does: str
    ranks: int


PROGRAMS = {
    # messages that are on their way at the barrier, large and small, and one-sided operations
    "c": Program(lambda builds: {"c": builds.c(OPENMPI4)}, "alone", "one_sided", 2),
    # a rank of each in each guest; threads of those in C go on sending each other messages
    "c_and_fortran": Program(lambda builds: builds.c_and_fortran(OPENMPI4), "ring", "world", 4),
}


@dataclass
class RunningProgram:
    """The program as a job."""

    site: Site
    services: Services
    folder: str
    process: subprocess.Popen[str]

    def barriers(self) -> int:
        """How many barriers the first rank has left, and with it all others; 0 before it runs."""
        return count(self.in_first_guest(counter(self.folder, 0)))

    def in_first_guest(self, command: str) -> str:
        job = last_job(self.services)
        return in_guest(self.site, job, guests_of(self.services, job)[0], command) if job.state == "running" else ""

    def stop(self) -> str:
        """Let it come to its end; what it says on standard error."""
        self.in_first_guest(f"echo stop >{self.folder}/do")
        return self.process.communicate(timeout=MOVE_S)[1]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("shim"))


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest, site: Site, services: Services, builds: Builds) -> Iterator[RunningProgram]:
    """A program that runs until it is stopped, on two hosts; they are in service again afterwards."""
    chosen = PROGRAMS[request.param]
    with uploaded(site, chosen.files(builds), chosen.does) as folder:
        words = ["-n", str(chosen.ranks), *TWO_HOSTS, "--", f"{folder}/{request.param}", chosen.scenario, folder]
        over_tcp = "OMPI_MCA_osc=pt2pt"  # one-sided operations too, and not by UCX
        running = RunningProgram(site, services, folder, start(site, "env", over_tcp, "failavoid", "run", *words))
        yield running
        if running.process.poll() is None:
            running.stop()
        for host in services.membership().hosts:
            if host.pool == "defunct":
                services.restore(host.name)


def test_a_program_computes_on_while_its_guest_moves(services, program):
    assert wait_until(lambda: program.barriers() > 5, BOOT_S), "the program did not start"
    ident = last_job(services).id
    told = ended(services, order(services, host_of(services, ident)))
    assert (told.state, told.error) == ("RETIRED", "")
    assert {step.name: step.detail for step in told.steps}["gathered"] == "1 of 1 guests ready"
    left = program.barriers()
    assert wait_until(lambda: program.barriers() > left + 5, 60), "ranks do not run on"
    errors = program.stop()
    assert program.process.returncode == 0, errors  # ranks in C look at every message that they get
    lines = [line for line in errors.splitlines() if f"failavoid: job {ident}: guest" in line]
    assert len(lines) == 1, errors
    assert f"guest {told.migrations[0].guest} moved" in lines[0]
