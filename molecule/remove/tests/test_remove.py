"""What is left when everything was removed: packages, the bridge, and the state that was to stay."""

import pytest
import testinfra

REMOVED_FROM_HOSTS = (
    "/etc/failavoid/agent.json",
    "/etc/failavoid/host.json",
    "/etc/pki/libvirt/private/serverkey.pem",
    "/etc/systemd/system/failavoid-agent.service",
    "/opt/failavoid/lib",
    "/var/lib/failavoid/boot",
)
REMOVED_FROM_THE_HEAD = (
    "/etc/failavoid/controller.yml",
    "/etc/failavoid/inventory",
    "/etc/failavoid/ssh",
    "/etc/systemd/system/failavoid-controller.service",
    "/opt/failavoid/venv",
    "/usr/local/bin/failavoid",
)


@pytest.fixture
def hosts(request):
    """The testbed's hosts of a group."""
    inventory = request.config.getoption("--ansible-inventory")
    return lambda group: testinfra.get_hosts([f"ansible://{group}?ansible_inventory={inventory}"])


def test_hosts_keep_nothing_that_runs_or_was_installed(hosts):
    for host in hosts("hypervisor"):
        assert not host.service("failavoid-agent").is_running
        for path in REMOVED_FROM_HOSTS:
            assert not host.file(path).exists, path
        assert host.check_output("virsh list --name") == ""
        assert "failavoid" not in host.check_output("nft list tables")
        assert "16514" not in host.check_output("ss -Hltn")
        keys = host.file("/root/.ssh/authorized_keys").content_string.splitlines()
        assert keys  # Ansible's own is there
        assert not [key for key in keys if key.endswith(" failavoid")]


def test_hosts_keep_the_bridge_and_libvirt(hosts):
    for host in hosts("hypervisor"):
        assert host.interface("br0").exists
        assert host.run("virsh version").rc == 0


def test_the_head_keeps_its_secret_and_the_journal_alone(hosts):
    (head,) = hosts("head")
    for unit in ("monitor", "resource-manager", "controller"):
        assert not head.service(f"failavoid-{unit}").is_running
    for path in REMOVED_FROM_THE_HEAD:
        assert not head.file(path).exists, path
    assert head.file("/etc/failavoid/secret").exists
    assert head.file("/var/lib/failavoid/controller/journal.sqlite").exists
