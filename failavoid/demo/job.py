"""A job of the demonstration: started by its user on the head, followed through its output."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from failavoid.demo.scale import Growth, Scale
from failavoid.demo.site import Site

USER = "demo"
_JOB_ID = re.compile(r"\bjob (job-[a-z0-9-]+|[a-z0-9-]+-\d+)\b")


@dataclass
class RunningJob:
    """The user's `failavoid run` on the head, and what it has printed so far."""

    process: subprocess.Popen[str]
    began: float
    output: list[tuple[float, str]] = field(default_factory=list)  # (time, line)
    reader: threading.Thread | None = None

    def said(self, text: str) -> bool:
        """Whether a line that holds ``text`` has been printed."""
        return any(text in line for _, line in self.output)

    def wait_for(self, text: str, timeout: float) -> bool:
        """Wait until ``text`` is printed; False if the job ends or ``timeout`` seconds pass before."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.said(text):
                return True
            if self.process.poll() is not None:
                return self.said(text)
            time.sleep(0.1)
        return False

    def wait(self, timeout: float) -> int | None:
        """Wait for the end of the job and return its exit status; None after ``timeout`` seconds."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        if self.reader:
            self.reader.join(5)
        return status

    def end(self) -> None:
        """End the job if it still runs: closing its terminal is what a user's lost connection does."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)


def start_job(
    site: Site, scale: Scale, name: str, policy: str, growth: Growth, on_line: Callable[[str], None], *more: str
) -> RunningJob:
    """Start the application as a job of the demonstration's user; ``on_line`` gets each line it prints.

    ``more`` are further words for the application.
    """
    command = [
        "runuser",
        "-u",
        USER,
        "--",
        "env",
        "-C",
        f"/home/{USER}",
        f"HOME=/home/{USER}",
        "failavoid",
        "run",
        "-n",
        str(scale.guests),
        "--hosts",
        str(scale.hosts_in_use),
        "--guests-per-host",
        str(scale.guests_per_host),
        "--guest-memory",
        f"{scale.guest_memory_mb}MiB",
        "--policy",
        policy,
        "--job-name",
        name,
        "--",
        "python3",
        "-m",
        "failavoid.mpi",
        f"/home/{USER}/application.py",
        "--start-mb",
        str(growth.start_mb),
        "--grow-mb-s",
        str(growth.rate_mb_s),
        "--limit-mb",
        str(growth.limit_mb),
        "--hold-s",
        str(growth.hold_s),
        *more,
    ]
    process = subprocess.Popen(
        site.ssh(site.head, *command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    job = RunningJob(process, time.time())

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            job.output.append((time.time(), line.rstrip("\n")))
            on_line(line.rstrip("\n"))

    job.reader = threading.Thread(target=read, daemon=True, name=f"output of {name}")
    job.reader.start()
    return job
