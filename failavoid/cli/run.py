"""`failavoid run`: get guests for a job, start MPI in them as the user, follow the job to its end.

MPI's launcher runs here, as the user, and starts its daemons in the guests over SSH. The daemons' connections stay
open while guests move, since guests keep their addresses. It ends with this program, however that ends; the resource
manager ends a job whose client it does not hear any more.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from failavoid.cli import mpi
from failavoid.cli.api import call
from failavoid.cli.follower import Follower
from failavoid.cli.interrupts import Interrupts
from failavoid.cli.settings import REFUSED, WRONG_WORDS, CliError, load, user
from failavoid.shared.messages import Job, JobRequest, from_dict, to_dict

READY_S = 3600.0
SAY_EVERY_S = 10.0
END_S = 5.0  # for MPI's launcher to end its ranks
END_AFTER_LOSS_S = 1.0  # the same where a guest is gone: the launcher would wait for that guest's answer in vain
PATIENCE_S = 60.0  # with a resource manager that is being restarted
LOST_STATUS = 75  # the job died with a guest: it may be run again (EX_TEMPFAIL)
ENDED_BY_USER = 130
KEPT_RUNS = 100


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
    on_deadline: str = ""
    guest_vcpus: int = 1
    on_hosts: bool = False
    expected_time: str = ""
    hardware_class: str = ""
    guest_hugepages: str = ""
    guest_devices: list[str] = field(default_factory=list)
    on_devices: str = ""


def run_job(request: RunRequest) -> int:
    """Run the job and return the program's exit status. Raises CliError."""
    memory_kb = kilobytes(request.guest_memory)
    hugepage_kb = None if request.guest_hugepages == "" else hugepage_size(request.guest_hugepages)
    expected_s = seconds(request.expected_time) if request.expected_time else None
    who = user()
    if who.pw_uid == 0:
        raise CliError("jobs do not run as root: run this as an ordinary user", REFUSED)
    if shutil.which("mpirun") is None:
        raise CliError("mpirun is not on this host: jobs are started on the head")
    try:
        key = user_key(Path(who.pw_dir))
        asked = JobRequest(
            user=who.pw_name,
            uid=who.pw_uid,
            gid=who.pw_gid,
            public_key=key.with_suffix(".pub").read_text().strip(),
            hosts=hosts_for(request),
            guests_per_host=request.guests_per_host,
            guest_memory_kb=memory_kb,
            policy=request.policy,
            every=request.every,
            name=request.name,
            guest_vcpus=request.guest_vcpus,
            hardware_class=request.hardware_class,
            resource="hosts" if request.on_hosts else "",
            expected_s=expected_s,
            on_deadline=request.on_deadline,
            guest_hugepage_kb=hugepage_kb,
            guest_devices=request.guest_devices,
            on_devices=request.on_devices,
        )
        return _follow(asked, request, key, Path(who.pw_dir))
    except OSError as error:
        raise CliError(f"the job's files can't be written: {error}") from error


def hosts_for(request: RunRequest) -> int:
    """The number of hosts: as asked for, or so many that each rank has a core of a guest."""
    cores = request.guests_per_host * request.guest_vcpus
    return request.hosts or (1 if request.on_hosts else max(1, -(-request.ranks // cores)))


def kilobytes(text: str) -> int:
    """Read a size such as 512MiB or 2G. Raises CliError."""
    match = re.fullmatch(r"(\d+)\s*([KMG])i?B?", text.strip(), re.IGNORECASE)
    if not match:
        raise CliError(f"{text!r} is not a size of memory: write it as 512MiB or 2GiB", WRONG_WORDS)
    return int(match[1]) * {"k": 1, "m": 1024, "g": 1024**2}[match[2].lower()]


def hugepage_size(text: str) -> int:
    """Read the size of a hugepage in kB; "none" is 0, for ordinary pages. Raises CliError."""
    return 0 if text.strip().lower() == "none" else kilobytes(text)


def seconds(text: str) -> float:
    """Read a duration such as 90s, 30m, 2h, 1d or 1:30:00. Raises CliError."""
    text = text.strip().lower()
    if match := re.fullmatch(r"(\d+)([smhd])", text):
        return float(int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]])
    if match := re.fullmatch(r"(\d+):([0-5]\d):([0-5]\d)", text):
        return float(int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3]))
    raise CliError(f"{text!r} is not a duration: write it as 90s, 30m, 2h, 1d or 1:30:00", WRONG_WORDS)


def say(text: str) -> None:
    """Tell the person at the terminal; standard output is the program's."""
    print(f"failavoid: {text}", file=sys.stderr, flush=True)


