"""What deploying a site takes from the machine that runs Ansible, looked at without changing anything."""

from __future__ import annotations

import getpass
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Iterator, List

MODULES = ("hatchling", "pip")  # which pack the services, in the Python that runs Ansible
UV = "uv"  # which installs them on the head
COMPILERS = ("gcc", "make")  # of the MPI wrapper's library


def problems(folders: List[str], library: bool) -> List[str]:
    """Return what this machine lacks, a sentence each, with the way out.

    ``folders`` are those that deploying writes to; ``library`` is whether the MPI wrapper's library is built here.
    """
    return [*_programs(library), *_folders(folders)]


def _programs(library: bool) -> Iterator[str]:
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if shutil.which(UV, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}") is None:
        missing.append(UV)
    if missing:
        yield (
            f"The machine that runs Ansible lacks {', '.join(missing)} beside {sys.executable}, which pack the "
            "services for the head: 'make venv' installs them, and so does the extra failavoid[deploy]."
        )
    missing = [name for name in COMPILERS if library and shutil.which(name) is None]
    if missing:
        yield (
            f"The machine that runs Ansible lacks {', '.join(missing)}, which build the MPI wrapper's library: "
            f"'apt-get install {' '.join(missing)}', or set mpi_wrapper_library to false, for mpi4py alone."
        )


def _folders(folders: List[str]) -> Iterator[str]:
    for folder in dict.fromkeys(folders):
        place = Path(folder)
        while not place.exists():
            place = place.parent
        if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
            yield (
                f"{getpass.getuser()} can't write {folder} on the machine that runs Ansible: make it theirs, run this "
                "as root there, or set service_common_cache and guest_cache to folders that they have."
            )
