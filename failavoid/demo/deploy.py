"""Runs the playbooks that make the testbed and deploy the system, and says what they do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from failavoid.demo.progress import Progress

_PLAY_OR_TASK = re.compile(r"^(PLAY|TASK|RUNNING HANDLER) \[(.*)\] \**$")
_FAILED = re.compile(r"^(?:fatal|failed): \[([^\]]+)\].* =>\s*$")
_LAST_LINES = 25


class PlaybookError(Exception):
    """A playbook that failed; the message says what its failed tasks said, and where the whole log is."""


def run_playbook(progress: Progress, project: Path, inventory: Path, playbook: str, log: Path) -> None:
    """Run a playbook of the project; each task is a line of progress. Raises PlaybookError."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        copy = log.open("w")
    except OSError as error:
        raise PlaybookError(f"{log} can't be written ({error.strerror}): run this as root, or remove it") from error
    command = [
        str(Path(sys.executable).parent / "ansible-playbook"),
        "-i",
        str(inventory),
        str(project / "playbooks" / playbook),
    ]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(project / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true",  # or a task is named only when its first host has ended it
    }
    with (
        copy,
        subprocess.Popen(
            command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            copy.write(line)
            if match := _PLAY_OR_TASK.match(line.strip()):
                progress.note(match[2] if match[1] == "PLAY" else f"  {match[2]}")
    if process.returncode:
        output = log.read_text()
        words = failures(output) or output.strip().splitlines()[-_LAST_LINES:]
        raise PlaybookError("\n".join([f"playbooks/{playbook} failed.", *words, f"The whole log: {log}"]))


def failures(output: str) -> list[str]:
    """What the failed tasks of a playbook's output said, each thing once with the hosts that said it."""
    lines = output.splitlines()
    hosts: dict[str, list[str]] = {}
    for number, line in enumerate(lines):
        if failed := _FAILED.match(line):
            following = range(number + 1, len(lines))
            end = next((n for n in following if lines[n] and not lines[n].startswith(" ")), len(lines))
            if end == len(lines) or lines[end] != "...ignoring":
                hosts.setdefault(_message("\n".join(lines[number + 1 : end])), []).append(failed[1])
    return [f"{', '.join(sorted(set(names)))}: {words}" for words, names in hosts.items() if words]


def _message(result: str) -> str:
    """The message of a task's result as Ansible prints it in YAML; empty if there is none."""
    try:
        parsed: Any = yaml.safe_load(result)
    except yaml.YAMLError:
        return ""
    return str(parsed.get("msg") or "").strip() if isinstance(parsed, dict) else ""
