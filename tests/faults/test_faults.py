"""What fails while a host is evacuated: services, agents, daemons, hosts, the network. The job computes on.

One MPI job goes through all of it. After each fault: no guest is lost or runs twice, no lease is left, and the job's
messages are still right, which it checks by itself at every iteration.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site
from failavoid.shared.messages import EVACUATION_ENDS, Evacuation
from tests.testbed.long_job import LongJob, long_job

pytestmark = pytest.mark.timeout(
    1200
)  # the first test boots the job's guests, a fault takes a minute, moves are slowed

STATES = ("PREDICTED", "LEASED", "NOTICED", "GATHERED", "MIGRATING", "VERIFIED", "RELEASED", "RETIRED")
GUEST_MB = 288


@pytest.fixture(scope="module")
def job(site: Site, services: Services) -> Iterator[LongJob]:
    with long_job(site, services, hosts=2, guests_per_host=1, memory_mb=GUEST_MB) as job:
        yield job
        assert job.finish() == 0
        assert job.job.said("RESULT correct")


@pytest.fixture(autouse=True)
def nothing_is_left(job: LongJob) -> Iterator[None]:
    """Before and after each fault all is as it should be."""
    free = job.free()
    yield
    assert job.services_answer()
    job.restore()
    assert job.goes_on()
    assert all(len(hosts) == 1 for hosts in job.places().values()), job.places()
    assert {guest.name: [guest.host] for guest in job.guests()} == job.places()
    assert wait_until(lambda: job.free() == free, 30), "a host was not given back"
    for host in job.site.groups["hypervisor"]:
        held = set(job.site.run(host, "ls", "/var/lib/failavoid/guests", check=False).split())
        assert not held & {name for name, hosts in job.places().items() if host not in hosts}, host


def reached(state: str) -> Callable[[Evacuation], bool]:
    """Whether an evacuation has come so far, or has ended otherwise: then waiting would tell less than looking."""
    later = (*STATES[STATES.index(state) :], *EVACUATION_ENDS)
    return lambda evacuation: evacuation.state in later


def moved(job: LongJob, evacuation: Evacuation) -> None:
    """The evacuation has ended as it should, and every guest runs where it says."""
    assert (evacuation.state, evacuation.error) == ("RETIRED", "")
    assert job.services_answer()
    places = job.places()
    assert {m.guest: [m.destination] for m in evacuation.migrations} == {
        m.guest: places[m.guest] for m in evacuation.migrations
    }


def kill(site: Site, host: str, unit: str) -> None:
    """kill -9 a unit's main process; systemd starts it again."""
    site.run(host, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit)


@pytest.mark.parametrize("state", STATES[:-1])
def test_the_controller_is_killed(site, job, state):
    name = job.evacuate(job.hosts()[0])
    job.until(name, reached(state))
    kill(site, site.head, "failavoid-controller")
    moved(job, job.ended(name))


@pytest.mark.parametrize("state", ["LEASED", "MIGRATING", "VERIFIED"])
def test_the_resource_manager_is_killed(site, job, state):
    name = job.evacuate(job.hosts()[0])
    job.until(name, reached(state))
    kill(site, site.head, "failavoid-resource-manager")
    moved(job, job.ended(name))


def test_the_failing_hosts_agent_is_killed(site, job):
    source = job.hosts()[0]
    name = job.evacuate(source)
    kill(site, source, "failavoid-agent")
    moved(job, job.ended(name))


def slow(job: LongJob, host: str) -> None:
    """Guests leave the host with 8 MiB/s, so that there is time for something to happen."""
    for guest in job.guests():
        if guest.host == host:
            job.site.run(host, "virsh", "migrate-setspeed", guest.name, "8")


def under_way(job: LongJob, name: str) -> Evacuation:
    """Wait until memory is on its way."""
    evacuation = job.until(name, reached("MIGRATING"))
    time.sleep(1.5)
    return evacuation


def test_the_destinations_libvirt_is_killed_during_the_move(site, job):
    source = job.hosts()[0]
    slow(job, source)
    name = job.evacuate(source)
    evacuation = under_way(job, name)
    kill(site, str(evacuation.spare), "libvirtd")
    said = job.ended(name)
    # a spare whose libvirt was killed is a spare lost: the next one is taken, or a person is told why not
    if said.state == "RETIRED":
        moved(job, said)
    else:
        assert said.state in ("FAILED", "CANCELLED")
        assert str(evacuation.spare) in said.error


@contextlib.contextmanager
def off_the_network(host: str) -> Iterator[None]:
    """Have a host's cable unplugged, at the machine's end of it."""
    subprocess.run(["ip", "link", "set", f"vb-{host}", "down"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "set", f"vb-{host}", "up"], check=True)


def cut(host: str, seconds: float) -> None:
    """Cut a host's network for some time."""
    with off_the_network(host):
        time.sleep(seconds)


@contextlib.contextmanager
def dead(job: LongJob, host: str) -> Iterator[None]:
    """Have a host dead, as others see it: silent at once, its guests gone. It is back afterwards."""
    job.site.run(host, "systemd-run", "--quiet", "sh", "-c", "sleep 1; pkill -KILL qemu-system")
    with off_the_network(host):
        yield
    back = time.time()
    assert wait_until(lambda: job.services.latest()[host].time > back, 60), f"{host} did not come back"


def test_the_destination_dies_during_the_move_and_the_next_spare_is_taken(job):
    source = job.hosts()[0]
    slow(job, source)
    name = job.evacuate(source)
    spare = str(under_way(job, name).spare)
    with dead(job, spare):
        said = job.ended(name)
        pools = {host.name: host.pool for host in job.services.membership().hosts}
    assert spare in said.failed_spares, said
    assert said.spare != spare
    assert pools[spare] == "defunct", "somebody else may get the dead host"
    moved(job, said)


def test_the_destinations_network_is_cut_for_ten_seconds_during_the_move(job):
    source = job.hosts()[0]
    slow(job, source)
    name = job.evacuate(source)
    evacuation = under_way(job, name)
    cut(str(evacuation.spare), 10)
    said = job.ended(name)
    if said.state == "RETIRED":
        moved(job, said)
    else:
        assert str(evacuation.spare) in said.error


def test_the_nfs_server_stops_for_ten_seconds(site, job):
    name = job.evacuate(job.hosts()[0])
    site.run(site.head, "systemctl", "stop", "nfs-ganesha")
    time.sleep(10)
    site.run(site.head, "systemctl", "start", "nfs-ganesha")
    moved(job, job.ended(name))


def test_the_head_is_gone_for_a_minute_in_the_middle_of_an_evacuation_which_waits_for_it(site, job):
    name = job.evacuate(job.hosts()[0])
    job.until(name, reached("NOTICED"))
    cut(site.head, 60)
    moved(job, job.ended(name))
    marked = [host.name for host in job.services.membership().hosts if host.marks]
    assert marked == [job.evacuation(name).host], "a host counts as silent for what was the head's fault"
