"""The site's own commands, run when a host is alarmed, retired or restored."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass

from failavoid.resource_manager.settings import Hooks

log = logging.getLogger(__name__)

_LONGEST_OUTPUT = 2000  # bytes of what a command says


@dataclass(frozen=True)
class Occasion:
    """What a command is told, in its environment: FAILAVOID_EVENT, _HOST, _REASON, _EVACUATION, _JOB."""

    event: str  # alarm | retire | restore
    host: str
    reason: str
    evacuation: str = ""
    job: str = ""

    def is_same(self, other: Occasion) -> bool:
        """Whether it is the same act on the host, asked for again; an evacuation may put its reason otherwise."""
        return (self.event, self.evacuation or self.reason) == (other.event, other.evacuation or other.reason)

    def environment(self) -> dict[str, str]:
        """The variables; the service's own are handed on."""
        told = {name: str(value) for name, value in vars(self).items()}
        return os.environ | {f"FAILAVOID_{name.upper()}": value.replace("\0", "") for name, value in told.items()}


def run(hooks: Hooks, occasion: Occasion) -> list[str]:
    """Run an occasion's commands one after the other; returns what failed, a sentence each."""
    failures = []
    for command in getattr(hooks, occasion.event):
        trouble = _run(command, occasion, hooks.timeout_s)
        if trouble:
            about = " ".join(filter(None, [occasion.host, occasion.evacuation, occasion.job]))
            log.error("hook %s, %s: %s", occasion.event, about, trouble)
            failures.append(trouble)
    return failures


class UnderWay:
    """An occasion's commands, run in a thread of their own. ``failures`` are known when they have ``ended``."""

    def __init__(self, occasion: Occasion) -> None:
        self.occasion = occasion
        self.ended = threading.Event()
        self.failures = ["they could not be run, see this service's log"]

    def run(self, hooks: Hooks) -> None:
        """Run them all."""
        try:
            self.failures = run(hooks, self.occasion)
        finally:
            self.ended.set()


def _run(command: str, occasion: Occasion, timeout_s: float) -> str:
    """Run one command in a session of its own, so that its children end with it; returns why it failed."""
    with tempfile.TemporaryFile() as output:  # not a pipe, which a child that outlives the command would hold
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                env=occasion.environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            return f"{command!r} could not be run: {error}"
        try:
            process.wait(timeout_s)
            end = f"ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            end = f"was ended after {timeout_s:g} s"
        output.seek(0)
        said = " ".join(output.read(_LONGEST_OUTPUT).decode(errors="replace").split())
    words = f"{command!r} {end}" + (f": {said}" if said else "")
    if process.returncode:
        return words
    log.info("hook %s of %s: %s", occasion.event, occasion.host, words)
    return ""
