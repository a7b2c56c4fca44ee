"""Hosts as containers: made, found again, lost half-way, removed. On a testbed of its own beside the one that runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from failavoid.shared import containers
from tests.testbed.conftest import PROJECT

ANSIBLE = Path(sys.executable).parent / "ansible"
STORE = Path("/var/lib/failavoid/sysimage")
BASE = Path("/var/lib/failavoid/testbed-of-tests")
HOST = {"name": "try01", "node_class": "host", "address": "10.79.1.1", "memory_mib": 512}
WORDS = {"base": str(BASE), "store": str(STORE), "bridge": "failavoidt0", "address": "10.79.0.254/16"}
WORDS["group"] = "failavoidtry"


def module(**words):
    """Run the module as Ansible does, through a pipe, and return its result."""
    arguments = json.dumps({**WORDS, "containers": [HOST], **words})
    done = subprocess.run(
        [ANSIBLE, "-i", "localhost,", "-c", "local", "localhost", "-m", "failavoid_container", "-a", arguments],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return json.loads(done.stdout.partition(" => ")[2])


def traces():
    """What there is of the testbed of these tests, by any name."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if str(BASE) in line]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob("**/failavoidtry*")]
    found += [
        path.name for path in Path("/sys/class/net").iterdir() if "try01" in path.name or path.name == "failavoidt0"
    ]
    found += [str(BASE)] if BASE.exists() else []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = process.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(BASE) in text:
            found.append(text.replace("\0", " "))
    return found


@pytest.fixture(scope="module")
def testbed(site):
    """The testbed of these tests, whose one host runs."""
    module(state="absent")
    result = module()
    assert result.get("started") == ["try01"], result
    yield containers.Testbed(
        BASE, STORE, "failavoidt0", "10.79.0.254", 16, [containers.Container(**HOST)], "failavoidtry"
    )
    module(state="absent")


def in_host(testbed, *command):
    words = ["-i", BASE / "ssh/id_ed25519", "-o", f"UserKnownHostsFile={BASE}/ssh/known_hosts"]
    words += ["-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "root@10.79.1.1"]
    return subprocess.run(["ssh", *words, *command], capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_host_is_reached_over_ssh_with_its_own_key(testbed):
    assert in_host(testbed, "hostname").strip() == "try01"


def test_a_host_sees_its_own_memory_not_the_machines(testbed):
    assert "MemTotal:         524288 kB" in in_host(testbed, "cat", "/proc/meminfo")


def test_a_host_can_tell_how_long_its_processes_run(testbed):
    assert int(in_host(testbed, "ps", "-o", "etimes=", "-p", "1")) < 3600


def test_a_hosts_memory_limit_is_real(testbed):
    too_much = "python3 -c 'bytearray(700 << 20)'; echo status $?"
    assert "status 137" in in_host(testbed, too_much)


def test_a_host_has_a_bridge_with_its_address(testbed):
    (bridge,) = json.loads(in_host(testbed, "ip", "-json", "-4", "address", "show", "dev", "br0"))
    assert [a["local"] for a in bridge["addr_info"]] == ["10.79.1.1"]
    assert "br0" in in_host(testbed, "ip", "link", "show", "dev", "host0")


def test_all_of_a_hosts_system_came_up(testbed):
    assert in_host(testbed, "systemctl", "is-system-running", "--wait").strip() == "running"


def test_a_second_run_changes_nothing(testbed):
    before = containers.leader(testbed, "try01")
    assert module()["changed"] is False
    assert containers.leader(testbed, "try01") == before


def test_check_mode_tells_what_would_start_and_starts_nothing(testbed):
    other = {**HOST, "name": "try02", "address": "10.79.1.2"}
    arguments = json.dumps({**WORDS, "containers": [HOST, other]})
    command = [ANSIBLE, "-i", "localhost,", "-c", "local", "localhost", "--check", "-m", "failavoid_container"]
    done = subprocess.run([*command, "-a", arguments], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "try02" in done.stdout
    assert not testbed.folder("try02").exists()


def test_a_run_that_was_killed_half_way_is_coped_with(testbed):
    """Killed at the worst moment: supervisor gone, mounts and control groups still there, lxcfs dead."""
    for pid in [*containers._nspawns(testbed.folder("try01")), *testbed.groups.processes("lxcfs")]:
        os.kill(pid, signal.SIGKILL)
    result = module()
    assert result.get("started") == ["try01"], result
    assert "MemTotal:         524288 kB" in in_host(testbed, "cat", "/proc/meminfo")


def test_a_host_that_is_no_longer_declared_ends(testbed):
    other = {**HOST, "name": "try02", "address": "10.79.1.2", "memory_mib": 256}
    assert module(containers=[HOST, other])["started"] == ["try02"]
    assert module()["removed"] == ["try02"]
    assert not testbed.folder("try02").exists()


def test_a_host_of_another_testbed_is_not_touched_by_its_name(testbed, site):
    name = site.groups["hypervisor"][0]
    result = module(containers=[HOST, {**HOST, "name": name, "address": "10.79.1.3"}])
    assert f"{name}: another container of that name runs on this machine" in result["msg"]
    assert site.run(name, "hostname").strip() == name
    assert module()["removed"] == []


def test_cleaning_leaves_nothing_also_when_half_is_gone(testbed):
    for pid in containers._nspawns(testbed.folder("try01")):
        os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "link", "delete", "failavoidt0"], check=True)
    result = module(state="absent")
    assert result["changed"] is True, result
    deadline = time.monotonic() + 10
    while traces() and time.monotonic() < deadline:  # the kernel removes a dead namespace's devices in its own time
        time.sleep(0.2)
    assert traces() == []
    assert module(state="absent")["changed"] is False


def test_the_other_testbed_was_left_alone(testbed, site):
    for host in [site.head, *site.groups["hypervisor"]]:
        assert site.run(host, "hostname").strip() == host
