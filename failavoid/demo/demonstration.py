"""From nothing to the report: the testbed, the system on it, the three runs."""

from __future__ import annotations

import time
from pathlib import Path

from failavoid.demo.deploy import run_playbook
from failavoid.demo.observe import Services, connect
from failavoid.demo.progress import Progress
from failavoid.demo.runs import Run, perform
from failavoid.demo.scale import Scale
from failavoid.demo.site import Site, read_inventory

TESTBED = "the testbed's hosts"
SYSTEM = "the system on them"
RUNS = ("control", "protected", "memory_hog_application")
REPORT = "the report"


def run_demonstration(project: Path, scale: Scale, testbed_only: bool) -> int:
    """Make the testbed, do the runs, write the report; returns the exit status.

    Raises PlaybookError, DemonstrationError or CommandError, whose words are for the person at the terminal.
    """
    plan = [TESTBED, SYSTEM, *(() if testbed_only else (*RUNS, REPORT))]
    progress = Progress(plan)
    inventory = project / "inventories" / scale.inventory
    logs = project / "build" / "logs"
    with progress.step(TESTBED):
        run_playbook(progress, project, inventory, "testbed.yml", logs / "testbed.log")
    with progress.step(SYSTEM):
        run_playbook(progress, project, inventory, "demo.yml", logs / "demo.log")
        run_playbook(progress, project, inventory, "site.yml", logs / "site.log")
    if testbed_only:
        return 0
    site = read_inventory(inventory)
    return 0
