"""Tests on a real testbed: `make test` makes it; `make testbed` does so by hand."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from failavoid.demo.observe import Services, connect
from failavoid.demo.site import CommandError, Site, read_inventory

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def inventory() -> Path:
    """The inventory of the testbed that runs: FAILAVOID_INVENTORY, by default inventories/testbed."""
    return Path(os.environ.get("FAILAVOID_INVENTORY", PROJECT / "inventories" / "testbed"))


@pytest.fixture(scope="session")
def site(inventory: Path) -> Site:
    """The testbed's hosts; a test without them fails and says how to get them."""
    site = read_inventory(inventory)
    try:
        site.run(site.head, "true")
    except CommandError as error:
        pytest.fail(f"the testbed does not run ({error}); make it with 'make testbed'")
    return site


@pytest.fixture(scope="session")
def services(site: Site) -> Services:
    """The three services on the testbed's head, as operator."""
    return connect(site)


@pytest.fixture(scope="session")
def own_address(site: Site) -> str:
    """This machine's address on the testbed's network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:
        towards.connect((site.hosts[site.head]["ansible_host"], 9))
        return str(towards.getsockname()[0])


@pytest.fixture(scope="module")
def empty_hosts(site: Site, services: Services) -> list[str]:
    """Two hosts without guests: those that ended jobs have left there for the next ones are removed."""
    hosts = site.groups["hypervisor"][-2:]
    for guest in services.membership().guests:
        if guest.host in hosts:
            assert guest.job is None, f"{guest.name} on {guest.host} is in use by {guest.job}"
            services.remove_guest(guest.name)
    return hosts
