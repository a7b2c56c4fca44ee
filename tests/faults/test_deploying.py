"""Deploying on the testbed as sites do: in part, interrupted, with a host that fails, with a secret from a vault."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.testbed.conftest import PROJECT
from tests.testbed.long_job import long_job

pytestmark = pytest.mark.timeout(1800)  # each deploys the testbed several times

PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
ENVIRONMENT = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
LIMIT_S = 900


def command(inventory, *words, playbook="site.yml"):
    return [PLAYBOOK, "-i", inventory, PROJECT / "playbooks" / playbook, *words]


def deploy(inventory, *words, playbook="site.yml"):
    return subprocess.run(
        command(inventory, *words, playbook=playbook),
        cwd=PROJECT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )


def changed(done):
    """The hosts on which something was changed."""
    recap = done.stdout.split("PLAY RECAP")[1].strip().splitlines()[1:]
    return [line.split()[0] for line in recap if "changed=" in line and "changed=0" not in line]


@pytest.fixture
def whole(inventory):
    """The testbed is deployed as a whole when a test is done, whatever it did."""
    yield inventory
    done = deploy(inventory)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    "words",
    [
        ["--limit", "host01"],
        ["--limit", "head01"],
        ["--limit", "head01:host01"],
        ["--tags", "resource_manager"],
        ["--tags", "agent"],
        ["--tags", "hypervisor,guest,agent", "--limit", "host01"],
        ["--extra-vars", "site_serial=2"],
    ],
)
def test_a_part_of_what_is_deployed_is_deployed_again_without_a_change(inventory, site, words):
    before = site.run(site.head, "cat", "/etc/failavoid/resource_manager.yml", "/etc/failavoid/ssh/known_hosts")
    done = deploy(inventory, *words)
    assert done.returncode == 0, done.stdout[-3000:]
    assert changed(done) == []
    after = site.run(site.head, "cat", "/etc/failavoid/resource_manager.yml", "/etc/failavoid/ssh/known_hosts")
    assert after == before


def kill_at(inventory, line):
    """Deploy until Ansible says that line, and kill it then."""
    with subprocess.Popen(
        command(inventory),
        cwd=PROJECT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stdout is not None
        for said in run.stdout:
            if said.startswith(line):
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL


def test_a_run_that_was_killed_is_continued_by_the_next(whole, site):
    host = site.groups["hypervisor"][0]
    site.run(host, "systemctl", "stop", "failavoid-agent")
    site.run(host, "rm", "-rf", "/opt/failavoid/lib/.agent-digest", "/etc/systemd/system/failavoid-agent.service")
    kill_at(whole, "TASK [agent : Write the agent's settings]")
    done = deploy(whole)
    assert done.returncode == 0, done.stdout[-3000:]
    assert changed(done) == [host]
    assert site.run(host, "systemctl", "is-active", "failavoid-agent").strip() == "active"


def test_libvirt_takes_up_what_a_run_wrote_that_was_killed_before_it_restarted_it(whole, site):
    host = site.groups["hypervisor"][0]
    settings = "/etc/systemd/system/libvirtd-tls.socket.d/failavoid.conf"
    site.run(host, "sh", "-c", f"echo '# of another time' >>{settings}")
    kill_at(whole, "RUNNING HANDLER [hypervisor : Stop libvirt's daemon]")
    # as if it had been killed a moment later, with libvirt stopped and its socket not yet started again
    site.run(host, "systemctl", "stop", "libvirtd-tls.socket", "libvirtd.service")
    done = deploy(whole)
    assert done.returncode == 0, done.stdout[-3000:]
    assert changed(done) == [host]
    address = site.hosts[host]["ansible_host"]
    assert f"{address}:16514" in site.run(host, "ss", "-Hltn").split()
    assert "of another time" not in site.run(host, "cat", settings)
    assert changed(deploy(whole)) == []


def test_what_an_interrupted_run_wrote_and_restarted_nothing_for_is_taken_up_by_the_next(whole, site):
    host = site.groups["hypervisor"][0]
    places = {host: "agent", site.head: "controller"}

    def processes():
        show = ("systemctl", "show", "--property=MainPID", "--value")
        return {place: site.run(place, *show, f"failavoid-{name}").strip() for place, name in places.items()}

    before = processes()
    site.run(host, "touch", "/etc/failavoid/agent.json")
    site.run(site.head, "touch", "/etc/failavoid/controller.yml")
    done = deploy(whole)
    assert done.returncode == 0, done.stdout[-3000:]
    assert sorted(changed(done)) == sorted(places)
    after = processes()
    assert not set(after.items()) & set(before.items())
    assert changed(deploy(whole)) == []


@pytest.fixture
def spoilt(inventory, site, tmp_path):
    """An inventory on which the second host can't be prepared."""
    shutil.copytree(inventory, tmp_path / "site", symlinks=False)
    variables = tmp_path / "site/host_vars" / f"{site.groups['hypervisor'][1]}.yml"
    variables.parent.mkdir()
    variables.write_text(yaml.safe_dump({"hypervisor_cores": [999]}))
    return tmp_path / "site"


