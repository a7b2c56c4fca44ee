"""A site whose hosts boot the system image over the network: `make netboot`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from failavoid.demo.site import Site
from tests.netboot import place


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """A head that serves; what runs of it is ended in the end."""
    try:
        yield place.make()
    finally:
        place.clean()


@pytest.fixture(scope="session")
def booted(site: Site) -> Iterator[place.Machine]:
    """A machine that has booted so, prepared by the roles that make it a host of guests."""
    machine = place.Machine(place.BIOS)
    try:
        machine.await_ssh()
        place.play(site.inventory, "roles.yml", "--limit", f"{place.HEAD}:{place.BIOS.name}")
        yield machine
    finally:
        machine.end()
