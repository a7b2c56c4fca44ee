"""One MPI job that computes on while its guests are moved about, and the evacuations it goes through."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from failavoid.demo.job import USER, RunningJob, start_job
from failavoid.demo.observe import Services, wait_until
from failavoid.demo.scale import Growth, Scale
from failavoid.demo.site import Site
from failavoid.shared.messages import EVACUATION_ENDS, Evacuation, Guest, from_dict

HOME = f"/home/{USER}"
BOOT_S, MOVE_S, RESTORE_S = 300.0, 240.0, 90.0
STEADY = Growth(start_mb=20, rate_mb_s=1, limit_mb=24, hold_s=3600)


@dataclass
class LongJob:
    """A job on some hosts of the testbed that runs until it is told to end."""

    site: Site
    services: Services
    job: RunningJob
    ident: str
    go: str  # the file that lets the program go on

    def guests(self) -> list[Guest]:
        """Its guests as the resource manager knows them."""
        return [guest for guest in self.services.membership().guests if guest.job == self.ident]

    def hosts(self) -> list[str]:
        """The hosts its guests are on, by name."""
        return sorted({guest.host for guest in self.guests()})

    def iterations(self) -> int:
        """How many lines of progress it has printed."""
        return sum("iteration" in line for _, line in self.job.output)

    def goes_on(self, timeout: float = 60.0) -> bool:
        """Whether the job computes: two more lines of progress."""
        seen = self.iterations()
        return wait_until(lambda: self.iterations() >= seen + 2, timeout)

    def evacuate(self, host: str) -> str:
        """Order the evacuation of a host; its name."""
        answer = self.services.controller.post("/evacuations", json={"host": host, "reason": "a test"})
        answer.raise_for_status()
        return str(answer.json()[0]["id"])

    def evacuation(self, name: str) -> Evacuation | None:
        """What the controller says of an evacuation, None while it does not answer."""
        with contextlib.suppress(httpx.HTTPError):
            answer = self.services.controller.get(f"/evacuations/{name}")
            if answer.status_code == 200:
                return from_dict(Evacuation, answer.json())
        return None

    def until(self, name: str, reached: Callable[[Evacuation], bool], timeout: float = MOVE_S) -> Evacuation:
        """Wait until an evacuation has come so far, and return it."""
        last: list[Evacuation] = []

        def look() -> bool:
            found = self.evacuation(name)
            if found is not None:
                last[:] = [found]
            return found is not None and reached(found)

        assert wait_until(look, timeout, interval=0.02), f"{name} came no further than {last}"
        return last[0]

    def ended(self, name: str) -> Evacuation:
        """Wait for an evacuation's end."""
        return self.until(name, lambda evacuation: evacuation.state in EVACUATION_ENDS)

    def places(self) -> dict[str, list[str]]:
        """On which hosts libvirt has each guest of the job, running or not: every host is asked itself."""
        names = {guest.name for guest in self.guests()}
        found: dict[str, list[str]] = {name: [] for name in names}
        for host in self.site.groups["hypervisor"]:
            for name in self.site.run(host, "virsh", "list", "--all", "--name").split():
                if name in names:
                    found[name].append(host)
        return found

    def services_answer(self) -> bool:
        """Whether the resource manager and the controller answer, within half a minute: they may have been killed."""

        def answer() -> bool:
            try:
                self.services.membership()
                return self.services.controller.get("/evacuations").status_code == 200
            except httpx.HTTPError:
                return False

        return wait_until(answer, 30)

    def restore(self) -> None:
        """Bring every marked host back into service; of one that has just come back the agent may not be heard yet."""
        refusals: dict[str, str] = {}

        def restored() -> bool:
            refusals.clear()
            for host in self.services.membership().hosts:
                if host.marks:
                    try:
                        self.services.restore(host.name)
                    except httpx.HTTPStatusError as error:
                        refusals[host.name] = error.response.text
            return not refusals

        assert wait_until(restored, RESTORE_S, interval=2.0), refusals

    def free(self) -> int:
        """How many hosts are free, and held by no lease."""
        hosts = self.services.membership().hosts
        return sum(host.pool == "free" and not host.reason.startswith("leased to") for host in hosts)

    def finish(self) -> int | None:
        """Let the program come to its end; its exit status.

        The word is written in a guest, by way of the NFS server, which would not see at once what is written beside it.
        """
        ssh = ["ssh", "-F", f"{HOME}/.failavoid/jobs/{self.ident}/ssh_config", self.guests()[0].address]
        as_user = ["runuser", "-u", USER, "--", "env", f"HOME={HOME}"]
        self.site.run(self.site.head, *as_user, *ssh, f"echo stop >{self.go}")
        return self.job.wait(MOVE_S)


@contextlib.contextmanager
def long_job(site: Site, services: Services, hosts: int, guests_per_host: int, memory_mb: int) -> Iterator[LongJob]:
    """Start the demonstration's program on so many hosts; it is ended, and all hosts restored, afterwards."""
    go = f"{HOME}/go-{time.time_ns()}"
    site.run(site.head, "sh", "-c", f"echo go >{go}; chown {USER} {go}")
    scale = Scale("long", "testbed", hosts, 1, guests_per_host, memory_mb, STEADY, STEADY)
    job = start_job(site, scale, "long", "migrate", STEADY, print, "--while-go", go)
    try:
        assert job.wait_for("iteration", BOOT_S), "the application did not start"
        ident = next(job.id for job in services.membership().jobs if job.state == "running")
        yield LongJob(site, services, job, ident, go)
    finally:
        job.end()
        site.run(site.head, "rm", "-f", go)
        for host in services.membership().hosts:
            if host.pool == "defunct":
                with contextlib.suppress(httpx.HTTPError):
                    services.restore(host.name)
        time.sleep(1)
