"""Runs the playbooks that make the testbed and deploy the system, and says what they do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from pathlib import Path

from failavoid.demo.progress import Progress

_PLAY_OR_TASK = re.compile(r"^(PLAY|TASK|RUNNING HANDLER) \[(.*)\] \**$")


class PlaybookError(Exception):
    """A playbook that failed; the message carries its last lines and where the whole log is."""


def run_playbook(progress: Progress, project: Path, inventory: Path, playbook: str, log: Path) -> None:
    """Run a playbook of the project; each task is a line of progress. Raises PlaybookError."""
    log.parent.mkdir(parents=True, exist_ok=True)
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
    last: deque[str] = deque(maxlen=25)
    with (
        log.open("w") as copy,
        subprocess.Popen(
            command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            copy.write(line)
            last.append(line)
            if match := _PLAY_OR_TASK.match(line.strip()):
                progress.note(match[2] if match[1] == "PLAY" else f"  {match[2]}")
    if process.returncode:
        words = "".join(last).strip()
        raise PlaybookError(f"playbooks/{playbook} failed:\n{words}\nThe whole log: {log}")
