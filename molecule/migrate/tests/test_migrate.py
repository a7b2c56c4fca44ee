"""A guest that has moved is on its destination alone, where it was to be, and reached at its old address."""

import pytest
import testinfra


@pytest.fixture
def on(request):
    """A host of the testbed, by its name."""
    inventory = request.config.getoption("--ansible-inventory")
    return lambda name: testinfra.get_host(f"ansible://{name}?ansible_inventory={inventory}")


def test_the_guest_runs_on_its_destination_alone(on):
    assert "running" in on("host05").check_output("virsh domstate molecule")
    assert on("host04").run("virsh domstate molecule").rc != 0


def test_it_is_pinned_to_the_destinations_core(on):
    assert on("host05").check_output("virsh vcpupin molecule 0").splitlines()[-1].split() == ["0", "1"]


def test_its_source_has_forgotten_it(on):
    assert not on("host04").file("/var/lib/failavoid/guests/molecule").exists
    assert "10.77.3.240" not in on("host04").check_output("nft list table bridge failavoid")


def test_it_is_reached_at_its_old_address(on):
    assert on("host01").run("ping -c 1 -W 10 10.77.3.240").rc == 0
