"""The head with its services: as whom they run, what they may, who may read what."""

import pytest

testinfra_hosts = ["ansible://head"]
UNITS = ("monitor", "resource-manager", "controller")


@pytest.mark.parametrize("unit", UNITS)
def test_a_service_runs_as_its_own_user_and_starts_with_the_head(host, unit):
    service = host.service(f"failavoid-{unit}")
    assert service.is_running
    assert service.is_enabled
    assert "User=failavoid" in host.check_output(f"systemctl show -p User failavoid-{unit}")


@pytest.mark.parametrize("unit", UNITS)
def test_a_service_has_a_limit_of_memory(host, unit):
    assert host.check_output(f"systemctl show --property=MemoryMax --value failavoid-{unit}") != "infinity"


@pytest.mark.parametrize("port", [7411, 7412, 7413, 2049])
def test_the_head_listens(host, port):
    assert host.socket(f"tcp://0.0.0.0:{port}").is_listening or host.socket(f"tcp://:::{port}").is_listening


@pytest.mark.parametrize(
    ("path", "owner", "group", "mode"),
    [
        ("/etc/failavoid/secret", "root", "failavoid", 0o640),
        ("/etc/failavoid/controller.yml", "root", "failavoid", 0o640),
        ("/etc/failavoid/ssh/id_ed25519", "failavoid", "failavoid", 0o400),
        ("/etc/failavoid/tokens/root", "root", "root", 0o400),
        ("/etc/failavoid/ca", "root", "root", 0o700),
    ],
)
def test_what_is_secret_is_for_those_who_need_it(host, path, owner, group, mode):
    file = host.file(path)
    assert (file.user, file.group, file.mode) == (owner, group, mode)


def test_a_user_of_jobs_reads_their_own_token_and_no_other(host):
    with host.sudo("demo"):
        assert host.run("cat /etc/failavoid/tokens/demo").rc == 0
        assert host.run("cat /etc/failavoid/tokens/root").rc != 0
        assert host.run("cat /etc/failavoid/secret").rc != 0
