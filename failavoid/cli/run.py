"""`failavoid run`: get guests for a job, start MPI in them as the user, follow the job to its end.

MPI's launcher runs here, as the user, and starts its daemons in the guests over SSH. The daemons' connections stay
open while guests move, since guests keep their addresses.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from failavoid.cli.api import call
from failavoid.cli.settings import CliError, load
from failavoid.shared.messages import Job, JobRequest, Membership, from_dict, to_dict

READY_S = 3600.0
LOOK_S = 1.0
LOST_STATUS = 75  # the job died with a guest: it may be run again (EX_TEMPFAIL)
# what a job's ranks need to know; mpirun hands nothing else of the environment on
_HANDED_ON = ("FAILAVOID_JOB", "FAILAVOID_EVERY", "FAILAVOID_LIMIT_S", "PYTHONPATH")


@dataclass
class RunRequest:
    """The words of the command line."""

    program: list[str]
    ranks: int
    hosts: int
    guests_per_host: int
    guest_memory: str
    policy: str
    every: int
    name: str


def run_job(request: RunRequest) -> int:
    """Run the job and return the program's exit status. Raises CliError."""
    user = pwd.getpwuid(os.getuid())
    key = _key(Path(user.pw_dir))
    asked = JobRequest(
        user=user.pw_name,
        uid=user.pw_uid,
        gid=user.pw_gid,
        public_key=key.with_suffix(".pub").read_text().strip(),
        hosts=request.hosts,
        guests_per_host=request.guests_per_host,
        guest_memory_kb=kilobytes(request.guest_memory),
        policy=request.policy,
        every=request.every,
        name=request.name,
    )
    job = from_dict(Job, call("resource_manager", "POST", "/jobs", to_dict(asked)))
    say(f"job {job.id}: waiting for {request.hosts * request.guests_per_host} guests on {request.hosts} hosts")
    ended = Ending(job.id)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        job = _wait_until_ready(job.id)
        status, message = _launch(job, request, key, Path(user.pw_dir))
    except KeyboardInterrupt:
        ended.report(130, "ended by its user")
        say(f"job {job.id} was ended")
        return 130
    except CliError:
        ended.report(1, "not started")
        raise
    ended.report(status, message)
    if message:
        say(f"job {job.id}: {message}")
    return status


def kilobytes(text: str) -> int:
    """Read a size such as 512MiB or 2G. Raises CliError."""
    match = re.fullmatch(r"(\d+)\s*([KMG])i?B?", text.strip(), re.IGNORECASE)
    if not match:
        raise CliError(f"{text!r} is not a size of memory: write it as 512MiB or 2GiB", 2)
    return int(match[1]) * {"k": 1, "m": 1024, "g": 1024**2}[match[2].lower()]


def say(text: str) -> None:
    """Tell the person at the terminal; standard output is the program's."""
    print(f"failavoid: {text}", file=sys.stderr, flush=True)


@dataclass
class Ending:
    """Tells the resource manager that the job is over, so that its hosts are free."""

    job: str

    def report(self, status: int, message: str) -> None:
        """Report the end; a resource manager that is away is told of, and finds out by itself."""
        try:
            call("resource_manager", "POST", f"/jobs/{self.job}/ended", {"exit_status": status, "message": message})
        except CliError as error:
            say(f"the end of {self.job} could not be reported: {error}")


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _key(home: Path) -> Path:
    """The user's key for guests, made once."""
    key = home / ".ssh" / "failavoid"
    if not key.exists():
        key.parent.mkdir(mode=0o700, exist_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "failavoid", "-f", str(key)], check=True)
    return key


def _wait_until_ready(ident: str) -> Job:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        job = from_dict(Job, call("resource_manager", "GET", f"/jobs/{ident}"))
        if job.state == "ready":
            return job
        if job.state == "failed":
            raise CliError(f"job {ident} could not be started: {job.message}")
        time.sleep(0.25)
    raise CliError(f"job {ident} was not ready within {READY_S:.0f} s")


def _launch(job: Job, request: RunRequest, key: Path, home: Path) -> tuple[int, str]:
    """Start MPI in the job's guests and follow it; returns the exit status and what is to be said of it."""
    folder = home / ".failavoid" / "jobs" / job.id
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = mpirun(job, request, key, folder)
    environment = {**os.environ, "FAILAVOID_JOB": job.id, "FAILAVOID_EVERY": str(request.every)}
    environment.setdefault("PYTHONPATH", "/opt/failavoid/lib")
    call("resource_manager", "POST", f"/jobs/{job.id}/started", {"command": request.program})
    say(f"job {job.id}: {shlex.join(request.program)} on {' '.join(job.guests)}")
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        while True:
            try:
                status = process.wait(LOOK_S)
                return (status if status >= 0 else 128 - status), ""
            except subprocess.TimeoutExpired:
                lost = _why_lost(job.id)
                if lost:
                    _end(process)
                    return LOST_STATUS, lost
    except KeyboardInterrupt:
        _end(process)
        raise


def mpirun(job: Job, request: RunRequest, key: Path, folder: Path) -> list[str]:
    """Open MPI's command line for a job, with the files it needs in ``folder``."""
    guests = [line.split()[0].split(",")[0] for line in job.known_hosts.splitlines() if line.strip()]
    slots = -(-request.ranks // len(guests)) if request.ranks else 1
    (folder / "known_hosts").write_text(job.known_hosts)
    (folder / "hosts").write_text("".join(f"{guest} slots={slots}\n" for guest in guests))
    settings = load()
    ssh = [
        "ssh",
        "-i",
        str(key),
        "-o",
        f"UserKnownHostsFile={folder / 'known_hosts'}",
        "-o",
        "StrictHostKeyChecking=yes",
    ]
    ssh += ["-o", "BatchMode=yes", "-o", "ForwardX11=no", "-o", "LogLevel=ERROR"]
    command = [
        "mpirun",
        "-n",
        str(request.ranks or len(guests)),
        "--hostfile",
        str(folder / "hosts"),
        "--oversubscribe",
    ]
    command += [
        "--mca",
        "plm_rsh_agent",
        " ".join(ssh),
        "--mca",
        "plm_rsh_no_tree_spawn",
        "1",
        "--mca",
        "plm_rsh_num_concurrent",
        "64",
    ]
    # guests talk TCP alone: it is what survives a move
    command += ["--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--bind-to", "none"]
    if settings.mpi_network:
        for framework in ("btl_tcp", "oob_tcp"):
            command += ["--mca", f"{framework}_if_include", settings.mpi_network]
    command += settings.mpi_arguments
    for name in _HANDED_ON:
        if name in os.environ or name in ("FAILAVOID_JOB", "FAILAVOID_EVERY", "PYTHONPATH"):
            command += ["-x", name]
    return [*command, *request.program]


def _why_lost(ident: str) -> str:
    """A sentence if the resource manager gave the job up, else empty; no answer is no sentence."""
    try:
        membership: Any = call("resource_manager", "GET", "/membership", timeout=5)
    except CliError:
        return ""
    job = next((job for job in from_dict(Membership, membership).jobs if job.id == ident), None)
    return job.message or "it was ended" if job and job.state == "failed" else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End MPI's launcher and all it started here; it may hang on guests that are gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(3)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
