"""`failavoid top`, as a program that asks real services."""

import os
import subprocess
import sys

import pexpect
import pytest
from display_site import SECRET, site

from failavoid.shared.tokens import mint

PROGRAM = [sys.executable, "-c", "from failavoid.cli.main import app; app()", "top"]


@pytest.fixture
def there(tmp_path):
    with site(tmp_path) as (made, url):
        made.until(lambda: len(made.monitor.store.last()) == 5)
        environment = {
            **os.environ,
            "FAILAVOID_MONITOR_URL": url,
            "FAILAVOID_RESOURCE_MANAGER_URL": made.settings.resource_manager,
            "FAILAVOID_CONTROLLER_URL": made.settings.controller,
            "FAILAVOID_TOKEN": mint(SECRET, "reader", "someone"),
            "COLUMNS": "120",
            "LINES": "40",
        }
        yield made, environment


def test_one_picture_has_the_pools_every_host_and_its_memory(there):
    made, environment = there
    made.used["host2"] = 0.6
    made.until(lambda: any(one.metrics["mem_available_kb"] < 0.5 * 2**21 for one in made.monitor.store.last()))
    done = subprocess.run([*PROGRAM, "--once"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 free  3 allocated  0 suspect  0 defunct")
    hosts = [line.split()[0] for line in lines if line.startswith("host") and "memory" not in line]
    assert hosts[0] == "host2"  # the fullest first
    assert sorted(hosts) == [f"host{n}" for n in range(1, 6)]


def test_on_a_terminal_it_shows_an_evacuation_as_it_goes_until_ctrl_c(there):
    made, environment = there
    made.world.stuck = True
    made.far(30, 10)
    made.world.ranks_behave()
    (evacuation,) = made.world.controller.order("host1", "fan is loud", "ada")
    made.world.until_state(evacuation, "MIGRATING")
    child = pexpect.spawn(
        PROGRAM[0], [*PROGRAM[1:], "--every", "0.3"], env=environment, dimensions=(40, 120), timeout=120
    )
    child.expect(f"{evacuation.id}.*host1 -> host4.*MIGRATING.*75% sent")
    made.world.stuck = False
    child.expect(f"{evacuation.id}.*RETIRED")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_service_that_is_away_is_one_sentence(there):
    _, environment = there
    environment["FAILAVOID_CONTROLLER_URL"] = "http://127.0.0.1:1"
    done = subprocess.run([*PROGRAM, "--once"], env=environment, capture_output=True, text=True)
    assert done.returncode == 5
    assert "the controller does not answer at http://127.0.0.1:1" in done.stderr
