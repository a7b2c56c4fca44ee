"""Runs the project's playbooks from a service, in any thread, and returns what the tasks said.

Every run has a private folder of its own, in RAM where there is one, readable by nobody else and removed
afterwards; only the log stays, while it is one of the newest. A run's return code alone proves nothing (a playbook that
matches no host ends with 0): callers look into ``host_results`` for the things they asked for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ansible_runner
import psutil

log = logging.getLogger(__name__)

# How often a run looks whether it was cancelled or has run out of time, in seconds.
_LOOK_EVERY_S = 0.25
_FORKS = 32
LOGS_KEPT = 300  # in a folder; older ones go
CONNECTIONS_STAY_S = 1800  # SSH connections stay open for the next run
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_TASK_FAILED = ("runner_on_failed", "runner_on_unreachable")
_TASK_ENDED = ("runner_on_ok", *_TASK_FAILED)

OnEvent = Callable[[str, str, dict[str, Any]], None]


@dataclass
class PlaybookResult:
    """How a run ended.

    ``status`` is successful, failed, canceled or timeout; ``host_results`` holds the last result of each task
    by host and task name, with the seconds since the epoch when the task ``_began`` and ``_ended`` on this
    machine's clock; ``failures`` are sentences for people; ``log`` is the playbook's output.
    """

    rc: int
    status: str
    log: Path
    host_results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing failed; whether anything was done, ``host_results`` tells."""
        return self.rc == 0 and not self.failures


def project_folder() -> Path:
    """Where playbooks, roles, library and module_utils are: the checkout, or beside the installed package.

    Raises FileNotFoundError.
    """
    places = (Path(__file__).resolve().parents[1], Path(sys.prefix) / "share" / "failavoid")
    for place in places:
        if (place / "playbooks").is_dir():
            return place
    raise FileNotFoundError(
        f"no playbooks in {' or '.join(map(str, places))}: install failavoid from its wheel, or run it from a checkout"
    )


def run_playbook(
    playbook: str,
    inventory: Path,
    extra_vars: dict[str, Any],
    ident: str,
    log_dir: Path,
    timeout_s: float,
    limit: str | None = None,
    on_event: OnEvent | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> PlaybookResult:
    """Run ``playbook`` (a name below playbooks/, or a path) and wait for its end.

    ``ident`` names the log file. ``on_event(host, task, result)`` is called as each host ends a task.
    ``cancelled`` is asked a few times a second; when it says so, or after ``timeout_s`` seconds, the
    playbook's processes on this machine are killed, while what they started on hosts ends by its own rules.
    Raises FileNotFoundError for a playbook or inventory that is not there; whatever goes wrong later is in
    the result.
    """
    path = project_folder() / "playbooks" / playbook
    for kind, needed in (("playbook", path), ("inventory", inventory)):
        if not needed.exists():
            raise FileNotFoundError(f"the {kind} {needed} does not exist")
    log_dir.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix="failavoid-playbook-", dir=_ram_folder()))
    try:
        run = _Run(private, time.monotonic() + timeout_s, on_event, cancelled)
        return run.perform(path, inventory.absolute(), extra_vars, ident, log_dir, limit)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _ram_folder() -> str | None:
    """Return a folder in RAM: the service's own runtime directory, which systemd clears, or /dev/shm."""
    for folder in (os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0], "/dev/shm"):
        if folder and os.access(folder, os.W_OK):
            return folder
    return None


