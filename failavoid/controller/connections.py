"""Keeps SSH connections to all hosts open, so that an evacuation need not wait for them."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from failavoid.playbook_runner import CONNECTIONS_STAY_S, run_playbook

log = logging.getLogger(__name__)

PLAYBOOK = "connect.yml"
_TIMEOUT_S = 120.0


def keep_connections(inventory: Path, log_dir: Path, stop: threading.Event) -> None:
    """Connect again and again until ``stop``; for a thread of its own. Says which hosts can't be reached."""
    said: list[str] = []
    while True:
        try:
            result = run_playbook(PLAYBOOK, inventory, {}, "connect", log_dir, _TIMEOUT_S)
            result.log.unlink(missing_ok=True)
            failures = sorted(result.failures)
        except OSError as error:
            failures = [str(error)]
        if failures and failures != said:
            log.warning("hosts that can't be reached can't be evacuated: %s", "; ".join(failures))
        said = failures
        if stop.wait(CONNECTIONS_STAY_S / 2):
            return
