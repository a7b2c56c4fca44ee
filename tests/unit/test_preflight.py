"""What is said before a testbed is made on a machine that can't have it."""

from pathlib import Path

import pytest

from failavoid.shared import containers
from failavoid.shared.containers import Container
from failavoid.shared.preflight import Facts, look, problems

BASE, STORE = Path("/var/lib/failavoid/testbed"), Path("/var/lib/failavoid/sysimage")


def make_testbed(*declared):
    default = (Container("host01", "host", "10.77.1.1", 2048), Container("host02", "host", "10.77.1.2", 2048))
    return containers.Testbed(BASE, STORE, "failavoid0", "10.77.0.254", 16, list(declared or default))


def good(**changes):
    facts = Facts(memory_mib=8192, disk_mib={str(BASE): 9000, str(STORE): 9000}, has_image=True)
    for name, value in changes.items():
        setattr(facts, name, value)
    return facts


def test_a_good_machine_has_no_problem():
    own = good(routes=[("10.77.0.0/16", "failavoid0"), ("192.0.2.0/24", "eth0")], devices={"failavoid0": "bridge"})
    assert problems(good(), make_testbed()) == []
    assert problems(own, make_testbed()) == []


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        (good(root=False), ["run this as root"]),
        (good(system=("fedora", "41")), ["fedora 41", "Debian 12 and 13"]),
        (good(processor="aarch64"), ["processor is aarch64", "for x86_64"]),
        (good(missing_programs=["lxcfs", "ip"]), ["lxcfs", "apt-get install iproute2 lxcfs"]),
        (good(memory_mib=4000), ["4000 MiB are available", "4608 MiB are needed", "testbed_host_memory_mib"]),
        (good(disk_mib={str(BASE): 100, str(STORE): 9000}), [str(BASE), "100 MiB free", "300 MiB are needed"]),
        (good(disk_mib={str(BASE): 900, str(STORE): 900}, has_image=False), [str(STORE), "2048 MiB are needed"]),
        (good(devices={"failavoid0": "dummy"}), ["failavoid0", "no bridge (dummy)", "testbed_host_bridge"]),
        (good(cables={"host01": "other0", "host02": "failavoid0"}), ["host01", "other0", "name this host differently"]),
        (good(routes=[("10.0.0.0/8", "tun0")]), ["10.77.0.0/16 overlaps 10.0.0.0/8", "tun0", "testbed_host_address"]),
    ],
)
def test_a_problem_names_the_thing_and_the_way_out(facts, named):
    (problem,) = problems(facts, make_testbed())
    for words in named:
        assert words in problem


def test_an_address_outside_the_network_and_one_given_twice_are_named():
    testbed = make_testbed(Container("a", "host", "10.78.0.1", 1), Container("b", "host", "10.77.0.254", 1))
    outside, twice = problems(good(), testbed)
    assert "10.78.0.1 is outside of 10.77.0.0/16" in outside
    assert "b and this machine have the same address" in twice


def test_all_problems_are_told_at_once():
    facts = good(root=False, memory_mib=1, devices={"failavoid0": "dummy"})
    assert len(problems(facts, make_testbed())) == 3


def test_memory_that_is_not_in_use_at_once_need_not_be_there():
    assert problems(good(memory_mib=3000), make_testbed(), memory_share=0.5) == []


def test_looking_at_this_machine_changes_nothing_and_tells_figures(tmp_path):
    testbed = containers.Testbed(tmp_path / "testbed", tmp_path / "store", "failavoid9", "10.77.0.254", 16)
    facts = look(testbed)
    assert facts.memory_mib > 0
    assert facts.disk_mib[str(testbed.base)] > 0
    assert not any(tmp_path.iterdir())