@dataclass
class _Run:
    """One run, while it lasts."""

    private: Path
    deadline: float
    on_event: OnEvent | None
    cancelled: Callable[[], bool] | None
    results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failed_tasks: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    no_hosts: bool = False
    timed_out: bool = False

    def perform(
        self,
        playbook: Path,
        inventory: Path,
        extra_vars: dict[str, Any],
        ident: str,
        log_dir: Path,
        limit: str | None,
    ) -> PlaybookResult:
        # As files that only this user can read: ansible-runner would put the variables on a command line,
        # and forgets settings it is given as an argument.
        environment = self.private / "env"
        environment.mkdir(mode=0o700)
        _write_private(environment / "extravars", extra_vars)
        _write_private(environment / "settings", {"pexpect_timeout": _LOOK_EVERY_S})
        runner = ansible_runner.run(
            private_data_dir=str(self.private),
            playbook=str(playbook),
            inventory=str(inventory),
            limit=limit,
            envvars=_environment(self.private, log_dir),
            suppress_env_files=True,
            quiet=True,
            ident="run",
            event_handler=self.event,
            cancel_callback=self.shall_end,
        )
        status = "timeout" if self.timed_out else str(runner.status)
        log_file = _keep_log(self.private / "artifacts" / "run" / "stdout", log_dir / f"{ident}.log")
        rc = int(runner.rc) if runner.rc is not None else 254
        return PlaybookResult(rc, status, log_file, self.results, self.failures(rc, status, playbook.name))

    def event(self, event: dict[str, Any]) -> bool:
        """Note what a task said; False: the event need not be written to a file."""
        kind, data = event.get("event", ""), event.get("event_data") or {}
        if kind in _TASK_ENDED:
            self.task_ended(kind, data)
        elif kind == "playbook_on_no_hosts_matched":
            self.no_hosts = True
        text = _COLOURS.sub("", event.get("stdout") or "")
        if kind in ("verbose", "error") and "ERROR" in text:
            self.complaints.append(text.strip())
        return False

    def task_ended(self, kind: str, data: dict[str, Any]) -> None:
        host, task = str(data.get("host")), str(data.get("task"))
        result = {
            **(data.get("res") or {}),
            "_began": _seconds(data.get("start")),
            "_ended": _seconds(data.get("end")),
        }
        self.results.setdefault(host, {})[task] = result
        if kind in _TASK_FAILED and not data.get("ignore_errors"):
            self.failed_tasks += [f"{host}: {task}: {message}" for message in _messages(result)]
        if self.on_event:
            try:
                self.on_event(host, task, result)
            except Exception:
                log.exception("%s: the result of %r could not be handled", host, task)

    def shall_end(self) -> bool:
        self.timed_out = time.monotonic() > self.deadline
        if not self.timed_out and not (self.cancelled and self.cancelled()):
            return False
        _kill_playbook(str(self.private / "artifacts" / "run"))
        return True

    def failures(self, rc: int, status: str, playbook: str) -> list[str]:
        found = list(self.failed_tasks) if rc else []  # with 0, failed tasks were rescued
        if status == "timeout":
            found.append(f"{playbook} was ended because its time was up")
        elif status == "canceled":
            found.append(f"{playbook} was cancelled")
        elif rc and not found:
            found = self.complaints or [f"{playbook} ended with status {rc} without naming a failed task"]
        if self.no_hosts:
            found.append(f"{playbook}: no host of the inventory matched a play, so nothing was done")
        return found


def _environment(private: Path, log_dir: Path) -> dict[str, str]:
    """Say by variables what ansible.cfg says in the checkout: an installed service has no such file."""
    project = project_folder()
    home = log_dir.absolute() / ".ansible"
    empty = private / "ansible.cfg"  # so that no ansible.cfg of this machine has a say
    empty.touch(mode=0o600)
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "ANSIBLE_CONFIG": str(empty),
        "ANSIBLE_HOME": str(home),
        "ANSIBLE_LOCAL_TEMP": str(private / "tmp"),
        "ANSIBLE_ROLES_PATH": str(project / "roles"),
        "ANSIBLE_LIBRARY": str(project / "library"),
        "ANSIBLE_MODULE_UTILS": str(project / "module_utils"),
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_GATHERING": "explicit",
        "ANSIBLE_FORKS": str(_FORKS),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        # kept between runs, so that the next one finds its connections open
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(home / "cp"),
        "ANSIBLE_SSH_ARGS": (
            f"-o ControlMaster=auto -o ControlPersist={CONNECTIONS_STAY_S}s -o PreferredAuthentications=publickey"
            " -o ServerAliveInterval=5 -o ServerAliveCountMax=3"  # a host that died must not be waited for
        ),
    }


def _write_private(path: Path, data: dict[str, Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(data, file)


def _seconds(moment: str | None) -> float:
    """Return the time of an event's UTC time stamp, or now."""
    if not moment:
        return time.time()
    return datetime.fromisoformat(moment).replace(tzinfo=timezone.utc).timestamp()


def _messages(result: dict[str, Any]) -> list[str]:
    """Return what a failed task says; of a loop, what its failed items say."""
    items = [item for item in result.get("results") or [] if isinstance(item, dict) and item.get("failed")]
    if items:
        return [message for item in items for message in _messages(item)]
    message = str(result.get("msg") or result.get("stderr") or result.get("censored") or "it failed without a word")
    return [message.strip()]


def _keep_log(output: Path, kept: Path) -> Path:
    """Append a run's output to its log, and remove the oldest logs beside it.

    A run that is repeated under one name keeps its past.
    """
    with (
        contextlib.suppress(FileNotFoundError),
        output.open("rb") as source,
        open(kept, "ab", opener=lambda path, flags: os.open(path, flags, 0o640)) as target,
    ):
        shutil.copyfileobj(source, target)
    for old in sorted(kept.parent.glob("*.log"), key=_written)[:-LOGS_KEPT]:
        old.unlink(missing_ok=True)
    return kept


def _written(path: Path) -> float:
    """When a file was last written, 0 if another run has just removed it."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _kill_playbook(artifacts: str) -> None:
    """Kill ansible-playbook with its workers, which have sessions of their own, and their ssh clients."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.environ().get("AWX_ISOLATED_DATA_DIR") == artifacts:
                child.suspend()  # or it would start more while we look
                family = child.children(recursive=True)
                for process in [child, *family]:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
