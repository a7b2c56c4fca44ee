"""From nothing to the report: the testbed, the system on it, the three runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from failavoid.demo.deploy import run_playbook
from failavoid.demo.observe import connect, kernel_log
from failavoid.demo.page import cards_of
from failavoid.demo.progress import Progress
from failavoid.demo.record import make_record
from failavoid.demo.report import write_report
from failavoid.demo.runs import DemonstrationError, Run, clean_up, perform
from failavoid.demo.scale import Scale
from failavoid.demo.site import CommandError, read_inventory

TESTBED = "the testbed's hosts"
SYSTEM = "the system on them"
RUNS = ("control", "protected", "memory_hog_application")
REPORT = "the report"
LOCK = Path("/run/failavoid-demo.lock")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep a second command from the testbed while this one uses it. Raises CommandError.

    The kernel gives the lock up with its process.
    """
    try:
        lock = LOCK.open("a+")
    except OSError as error:
        raise CommandError(f"{LOCK} can't be opened ({error.strerror}): run this as root") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CommandError(
                f"the testbed is in use by process {lock.read().strip()}, which makes it or runs the demonstration: "
                "wait for its end, or end it"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        try:
            yield
        finally:
            LOCK.unlink(missing_ok=True)


def run_demonstration(project: Path, scale: Scale, testbed_only: bool) -> int:
    """Make the testbed, do the runs, write the report; returns the exit status: 0 if all went as it should.

    Raises PlaybookError, DemonstrationError or CommandError, whose words are for the person at the terminal.
    """
    progress = Progress([TESTBED, SYSTEM, *(() if testbed_only else (*RUNS, REPORT))])
    inventory = project / "inventories" / scale.inventory
    logs = project / "build" / "logs"
    if not testbed_only:
        kernel_log()  # where it can't be read, that is said before anything is changed
    with progress.step(TESTBED):
        run_playbook(progress, project, inventory, "testbed.yml", logs / "testbed.log")
    with progress.step(SYSTEM):
        run_playbook(progress, project, inventory, "demo.yml", logs / "demo.log")
        run_playbook(progress, project, inventory, "site.yml", logs / "site.log")
    if testbed_only:
        return 0
    site = read_inventory(inventory)
    services = connect(site)
    runs: list[Run] = []
    folder = project / "build" / "demo"
    try:
        for name, policy, growth, with_hog in (
            ("control", "off", scale.growth, True),
            ("protected", "migrate", scale.growth, True),
            ("memory_hog_application", "migrate", scale.hog_growth, False),
        ):
            with progress.step(name):
                runs.append(perform(site, services, progress, scale, name, policy, growth, with_hog))
    except (DemonstrationError, CommandError):
        if runs:
            with contextlib.suppress(CommandError):  # what stopped it is to be said
                write_report(make_record(site, scale, runs, _wall(progress)), folder)
                progress.note(f"what the runs before it have shown: {folder / 'report.html'}")
        raise
    with progress.step(REPORT):
        clean_up(site, services, progress)
        report = write_report(make_record(site, scale, runs, _wall(progress)), folder)
    return tell(report, folder)


def _wall(progress: Progress) -> dict[str, float]:
    """Seconds by what the report calls the parts, of those that were done."""
    seconds = progress.seconds
    return {"testbed": seconds[TESTBED] + seconds[SYSTEM], **{name: seconds[name] for name in RUNS if name in seconds}}


def tell(report: dict[str, Any], folder: Path) -> int:
    """Print what the runs have shown; 0 if each ended as it should."""
    cards = cards_of(report).values()
    print()
    for card in cards:
        verdict = "as it should be" if card.expected else "NOT as it should be"
        print(f"  {card.number}  {card.title}: {card.outcome.lower()}; {card.figure} {card.unit}   ({verdict})")
        for fact in card.facts:
            print(f"       {fact}")
    for note in report["notes"]:
        print(f"  note   {note}")
    print(f"\nThe report: {folder / 'report.html'}")
    return 0 if all(card.expected for card in cards) else 1
