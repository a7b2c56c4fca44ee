"""The resource manager on real hosts: warm guests, differences with libvirt, checks of a host, lost clients."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site
from failavoid.shared.messages import Host, Relocation, from_dict
from tests.testbed.changed_settings import restart
from tests.testbed.test_jobs import HOME, SMALL, last_job, run, start, taken, wait_for
from tests.testbed.warm_guests import warm, warm_guests

STRANGER = "<domain type='qemu'><name>stranger</name><memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>"


def known(services: Services, name: str) -> Host:
    return next(host for host in services.membership().hosts if host.name == name)


def free_host(services: Services) -> str:
    return max(host.name for host in services.membership().hosts if host.pool == "free")


@pytest.fixture(autouse=True)
def nothing_is_left(site: Site, services: Services) -> Iterator[None]:
    """No test leaves a host taken or marked."""
    yield
    for host in services.membership().hosts:
        if host.marks:
            site.run(site.head, "failavoid", "restore", host.name)
    assert wait_until(lambda: not taken(services), 60), "hosts are still taken"


@pytest.fixture
def warm_pool(site: Site, services: Services) -> Iterator[None]:
    """Two warm guests of the size of the tests' jobs, on one host."""
    with warm_guests(site, services, 2):
        yield


@pytest.fixture
def program(site: Site) -> str:
    path = f"{HOME}/who.py"
    text = "import os; from mpi4py import MPI; print(os.uname().nodename, os.getuid(), flush=True)"
    site.run(site.head, "sh", "-c", f"echo '{text}' >{path}; chmod 0644 {path}")
    return path


def test_a_job_runs_as_its_user_in_warm_guests_that_nobody_had_to_wait_for(site, services, warm_pool, program):
    names = {guest.name for guest in services.membership().guests if guest.state == "warm"}
    done = run(site, "failavoid", "run", *SMALL, "python3", program)
    assert done.returncode == 0, done.stderr
    uid = site.run(site.head, "id", "-u", "demo").strip()
    assert sorted(done.stdout.splitlines()) == sorted(f"{name} {uid}" for name in names)
    assert set(last_job(services).guests) == names
    events = services.resource_manager.get("/events").json()["events"]
    times = {event["what"]: event["time"] for event in events if event["detail"].get("job") == last_job(services).id}
    print(f"submitted to ready: {times['job ready'] - times['job submitted']:.2f} s")
    assert wait_until(lambda: warm(services) == 2, 300), "no others took their place"


def test_a_warm_guest_of_another_host_moves_to_the_hosts_of_the_job_that_takes_it(site, services, program):
    with warm_guests(site, services, 2, per_host=1, relocate="always"):
        before = {guest.name: guest for guest in services.membership().guests if guest.state == "warm"}
        assert len({guest.host for guest in before.values()}) == 2
        done = run(site, "failavoid", "run", *SMALL, "python3", program)
        assert done.returncode == 0, done.stderr
        job = last_job(services)
        after = {guest.name: guest for guest in services.membership().guests if guest.name in job.guests}
        assert {(name, guest.uuid) for name, guest in after.items()} == {(n, guest.uuid) for n, guest in before.items()}
        (host,) = {guest.host for guest in after.values()}
        (moved,) = [name for name, guest in before.items() if guest.host != host]
        (relocated,) = [
            event["detail"]["subject"]
            for event in controllers_events(services)
            if (event["detail"].get("act"), event["detail"].get("reason")) == ("relocate", f"for job {job.id}")
        ]
        told = from_dict(Relocation, services.controller.get(f"/relocations/{relocated}").json())
        assert [(m.guest, m.source, m.destination) for m in told.migrations] == [(moved, before[moved].host, host)]
        assert [(m.state, m.pin_verified, told.error) for m in told.migrations] == [("moved", True, "")]
        assert set(job.guests) <= set(site.run(host, "virsh", "list", "--name").split())
        assert moved not in site.run(before[moved].host, "virsh", "list", "--all", "--name").split()


def controllers_events(services: Services) -> list[dict[str, Any]]:
    """The controller's audit log, which comes in parts."""
    found: list[dict[str, Any]] = []
    while True:
        after = found[-1]["number"] if found else 0
        part = services.controller.get(f"/events?after={after}").json()["events"]
        if not part:
            return found
        found += part


def test_a_domain_that_nobody_knows_is_reported_and_keeps_its_host_from_new_work(site, services):
    host = free_host(services)
    site.run(host, "sh", "-c", f'echo "{STRANGER}" >/run/stranger.xml; virsh create /run/stranger.xml')
    try:
        assert wait_until(lambda: known(services, host).pool == "suspect", 120)
        assert f"{host} runs stranger" in site.run(site.head, "failavoid", "status")
    finally:
        site.run(host, "virsh", "destroy", "stranger", check=False)
    assert wait_until(lambda: known(services, host).pool == "free", 30)


def test_a_drained_host_stays_so_through_a_restart_and_returns_after_its_checks(site, services):
    host = free_host(services)
    site.run(site.head, "failavoid", "drain", host, "--reason", "new fan")
    restart(site, services, "resource_manager")
    assert known(services, host).reason == "new fan"
    site.run(host, "systemctl", "stop", "failavoid-agent")
    try:
        refused = services.resource_manager.post(f"/hosts/{host}/restore", json={}, timeout=60)
        assert refused.status_code == 409
        assert "agent is inactive" in refused.json()["detail"]
    finally:
        site.run(host, "systemctl", "start", "failavoid-agent")
    assert wait_until(lambda: restored(site, services, host), 60)


def restored(site: Site, services: Services, host: str) -> bool:
    """Whether a host has returned; it is asked for again, since its agent has to be heard first."""
    site.run(site.head, "failavoid", "restore", host, check=False)
    return known(services, host).pool == "free"


def test_a_client_that_is_killed_leaves_neither_ranks_nor_hosts(site, services):
    path = f"{HOME}/stay.py"
    text = "import time; from mpi4py import MPI; print(0, flush=True); time.sleep(600)"
    site.run(site.head, "sh", "-c", f"echo '{text}' >{path}; chmod 0644 {path}")
    process = start(site, "failavoid", "run", *SMALL, "python3", path)
    wait_for(process, "0")
    job = last_job(services)
    site.run(site.head, "pkill", f"-{signal.SIGKILL.value}", "-u", "demo", "-f", "bin/failavoid run")
    process.wait(60)
    assert wait_until(lambda: services.job(job.id).ended is not None, 120)
    assert "was not heard" in services.job(job.id).message
    assert site.run(site.head, "pgrep", "-u", "demo", "mpirun", check=False) == ""
    assert wait_until(lambda: not any(g.name in job.guests for g in services.membership().guests), 120)
