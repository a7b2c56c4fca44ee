"""Evacuations on real hosts: guests of a running MPI job move, ranks wait and go on, the result is right."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site
from failavoid.shared.messages import EVACUATION_ENDS, Evacuation, from_dict
from tests.testbed.long_job import MOVE_S, LongJob, long_job

WAY = ["alarm", "leased", "noticed", "gathered", "migrating", "verified", "released", "retired"]


@pytest.fixture(scope="module")
def job(site: Site, services: Services) -> Iterator[LongJob]:
    """An MPI job on two hosts that computes on through all of these tests, and checks its own result."""
    with long_job(site, services, hosts=2, guests_per_host=1, memory_mb=288) as job:
        yield job
        assert job.finish() == 0
        assert job.job.said("RESULT correct")


@pytest.fixture(autouse=True)
def hosts_return(job: LongJob) -> Iterator[None]:
    """After each test the job computes on, and the host that was left is in service again."""
    yield
    assert job.goes_on()
    job.restore()


def host_of(services: Services, job: str) -> str:
    return sorted(guest.host for guest in services.membership().guests if guest.job == job)[0]


def order(services: Services, host: str) -> str:
    answer = services.controller.post("/evacuations", json={"host": host, "reason": "a test"})
    answer.raise_for_status()
    return str(answer.json()[0]["id"])


def evacuation(services: Services, name: str) -> Evacuation:
    return from_dict(Evacuation, services.controller.get(f"/evacuations/{name}").json())


def ended(services: Services, name: str) -> Evacuation:
    assert wait_until(lambda: evacuation(services, name).state in EVACUATION_ENDS, MOVE_S)
    return evacuation(services, name)


def pool(services: Services, host: str) -> str:
    return next(known.pool for known in services.membership().hosts if known.name == host)


def test_a_jobs_guests_leave_a_host_while_its_ranks_wait(site, services, job):
    ident = job.ident
    source = host_of(services, ident)
    before = {guest.name: guest.host for guest in services.membership().guests if guest.job == ident}
    told = ended(services, order(services, source))
    assert (told.state, told.error) == ("RETIRED", "")

    logged = site.run(site.head, "journalctl", "--quiet", "--output=cat", "--unit=failavoid-*", f"--grep={told.id}")
    assert [state for state in ("LEASED", "MIGRATING", "RETIRED") if f"{told.id}: {state}" not in logged] == []

    steps = {step.name: step for step in told.steps}
    assert [steps[name].done for name in WAY] == sorted(steps[name].done for name in WAY)
    assert steps["gathered"].detail == "1 of 1 guests ready"
    assert steps["released"].detail == "1 of 1 guests resumed"
    assert steps["prepare_destination"].done <= steps["migrating"].done

    (moved,) = told.migrations
    assert before[moved.guest] == source
    assert (moved.state, moved.pin_verified) == ("moved", True)
    assert moved.bytes > 0
    assert moved.downtime_ms > 0
    after = {guest.name: guest.host for guest in services.membership().guests if guest.job == ident}
    assert after == {**before, moved.guest: told.spare}
    assert moved.guest in site.run(str(told.spare), "virsh", "list", "--name")
    assert moved.guest not in site.run(source, "virsh", "list", "--all", "--name")
    assert pool(services, source) == "defunct"
    assert pool(services, str(told.spare)) == "allocated"


def test_a_restart_of_the_controller_does_not_stop_a_move(site, services, job):
    source = host_of(services, job.ident)
    name = order(services, source)
    assert wait_until(lambda: evacuation(services, name).state == "MIGRATING", MOVE_S, interval=0.05)
    site.run(site.head, "systemctl", "restart", "failavoid-controller")
    assert wait_until(lambda: answers(services.controller), 30)
    told = ended(services, name)
    assert (told.state, told.error) == ("RETIRED", "")


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/evacuations").status_code == 200
    except httpx.HTTPError:
        return False


def test_a_controller_that_is_killed_while_ranks_gather_or_guests_move_goes_on(site, services, job):
    ident = job.ident
    source = host_of(services, ident)
    guest = next(g for g in services.membership().guests if g.job == ident and g.host == source)
    pause(site, source, guest.name, "suspend")
    try:
        name = order(services, source)
        assert wait_until(lambda: evacuation(services, name).state == "NOTICED", 60, interval=0.1)
        kill_controller(site, services)
        assert evacuation(services, name).state == "NOTICED"
    finally:
        pause(site, source, guest.name, "resume")
    assert wait_until(lambda: evacuation(services, name).state == "MIGRATING", MOVE_S, interval=0.05)
    kill_controller(site, services)
    told = ended(services, name)
    assert (told.state, told.error, told.attempt) == ("RETIRED", "", 1)


def kill_controller(site: Site, services: Services) -> None:
    site.run(site.head, "systemctl", "kill", "--signal=KILL", "failavoid-controller")
    assert wait_until(lambda: answers(services.controller), 30)


def test_a_plan_is_made_without_acting(services, job):
    source = host_of(services, job.ident)
    before = len(services.controller.get("/evacuations").json())
    (plan,) = services.controller.get(f"/plan?host={source}").json()
    assert plan["decision"] == "migrate"
    assert all(guest["devices"] == [] for guest in plan["guests"])
    assert "does not answer" not in " ".join(plan["reasons"])
    assert len(services.controller.get("/evacuations").json()) == before


def test_an_evacuation_that_is_cancelled_leaves_everything_as_it_was(site, services, job):
    ident = job.ident
    source = host_of(services, ident)
    before = services.membership()
    # with its agent stopped the guest can't report, so the guests wait at the gate
    guest = next(guest for guest in before.guests if guest.job == ident and guest.host == source)
    pause(site, source, guest.name, "suspend")
    try:
        name = order(services, source)
        assert wait_until(lambda: evacuation(services, name).state == "NOTICED", 60, interval=0.1)
        services.controller.post(f"/evacuations/{name}/cancel").raise_for_status()
        told = ended(services, name)
    finally:
        pause(site, source, guest.name, "resume")
    assert told.state == "CANCELLED"
    assert told.error.startswith("cancelled by operator")
    after = services.membership()
    assert {g.name: g.host for g in after.guests} == {g.name: g.host for g in before.guests}
    assert pool(services, str(told.spare)) == "free"
    assert guest.name not in site.run(str(told.spare), "ls", "/var/lib/failavoid/guests", check=False)


def pause(site: Site, host: str, guest: str, how: str) -> None:
    site.run(host, "virsh", how, guest)
    time.sleep(0.5)
