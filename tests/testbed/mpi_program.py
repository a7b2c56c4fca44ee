"""Compiled MPI programs in the user's home, as head and guests see it, and their barriers."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from failavoid.demo.job import USER
from failavoid.demo.site import Site
from tests.testbed.long_job import HOME


@contextlib.contextmanager
def uploaded(site: Site, files: Mapping[str, Path], do: str = "world") -> Iterator[str]:
    """The folder in which these files lie by their names, as programs; it is removed afterwards.

    ``do`` is what a program of tests/mpi does first. Each folder is a new one: for a while the NFS server goes by what
    it saw under a name before.
    """
    folder = f"{HOME}/mpi-program-{time.time_ns()}"
    site.run(site.head, "install", "-d", folder)
    try:
        for name, path in files.items():
            with path.open("rb") as file:
                command = ["sh", "-c", f"cat >{folder}/{name} && chmod 0755 {folder}/{name}"]
                subprocess.run(site.ssh(site.head, *command), stdin=file, check=True)
        site.run(site.head, "sh", "-c", f"echo {do} >{folder}/do; chown -R {USER} {folder}")
        yield folder
    finally:
        site.run(site.head, "rm", "-rf", folder)


def counter(folder: str, rank: int) -> str:
    """The command that prints what a rank of tests/mpi/programs.c writes: its process, and the barriers it has left."""
    return f"od -An -tu8 {folder}/{rank}"


def count(printed: str) -> int:
    """The number of barriers by that; 0 if there is nothing yet."""
    words = printed.split()
    return int(words[1]) if len(words) > 1 else 0


def barriers(site: Site, folder: str, rank: int) -> int:
    """The number of barriers that a rank has left, as the head sees it: some time later, by way of the NFS server."""
    return count(site.run(site.head, *counter(folder, rank).split(), check=False))
