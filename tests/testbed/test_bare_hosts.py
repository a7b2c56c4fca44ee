"""A job that has hosts without guests: an alarm brings its ranks a notice to write a checkpoint, and nothing moves."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site
from failavoid.shared.messages import Alarm, Evacuation, Evidence, from_dict, to_dict
from tests.testbed.test_evacuation import ended
from tests.testbed.test_jobs import HOME, USER, last_job, start, taken, wait_for
from tests.testbed.test_site import play

RANKS = ("--on-hosts", "--hosts", "2", "-n", "2")
END_S = 60.0
SCRIPT = f"{HOME}/told.py"
PROGRAM = """
import os, time
import failavoid.mpi
from mpi4py import MPI
world, told = MPI.COMM_WORLD, []
def before(kind):
    told.append(kind)
    print("told", kind, os.uname().nodename, flush=True)
failavoid.mpi.set_callbacks(before)
print("rank", os.uname().nodename, flush=True)
while not told:
    world.Barrier()
    time.sleep(0.1)
for _ in range(50):  # the agent is to see that the ranks were told
    world.Barrier()
    time.sleep(0.1)
print("total", world.allreduce(1), flush=True)
"""
WRAPPER = """
- hosts: hypervisor
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {{name: mpi_wrapper, tasks_from: {entry}.yml}}
"""


@pytest.fixture(scope="module", autouse=True)
def users_hosts(site: Site, inventory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What such jobs need on hosts: an account with a key, the program, the barrier wrapper."""
    key = f"{HOME}/.ssh/id_ed25519"
    had_key = site.run(site.head, "ls", key, check=False) != ""
    if not had_key:
        make = f"mkdir -p -m 0700 {HOME}/.ssh && ssh-keygen -q -t ed25519 -N '' -f {key}"
        site.run(site.head, "runuser", "-u", USER, "--", "sh", "-c", make)
    public = site.run(site.head, "cat", f"{key}.pub").strip()
    uid, gid = (site.run(site.head, "id", which, USER).strip() for which in ("-u", "-g"))
    program = f"printf %s {shlex.quote(PROGRAM)} >{SCRIPT}; chmod 0644 {SCRIPT}"
    account = (
        f"groupadd -g {gid} {USER}; useradd -m -s /bin/sh -u {uid} -g {gid} {USER}; "
        f"install -d -m 0700 -o {USER} -g {gid} {HOME}/.ssh && "
        f"echo {shlex.quote(public)} >{HOME}/.ssh/authorized_keys && {program}"
    )
    folder = tmp_path_factory.mktemp("wrapper")
    for entry in ("main", "absent"):
        (folder / f"{entry}.yml").write_text(WRAPPER.format(entry=entry))
    try:
        site.run(site.head, "sh", "-c", program)
        for host in site.groups["hypervisor"]:
            site.run(host, "sh", "-c", account)
        done = play(inventory, str(folder / "main.yml"))
        assert done.returncode == 0, done.stdout[-3000:]
        yield
    finally:
        play(inventory, str(folder / "absent.yml"))
        for host in site.groups["hypervisor"]:
            site.run(host, "userdel", "-r", USER, check=False)
        site.run(site.head, "rm", "-f", SCRIPT, *([] if had_key else [key, f"{key}.pub"]))


@pytest.fixture(autouse=True)
def nothing_is_left(services: Services) -> Iterator[None]:
    """No host stays taken, or suspected for an alarm of these tests."""
    yield
    assert wait_until(lambda: not taken(services), END_S), "hosts are still taken"
    for host in services.membership().hosts:
        if host.marks:
            services.restore(host.name)


def alarm(site: Site, services: Services, host: str, job: str) -> Evacuation:
    """Raise an alarm as the monitor does; what the controller makes of it."""
    token = site.run(site.head, "failavoid", "token", "service", "tests").strip()
    evidence = Evidence(0.9, 0.3, 0.01, 9.0, 5.0)
    raised = Alarm(f"alarm-{time.time_ns()}", time.time(), host, job, "robust", "unavailable", 0.9, evidence)
    answer = services.controller.post(
        "/alarms", json=to_dict(raised), headers={"Authorization": f"Bearer {token}"}
    ).raise_for_status()
    return from_dict(Evacuation, answer.json())


def test_an_alarm_asks_the_ranks_for_a_checkpoint_and_the_job_stays_where_it_is(site, services):
    process = start(site, "failavoid", "run", *RANKS, "--", "python3", SCRIPT)
    wait_for(process, "rank")
    job = last_job(services)
    assert (job.resource, job.guests, len(job.hosts)) == ("hosts", [], 2)
    failing = job.hosts[0]
    folder = f"/run/failavoid/jobs/{job.id}"
    assert wait_until(lambda: site.run(failing, "ls", f"{folder}/slots", check=False) != "", END_S), "no rank is heard"
    # the agent may do little on its host (its unit), but give the job's user what ranks share with it
    owners = site.run(failing, "stat", "-c", "%U %G %a", folder, f"{folder}/page", f"{folder}/slots").splitlines()
    assert owners == [f"root {USER} 750", f"root {USER} 640", f"{USER} {USER} 700"]

    told = ended(services, alarm(site, services, failing, job.id).id)
    assert (told.state, told.error, told.migrations, told.lease) == ("CHECKPOINTED", "", [], None)
    steps = {step.name: step.detail for step in told.steps}
    assert steps["gathered"] == "1 of 1 guests ready"
    assert steps["checkpointed"] == f"the job runs on {failing} itself and stays there"
    heard = sorted(wait_for(process, "told").strip() for _ in job.hosts)
    assert heard == sorted(f"told checkpoint {host}" for host in job.hosts)
    assert wait_for(process, "total").strip() == "total 2"
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 0, errors
    assert services.job(job.id).hosts == job.hosts
