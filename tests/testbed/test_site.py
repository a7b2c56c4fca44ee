"""The deployed system: what runs where, what strangers get, what a bad inventory is told."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from failavoid.demo.site import PORTS
from tests.testbed.conftest import PROJECT

PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"


def play(inventory: Path, playbook: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PLAYBOOK, "-i", inventory, PROJECT / "playbooks" / playbook, *options],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("unit", ["monitor", "resource-manager", "controller"])
def test_the_services_run_on_the_head_as_their_own_user(site, unit):
    shown = site.run(site.head, "systemctl", "show", "-p", "ActiveState,User", f"failavoid-{unit}")
    assert "ActiveState=active" in shown
    assert "User=failavoid" in shown


def test_an_agent_runs_on_every_host(site):
    for host in site.groups["hypervisor"]:
        assert site.run(host, "systemctl", "is-active", "failavoid-agent", check=False).strip() == "active", host


def test_the_monitor_hears_every_host(site, services):
    assert set(site.groups["hypervisor"]) <= set(services.latest())


@pytest.mark.parametrize("service", sorted(PORTS))
def test_strangers_get_no_answer_from_a_service(site, service):
    with httpx.Client(base_url=site.url(service), verify=site.trust()) as stranger:
        assert stranger.get("/openapi.json").status_code == 401
        assert stranger.post("/alarms", json={}).status_code == 401


@pytest.mark.parametrize("service", sorted(PORTS))
def test_a_service_is_known_by_the_sites_authority_alone_and_does_not_speak_in_the_clear(site, service):
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{site.url(service)}/openapi.json")  # by the system's authorities
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{site.url(service)}/openapi.json".replace("https://", "http://"))


def test_the_services_key_is_their_users_alone(site):
    shown = site.run(site.head, "stat", "-c", "%U %a", "/etc/failavoid/tls/key.pem")
    assert shown.split() == ["failavoid", "400"]


def test_hosts_know_the_authority_and_hold_no_key_of_it(site):
    ours = site.run(site.head, "cat", "/etc/failavoid/authority.pem")
    for host in site.groups["hypervisor"]:
        assert site.run(host, "cat", "/etc/failavoid/authority.pem") == ours, host
        assert site.run(host, "find", "/etc", "-name", "ca-key.pem") == "", host


def test_the_secret_stays_on_the_head(site):
    secret = site.run(site.head, "cat", "/etc/failavoid/secret").strip()
    for host in site.groups["hypervisor"]:
        found = site.run(host, "grep", "-rlF", secret, "/etc", "/opt/failavoid", check=False)
        assert found == "", host


def test_deploying_again_changes_nothing(inventory):
    done = play(inventory, "site.yml")
    assert done.returncode == 0, done.stdout[-3000:]
    recap = done.stdout.split("PLAY RECAP")[1]
    changed = [line for line in recap.splitlines() if "changed=" in line and "changed=0" not in line]
    assert not changed, done.stdout


def refused(inventory: Path) -> str:
    """Deploy on a bad inventory; check mode, because these name the machine itself as a host."""
    done = play(inventory, "site.yml", "--check")
    assert done.returncode != 0
    said, recap = " ".join(done.stdout.split()).split("PLAY RECAP")
    assert "PLAY [Prepare the head]" not in said
    assert "changed=0" in recap
    return said


def write_inventory(folder: Path, hosts: dict[str, str]) -> Path:
    inventory = folder / "hosts.yml"
    lines = ["head: {hosts: {head01: {ansible_host: 127.0.0.1, ansible_connection: local}}}", "hypervisor:"]
    lines += ["  hosts:", *(f"    {name}: {{{settings}}}" for name, settings in hosts.items())]
    inventory.write_text("\n".join(lines) + "\n")
    return inventory


def test_an_inventory_without_a_spare_is_refused_before_anything_is_changed(tmp_path):
    inventory = write_inventory(tmp_path, {"host01": "ansible_connection: local"})
    assert "The inventory has no spare" in refused(inventory)


def test_a_host_that_does_not_answer_is_named_before_anything_is_changed(tmp_path):
    silent = "ansible_host: 127.0.0.1, ansible_port: 9, ansible_ssh_common_args: '-o ConnectTimeout=2'"
    inventory = write_inventory(tmp_path, {"host01": "ansible_connection: local", "host02": silent})
    assert "These hosts do not answer over SSH: host02." in refused(inventory)


def test_a_head_whose_port_is_taken_is_refused_before_anything_is_changed(tmp_path):
    inventory = write_inventory(tmp_path, dict.fromkeys(("host01", "host02"), "ansible_connection: local"))
    with socket.create_server(("127.0.0.1", 7412)):
        assert "are taken by others: 127.0.0.1:7412 users:((" in refused(inventory)
