"""Jobs on real hosts: a user's MPI program gets guests of its own, and leaves nothing taken."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator

import pytest

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site
from failavoid.shared.messages import Guest, Job

USER = "demo"
HOME = f"/home/{USER}"
SMALL = ("--hosts", "1", "--guests-per-host", "2", "--guest-memory", "288MiB")
JOB_S = 300.0

PROGRAM = """
import os, sys, time
from mpi4py import MPI
world = MPI.COMM_WORLD
places = world.gather((os.uname().nodename, os.getcwd(), os.getuid(), os.environ["FAILAVOID_JOB"]))
total = world.allreduce(world.rank + 1)
if world.rank == 0:
    for place in places:
        print("rank", *place, flush=True)
    print("total", total, flush=True)
world.Barrier()
if sys.argv[1] == "stay":
    time.sleep(600)
sys.stdout.flush()
MPI.Finalize()
os._exit(int(sys.argv[1]))
"""


def as_user(site: Site, *words: str) -> list[str]:
    """The command line that runs ``words`` on the head as the job's user."""
    return site.ssh(site.head, "runuser", "-u", USER, "--", "env", "-C", HOME, f"HOME={HOME}", *words)


def run(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(as_user(site, *words), capture_output=True, text=True, timeout=JOB_S, check=False)


def start(site: Site, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        as_user(site, *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module", autouse=True)
def program(site: Site) -> str:
    """The program, in the user's home: at the same path on the head and in guests."""
    path = f"{HOME}/places.py"
    site.run(site.head, "sh", "-c", f"printf %s {shlex.quote(PROGRAM)} >{path}; chmod 0644 {path}")
    return path


@pytest.fixture(autouse=True)
def free_hosts(services: Services) -> Iterator[None]:
    """No test leaves a host taken."""
    yield
    assert wait_until(lambda: not taken(services), 60), "hosts are still taken"


def taken(services: Services) -> list[str]:
    return [host.name for host in services.membership().hosts if host.pool == "allocated"]


def last_job(services: Services) -> Job:
    return max(services.membership().jobs, key=lambda job: job.created)


def guests_of(services: Services, job: Job) -> list[Guest]:
    known = {guest.name: guest for guest in services.membership().guests}
    return [known[name] for name in job.guests]


def in_guest(site: Site, job: Job, guest: Guest, command: str) -> str:
    """What a command says in a guest, as the job's user."""
    config = f"{HOME}/.failavoid/jobs/{job.id}/ssh_config"
    return run(site, "ssh", "-F", config, guest.address, command).stdout


def test_ranks_run_in_guests_of_the_job_as_its_user_where_the_program_was_started(site, services, program):
    done = run(site, "failavoid", "run", *SMALL, "python3", program, "0")
    assert done.returncode == 0, done.stderr
    job = last_job(services)
    uid = site.run(site.head, "id", "-u", USER).strip()
    assert done.stdout.splitlines() == [*(f"rank {name} {HOME} {uid} {job.id}" for name in job.guests), "total 3"]
    assert (job.state, job.exit_status) == ("completed", 0)


def test_the_next_job_runs_in_the_same_guests_without_a_boot(site, services, program):
    run(site, "failavoid", "run", *SMALL, "python3", program, "0")
    first = last_job(services)
    boots = {guest.name: guest.uuid for guest in guests_of(services, first)}
    done = run(site, "failavoid", "run", *SMALL, "python3", program, "0")
    assert done.returncode == 0, done.stderr
    second = last_job(services)
    assert second.id != first.id
    assert {guest.name: guest.uuid for guest in guests_of(services, second)} == boots


def test_the_programs_exit_status_comes_back(site, services, program):
    done = run(site, "failavoid", "run", *SMALL, "python3", program, "3")
    assert done.returncode == 3, done.stderr
    assert (last_job(services).state, last_job(services).exit_status) == ("failed", 3)


def test_guests_are_where_the_resource_manager_says_and_hold_what_was_asked_for(site, services, program):
    run(site, "failavoid", "run", *SMALL, "python3", program, "0")
    for guest in guests_of(services, last_job(services)):
        assert site.run(guest.host, "virsh", "domuuid", guest.name).strip() == guest.uuid
        pinned = site.run(guest.host, "virsh", "vcpupin", guest.name).split()
        assert pinned[-2:] == ["0", ",".join(map(str, guest.cores))]
        assert f"Max memory:     {288 * 1024} KiB" in site.run(guest.host, "virsh", "dominfo", guest.name)


def test_a_job_for_which_there_is_no_room_is_refused_with_figures(site, services, program):
    hosts = len(services.membership().hosts)
    done = run(site, "failavoid", "run", "--hosts", str(hosts), "python3", program, "0")
    assert done.returncode == 3
    assert f"{hosts} hosts are asked for" in done.stderr
    done = run(site, "failavoid", "run", "--guest-memory", "900GiB", "python3", program, "0")
    assert done.returncode == 3
    assert "0 of these have that much" in done.stderr


def test_a_job_that_its_user_interrupts_leaves_no_rank_behind(site, services, program):
    process = start(site, "timeout", "--signal=INT", "20", "failavoid", "run", *SMALL, "python3", program, "stay")
    assert "total 3" in wait_for(process, "total")
    _, err = process.communicate(timeout=60)
    assert "ended by its user" in err
    job = last_job(services)
    assert (job.state, job.message) == ("failed", "ended by its user")
    for guest in guests_of(services, job):
        assert wait_until(lambda guest=guest: "places.py" not in in_guest(site, job, guest, "ps -e -o args"), 30)


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """The first line of the program's with ``text``; fails with its errors if it ends before."""
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        if text in line:
            return line
    pytest.fail(f"the program did not say {text!r}: {process.stderr.read()}")


def test_a_job_whose_guest_dies_ends_with_a_clear_word_and_frees_its_hosts(site, services, program):
    process = start(site, "failavoid", "run", *SMALL, "python3", program, "stay")
    wait_for(process, "total")
    job = last_job(services)
    victim = guests_of(services, job)[0]
    site.run(victim.host, "virsh", "destroy", victim.name)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert f"job {job.id}: guest {victim.name} was lost on host {victim.host}" in err
    assert wait_until(lambda: not taken(services), 60)
    done = run(site, "failavoid", "run", *SMALL, "python3", program, "0")
    assert done.returncode == 0, done.stderr
    assert victim.name not in {guest.name for guest in services.membership().guests}


def test_a_resource_manager_that_is_killed_while_guests_boot_brings_the_job_up_all_the_same(site, services, program):
    for guest in services.membership().guests:
        services.resource_manager.delete(f"/guests/{guest.name}", timeout=120).raise_for_status()
    process = start(site, "failavoid", "run", *SMALL, "python3", program, "0")
    assert wait_until(lambda: any(guest.state == "booting" for guest in services.membership().guests), 60)
    (host,) = taken(services)
    assert wait_until(lambda: site.run(host, "virsh", "list", "--name").strip() != "", 60)
    site.run(site.head, "systemctl", "kill", "--signal=KILL", "failavoid-resource-manager")
    out, err = process.communicate(timeout=JOB_S)
    assert process.returncode == 0, err
    assert "total 3" in out
    assert len(site.run(host, "virsh", "list", "--name").split()) == 2


def test_a_running_job_does_not_notice_a_restart_of_the_resource_manager(site, services, program):
    process = start(site, "failavoid", "run", *SMALL, "python3", program, "stay")
    wait_for(process, "total")
    before = services.membership()
    site.run(site.head, "systemctl", "restart", "failavoid-resource-manager")
    assert wait_until(lambda: site.run(site.head, "failavoid", "status", check=False) != "", 30)
    assert [to_be_kept(one) for one in services.membership().guests] == [to_be_kept(one) for one in before.guests]
    assert process.poll() is None
    ended = site.run(site.head, "failavoid", "end", last_job(services).id, "--message", "the test is over")
    assert ended.strip() == "failed"
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the test is over" in err


def to_be_kept(guest: Guest) -> tuple[str, str, str, str | None]:
    return guest.name, guest.uuid, guest.host, guest.job


def test_a_user_in_a_guest_can_read_none_of_its_secrets(site, services, program):
    run(site, "failavoid", "run", *SMALL, "python3", program, "0")
    job = last_job(services)
    secrets = "/run/failavoid/identity.json /etc/ssh/ssh_host_ed25519_key /sys/firmware/qemu_fw_cfg/by_name/*/*/*/raw"
    said = in_guest(site, job, guests_of(services, job)[0], f"cat {secrets} 2>&1; id -un; sudo -n true 2>&1")
    assert "PRIVATE KEY" not in said
    assert '"token"' not in said
    assert USER in said
