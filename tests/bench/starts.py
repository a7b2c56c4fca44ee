"""How long a job takes to start: in guests of the warm pool, in guests that boot for it, and what Python adds."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site
from tests.bench.jobs import GUEST_MEMORY, remove_idle_guests
from tests.bench.results import Samples, add
from tests.testbed.mpi_program import uploaded
from tests.testbed.test_jobs import JOB_S, as_user, last_job
from tests.testbed.warm_guests import FILL_S, warm, warm_guests

TWO_GUESTS = ("--hosts", "1", "--guests-per-host", "2", "--guest-memory", GUEST_MEMORY, "--job-name", "bench")
PYTHON = """
import os, sys
def note(what):
    open(f"{sys.argv[1]}/{what}-{os.uname().nodename}-{os.getpid()}", "w").close()
note("main")
import numpy
from mpi4py import MPI
note("imported")
"""


def measure(site: Site, services: Services, program: Path, rounds: int) -> Samples:
    """Start jobs on two guests: `warm_start_s` and `cold_start_s` to the first rank in main, in C.

    `python_import_s`: of numpy and mpi4py in a rank in Python, whose start is beside that as quick.
    """
    samples: Samples = {}
    with warm_guests(site, services, 2):
        for number in range(1, rounds + 1):
            remove_idle_guests(services, keep_warm=True)
            if not wait_until(lambda: warm(services) == 2, FILL_S):
                raise TimeoutError(f"the warm pool was not full within {FILL_S:.0f} s: see 'failavoid guests'")
            add(samples, named(started(site, services, program), "warm"))
            print(f"warm start {number}/{rounds}: {samples['warm_start_s'][-1]} s", flush=True)
    for number in range(1, rounds + 1):
        remove_idle_guests(services)
        add(samples, named(started(site, services, program), "cold"))
        add(samples, {"python_import_s": imports(site, program)})
        told = f"{samples['cold_start_s'][-1]} s, imports {samples['python_import_s'][-1]} s"
        print(f"cold start {number}/{rounds}: {told}", flush=True)
    return samples


def named(figures: dict[str, float], kind: str) -> dict[str, float]:
    """Name a start's figures after its kind."""
    return {f"{kind}_{name}": value for name, value in figures.items()}


def started(site: Site, services: Services, program: Path) -> dict[str, float]:
    """Run the program in C as a job; seconds from the job's acceptance to the first rank in main, and to MPI there."""
    with uploaded(site, {"program": program}) as folder:
        run(site, f"{folder}/program", folder)
        times = marks(site, folder)
        submitted = last_job(services).created
        return {"start_s": min(times["main"]) - submitted, "start_to_mpi_s": times["init"][0] - submitted}


def imports(site: Site, program: Path) -> float:
    """Run a program in Python in the guests that are left; seconds from main to the last rank's imports."""
    with uploaded(site, {"program": program}) as folder:
        path = f"{folder}/start.py"
        site.run(site.head, "sh", "-c", f"printf %s {shlex.quote(PYTHON)} >{path}; chmod 0644 {path}")
        run(site, "python3", path, folder)
        times = marks(site, folder)
        return max(times["imported"]) - min(times["main"])


def run(site: Site, *words: str) -> None:
    """Run a job to its end. Raises RuntimeError with what it says if it fails; ctrl-C does not reach its client."""
    command = as_user(site, "failavoid", "run", *TWO_GUESTS, "--", *words)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=JOB_S)
    except BaseException:
        process.terminate()  # as a lost connection: the job's client ends it
        process.wait()
        raise
    if process.returncode:
        raise RuntimeError(f"{words[0]} ended with {process.returncode}: {errors.strip()}")


def marks(site: Site, folder: str) -> dict[str, list[float]]:
    """The times of the files that ranks have left in a folder, by kind, earliest first; seconds since the epoch."""
    found: dict[str, list[float]] = {}
    for line in site.run(site.head, "find", folder, "-name", "*-*", "-type", "f", "-printf", "%T@ %f\n").splitlines():
        moment, name = line.split()
        found.setdefault(name.split("-")[0], []).append(float(moment))
    return {kind: sorted(times) for kind, times in found.items()}
