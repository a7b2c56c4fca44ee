"""Puts the MPI wrapper's library into a wheel, which is then for this processor's architecture alone.

Only where it is asked for (make wheel), since the wheel that serves every machine has no binary in it.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "libfailavoid-mpi.so"


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Build the library with the machine's C compiler and lay it beside the package failavoid.mpi."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name what is to be added. Raises CalledProcessError if the library can't be built."""
        build = Path(self.root) / "build" / "wheel"
        made = build / LIBRARY
        shim = Path(self.root) / "failavoid" / "mpi" / "shim"
        subprocess.run(["make", "--silent", "-C", str(shim), f"BUILD={build}", str(made)], check=True)
        build_data["force_include"][str(made)] = f"failavoid/mpi/{LIBRARY}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