def test_a_host_that_fails_in_the_middle_is_named_and_takes_no_other_with_it(whole, spoilt, site):
    done = deploy(spoilt)
    assert done.returncode != 0
    assert "hypervisor_cores names cores this host does not have: [999]" in done.stdout
    for host in site.groups["hypervisor"]:
        assert site.run(host, "systemctl", "is-active", "failavoid-agent").strip() == "active", host
    for unit in ("monitor", "resource-manager", "controller"):
        assert site.run(site.head, "systemctl", "is-active", f"failavoid-{unit}").strip() == "active", unit


def test_hosts_that_are_prepared_one_by_one_stay_as_they_are_after_the_first_that_fails(whole, spoilt, site):
    first, _, *later = site.groups["hypervisor"]
    for host in (first, *later):
        site.run(host, "touch", "/etc/failavoid/agent.json")  # so that its agent is restarted
    done = deploy(spoilt, "--extra-vars", "site_serial=1")
    assert done.returncode != 0
    assert "PLAY [Run the services]" not in done.stdout
    assert changed(done) == [first]
    assert sorted(changed(deploy(whole))) == sorted(later)


def test_a_job_runs_on_while_everything_is_deployed_anew_under_it(whole, site, services):
    """Services, agents and libvirt are restarted; its guest stays as it is, and can be moved afterwards."""
    with long_job(site, services, hosts=1, guests_per_host=1, memory_mb=288) as job:
        (host,), places = job.hosts(), job.places()
        guest = site.run(host, "pgrep", "-x", "qemu-system-x86")
        for place in site.groups["hypervisor"]:
            site.run(place, "touch", "/etc/failavoid/agent.json", "/etc/libvirt/qemu.conf")
        settings = [f"/etc/failavoid/{name}.yml" for name in ("monitor", "resource_manager", "controller")]
        site.run(site.head, "touch", *settings)
        done = deploy(whole)
        assert done.returncode == 0, done.stdout[-3000:]
        assert sorted(changed(done)) == sorted([site.head, *site.groups["hypervisor"]])
        assert job.services_answer()
        assert job.goes_on()
        assert (job.places(), site.run(host, "pgrep", "-x", "qemu-system-x86")) == (places, guest)
        evacuation = job.ended(job.evacuate(host))
        assert (evacuation.state, evacuation.error) == ("RETIRED", "")
        assert job.finish() == 0
        assert job.job.said("RESULT correct")


ADMIN = "admin"
MAKE_ADMIN = f"""
useradd -m -s /bin/sh {ADMIN}
install -d -m 0700 -o {ADMIN} -g {ADMIN} ~{ADMIN}/.ssh
grep -v ' failavoid$' /root/.ssh/authorized_keys >~{ADMIN}/.ssh/authorized_keys
chown {ADMIN}:{ADMIN} ~{ADMIN}/.ssh/authorized_keys
echo '{ADMIN} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/{ADMIN}
"""
REMOVE_ADMIN = f"rm -f /etc/sudoers.d/{ADMIN}; pkill -KILL -u {ADMIN}; userdel -r {ADMIN}"


