"""How exposed a systemd unit leaves the machine, as systemd itself rates it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def exposure(path: Path) -> float:
    """0 (safe) to 10 of a unit's file; the program that it starts need not be on this machine."""
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    print(done.stdout)  # pytest shows it where the rating is too high
    return float(found[1])
