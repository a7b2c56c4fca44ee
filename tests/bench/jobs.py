"""Jobs that measurements run on the testbed, and what they leave: nothing."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from failavoid.demo.job import RunningJob
from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site
from failavoid.shared.messages import EVACUATION_ENDS
from tests.testbed.long_job import BOOT_S, MOVE_S, LongJob
from tests.testbed.mpi_program import barriers, uploaded
from tests.testbed.test_jobs import as_user

GUEST_MEMORY = "288MiB"


@contextlib.contextmanager
def barrier_job(site: Site, services: Services, program: Path) -> Iterator[tuple[LongJob, str]]:
    """tests/mpi/programs.c at its barriers in two guests on two hosts, and its folder.

    The client has a session of its own: ctrl-C ends the measurement, which then ends the job.
    """
    with uploaded(site, {"program": program}) as folder:
        words = ["--hosts", "2", "--guests-per-host", "1", "--guest-memory", GUEST_MEMORY, "--job-name", "bench"]
        process = subprocess.Popen(
            as_user(site, "failavoid", "run", *words, "--", f"{folder}/program", "loop", folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            if not wait_until(lambda: process.poll() is not None or barriers(site, folder, 0) > 5, BOOT_S):
                raise TimeoutError(f"the job did not reach a barrier within {BOOT_S:.0f} s: see 'failavoid jobs'")
            if process.poll() is not None:
                raise RuntimeError(f"the job ended with {process.returncode} before it began: see 'failavoid jobs'")
            ident = next(job.id for job in services.membership().jobs if job.state == "running")
            yield LongJob(site, services, RunningJob(process, time.time()), ident, f"{folder}/do"), folder
        finally:
            settle(services)
            site.run(site.head, "sh", "-c", f"echo stop >{folder}/do")
            end(site, services, process)


def end(site: Site, services: Services, process: subprocess.Popen[str]) -> None:
    """Have a job end that has been told to, or else end it; its hosts are in service again."""
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        for job in services.membership().jobs:
            if job.ended is None:
                site.run(site.head, "failavoid", "end", job.id, "--message", "the measurement is over", check=False)
        process.wait(60)
    for host in services.membership().hosts:
        if host.pool == "defunct":
            with contextlib.suppress(httpx.HTTPError):
                services.restore(host.name)


def settle(services: Services) -> None:
    """Wait for the end of evacuations that are under way: nobody is disturbed in the middle of a move."""

    def is_over() -> bool:
        try:
            return all(one["state"] in EVACUATION_ENDS for one in services.controller.get("/evacuations").json())
        except httpx.HTTPError:
            return False

    wait_until(is_over, MOVE_S)


def remove_idle_guests(services: Services, keep_warm: bool = False) -> None:
    """Remove the guests that ended jobs have left for the next ones, and those of a warm pool."""
    for guest in services.membership().guests:
        if guest.job is None and not (keep_warm and guest.state == "warm"):
            answer = services.resource_manager.delete(f"/guests/{guest.name}", timeout=120)
            if answer.status_code != 404:  # it has gone meanwhile
                answer.raise_for_status()