@pytest.fixture
def admin(site):
    """A user of head and hosts who may become root by sudo."""
    places = [site.head, *site.groups["hypervisor"]]
    try:
        for place in places:
            site.run(place, "sh", "-ec", MAKE_ADMIN)
        yield ADMIN
    finally:
        for place in places:
            site.run(place, "sh", "-c", REMOVE_ADMIN, check=False)


def test_a_site_may_be_reached_as_another_user_than_root(whole, admin, site):
    """By who deploys it, and then by its services."""
    done = deploy(whole, "--extra-vars", f"ansible_user={admin}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"ansible_user: {admin}" in site.run(site.head, "cat", "/etc/failavoid/inventory/hosts.yml")
    host = site.groups["hypervisor"][-1]
    assert site.run(host, "grep", "-c", " failavoid$", f"/home/{admin}/.ssh/authorized_keys").strip() == "1"
    site.run(site.head, "failavoid", "drain", host, "--reason", "to be restored as another user")
    site.run(site.head, "failavoid", "restore", host)  # by a playbook that asks libvirt, which root alone may
    assert changed(deploy(whole, "--extra-vars", f"ansible_user={admin}")) == []


def secrets_of(site):
    """The site's secret, and every token that was made from it and lies somewhere."""
    found = {site.run(site.head, "cat", "/etc/failavoid/secret").strip()}
    found |= set(site.run(site.head, "sh", "-c", "cat /etc/failavoid/tokens/*").split())
    for host in site.groups["hypervisor"]:
        settings = yaml.safe_load(site.run(host, "cat", "/etc/failavoid/agent.json"))
        found.add(settings["token"])
    return found


WATCH = r"""
for i in $(seq 1 400); do
  cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n'
  sleep 0.1
done
"""


def test_no_secret_is_in_what_ansible_says_or_in_any_process_list(inventory, site, tmp_path):
    """Even if the secret comes from a vault, is new to the head, and everything is said aloud."""
    secret = site.run(site.head, "cat", "/etc/failavoid/secret").strip()
    given = tmp_path / "vault.yml"
    given.touch(mode=0o600)
    given.write_text(yaml.safe_dump({"service_common_secret": secret}))
    site.run(site.head, "truncate", "--size", "-1", "/etc/failavoid/secret")  # so that it is written
    watched = tmp_path / "watched"
    with (
        watched.open("w") as output,
        subprocess.Popen(site.ssh(site.head, "sh", "-c", WATCH), stdout=output, stderr=subprocess.DEVNULL) as watch,
    ):
        done = deploy(inventory, "-vvvv", "--diff", "--extra-vars", f"@{given}")
        watch.terminate()
    assert done.returncode == 0, done.stdout[-3000:]
    for one in secrets_of(site):
        assert one not in done.stdout
        assert one not in done.stderr
        assert one not in watched.read_text()


def test_no_secret_is_a_fact(inventory, site):
    """Neither of those that Ansible gathers, nor of what the services run playbooks with."""
    words = [PLAYBOOK.with_name("ansible"), "-i", inventory, "head:hypervisor", "-m", "ansible.builtin.setup"]
    facts = subprocess.run(words, cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    assert facts.count("ansible_hostname") == len(site.groups["hypervisor"]) + 1
    files = site.run(site.head, "sh", "-c", "cat /etc/failavoid/inventory/* /etc/failavoid/*.yml")
    files += "".join(site.run(host, "cat", "/etc/failavoid/host.json") for host in site.groups["hypervisor"])
    assert not [one for one in secrets_of(site) if one in facts + files]


def test_no_secret_is_in_a_log(site):
    secrets = secrets_of(site)
    for host in [site.head, *site.groups["hypervisor"]]:
        journal = site.run(host, "journalctl", "--no-pager", "--quiet", "--output", "cat", "--boot", check=False)
        assert not [one for one in secrets if one in journal], host
    logs = site.run(
        site.head, "sh", "-c", "cat /var/lib/failavoid/*/playbooks/*.log /var/lib/failavoid/*/logs/*.log", check=False
    )
    assert not [one for one in secrets if one in logs]


def test_the_inventory_of_the_testbed_is_right(inventory):
    done = deploy(inventory, playbook="validate.yml")
    assert done.returncode == 0, done.stdout
