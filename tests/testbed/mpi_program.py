"""A compiled MPI program in the user's home, as head and guests see it, and its barriers."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from failavoid.demo.job import USER
from failavoid.demo.site import Site
from tests.testbed.long_job import HOME


@contextlib.contextmanager
def uploaded(site: Site, program: Path) -> Iterator[str]:
    """The folder in which ``program`` lies; it is removed afterwards.

    Each program has one of its own: for a while the NFS server goes by what it saw under a name before.
    """
    folder = f"{HOME}/mpi-program-{time.time_ns()}"
    site.run(site.head, "install", "-d", "-o", USER, folder)
    try:
        with program.open("rb") as file:
            command = ["sh", "-c", f"cat >{folder}/program && chmod 0755 {folder}/program"]
            subprocess.run(site.ssh(site.head, *command), stdin=file, check=True)
        yield folder
    finally:
        site.run(site.head, "rm", "-rf", folder)


def barriers(site: Site, folder: str, rank: int) -> int:
    """The number of barriers that a rank of tests/mpi/programs.c has left, from the file it writes."""
    said = site.run(site.head, "od", "-An", "-tu8", f"{folder}/{rank}", check=False).split()
    return int(said[1]) if len(said) > 1 else 0