def user_key(home: Path) -> Path:
    """The user's key for guests, made once. Raises CliError or OSError."""
    key = home / ".ssh" / "failavoid"
    key.parent.mkdir(mode=0o700, exist_ok=True)
    with (key.parent / ".failavoid.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not key.exists() or not key.with_suffix(".pub").exists():
            key.unlink(missing_ok=True)  # or ssh-keygen would ask
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "failavoid", "-f", str(key)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode:
                raise CliError(f"no key could be made for guests: {done.stderr.strip()}")
    return key


def _follow(asked: JobRequest, request: RunRequest, key: Path, home: Path) -> int:
    """From the job's acceptance to its end, which the resource manager is told whatever happens."""
    interrupts = Interrupts()
    follower: Follower | None = None
    status, message = 1, "it was not started"
    try:
        with interrupts.held():
            follower = Follower(from_dict(Job, call("resource_manager", "POST", "/jobs", to_dict(asked))))
        job = _wait_until_ready(follower)
        status, message = _launch(job, request, key, home, follower, interrupts)
    except KeyboardInterrupt:
        status, message = ENDED_BY_USER, "ended by its user"
    finally:
        interrupts.ignore()
        if follower is not None:
            follower.stop()
            message = _report(follower.job.id, status, message)
    if follower is not None and message:
        say(f"job {follower.job.id}: {message}")
    return LOST_STATUS if _is_loss(message) and status != 0 else status


def _wait_until_ready(follower: Follower) -> Job:
    job, began = follower.job, time.monotonic()
    if job.state == "allocating":
        say(f"job {job.id}: waiting for {len(job.guests)} guests on {job.request.hosts} hosts")
    while not follower.wait_until_allocated(SAY_EVERY_S):
        waited = time.monotonic() - began
        if waited > READY_S:
            raise CliError(f"job {job.id} was not ready within {READY_S:.0f} s")
        say(f"job {job.id}: {_up(job)} of {len(job.guests)} guests are up after {waited:.0f} s")
    job = follower.job
    if job.ended is not None:
        raise CliError(f"job {job.id} could not be started: {job.message}")
    return job


def _up(job: Job) -> int:
    guests = call("resource_manager", "GET", "/membership", patience_s=PATIENCE_S)["guests"]
    return sum(guest["job"] == job.id and guest["state"] == "ready" for guest in guests)


def _launch(
    job: Job, request: RunRequest, key: Path, home: Path, follower: Follower, interrupts: Interrupts
) -> tuple[int, str]:
    """Start MPI where the job is to run and follow it; returns the exit status and what is to be noted of it."""
    folder = run_folder(home, job.id)
    environment = mpi.environment_of(job, request.every, dict(os.environ))
    command = mpi.prepare(job, request.ranks, key, folder, home / ".failavoid" / "ssh", load())
    command = [*_tied_to_this_process(), *command, *mpi.handed_on(environment), *request.program]
    started = {"command": request.program}
    call("resource_manager", "POST", f"/jobs/{job.id}/started", started, patience_s=PATIENCE_S)
    say(f"job {job.id}: {shlex.join(request.program)} on {' '.join(job.guests or job.hosts)}")
    if job.resource == "hosts":
        say(f"job {job.id}: it runs without guests: an alarm leads to a notice and a checkpoint, never to a move")
    process: subprocess.Popen[bytes] | None = None
    try:
        with interrupts.held():
            process = running = subprocess.Popen(command, env=environment, start_new_session=True)
        follower.at_end(lambda: _end(running, END_AFTER_LOSS_S if _is_loss(follower.job.message) else END_S))
        status = interrupts.wait(process)
    except KeyboardInterrupt:
        if process is not None:
            _end(process)
        raise
    if follower.job.ended is not None:
        ended = follower.job.message or "it was ended"
        return LOST_STATUS if _is_loss(ended) else ENDED_BY_USER, ended
    return (status if status >= 0 else 128 - status), ""


def _tied_to_this_process() -> list[str]:
    """Words before a command that end it when this program is killed, and can't end it any more."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


def run_folder(home: Path, job: str) -> Path:
    """A folder for the files of a job; those of long ended ones go."""
    runs = home / ".failavoid" / "jobs"
    folder = runs / job
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / ".failavoid" / "ssh").mkdir(mode=0o700, exist_ok=True)
    for old in sorted(runs.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT_RUNS]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _is_loss(message: str) -> bool:
    return "was lost on host" in message


def _report(ident: str, status: int, message: str) -> str:
    """Tell the resource manager that the job is over, so that its hosts are free; returns what it knows of the end."""
    try:
        body = {"exit_status": status, "message": message}
        return str(call("resource_manager", "POST", f"/jobs/{ident}/ended", body, patience_s=PATIENCE_S)["message"])
    except CliError as error:
        say(f"the end of {ident} could not be reported ({error}); 'failavoid end {ident}' frees its hosts")
        return message


def _end(process: subprocess.Popen[bytes], patience_s: float = END_S) -> None:
    """End MPI's launcher and all it started here, by force if that takes it longer than ``patience_s``.

    The ranks end with it: MPI's daemons on the guests end theirs when they lose the launcher.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(patience_s)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
