"""Each test of this folder runs on the MPIs at hand, by the ways in which ranks can take part there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mpi.installations import THOROUGH, Builds, Flavour
from tests.mpi.site import Controller, Site


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module", params=THOROUGH, ids=lambda flavour: flavour.name)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """Overridden by tests that are for other flavours (pytest.mark.parametrize)."""
    flavour: Flavour = request.param
    if flavour.missing:
        pytest.skip(flavour.missing)
    return flavour


@pytest.fixture
def site(flavour: Flavour, tmp_path: Path, builds: Builds) -> Iterator[Site]:
    """For a job of the test's own."""
    if flavour.missing:
        pytest.skip(flavour.missing)
    site = Site(flavour, tmp_path, Controller(), builds)
    yield site
    site.close()
