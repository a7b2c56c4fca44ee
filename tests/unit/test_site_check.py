"""What is said of an inventory, its hosts, and the machine that deploys them before anything is changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from failavoid.shared import deployer
from failavoid.shared.names import InvalidNameError, check_name
from failavoid.shared.site_check import Host, Site, problems
from failavoid.shared.survey import Survey, look, offers
from failavoid.shared.tokens import mint

NOW = 1_000_000.0
HEAD = ["head01"]
WORKERS = ["host01", "host02", "host03"]


def site(**changes):
    groups = {"head": HEAD, "hypervisor": WORKERS}
    groups |= dict.fromkeys(("nfs_server", "monitor", "resource_manager", "controller"), HEAD)
    good = Site(
        groups=groups,
        guest_network="10.77.2.0/23",
        prefix=16,
        head_address="10.77.0.1",
        nfs_clients=["10.77.0.0/16"],
        python_version="3.11",
        ports={"monitor_port": 7411, "resource_manager_port": 7412, "controller_port": 7413},
    )
    return replace(good, **changes)


def found(name, **changes):
    """A host without a fault."""
    address = "10.77.0.1" if name in HEAD else f"10.77.1.{name[-1]}"
    survey = Survey(
        hostname=name,
        now=NOW,
        cpu="EPYC 7402",
        cpu_flags="aes avx2",
        memory_kb=64 << 20,
        kvm=True,
        versions={"libvirt": "9.0.0", "qemu": "7.2.22"},
        listeners=[
            'tcp 0.0.0.0:22 users:(("sshd",pid=1,fd=3))',
            'tcp 0.0.0.0:7411 users:(("failavoid-monit",pid=2,fd=3))',
            'tcp 0.0.0.0:111 users:(("rpcbind",pid=3,fd=4),("systemd",pid=1,fd=99))',
            'tcp *:20048 users:(("ganesha.nfsd",pid=4,fd=9))',
        ],
        bridges=["br0"],
        links=["br0", "eth0", "lo"],
        addresses=["127.0.0.1", address],
        file_system="ext4",
        free_mib=9000,
    )
    seen = {key: value for key, value in changes.items() if key in Survey.__dataclass_fields__}
    said = {key: value for key, value in changes.items() if key not in seen}
    return Host(**{"name": name, "address": address, "asked": NOW - 1, "survey": replace(survey, **seen), **said})


def told(changed=None, *, of="host02", **changes):
    """What is said of a site without a fault but for ``changed`` in its inventory and ``changes`` of one host."""
    hosts = [found(name, **(changes if name == of else {})) for name in [*HEAD, *WORKERS]]
    return problems(site(**(changed or {})), hosts, NOW + 1)


def test_a_good_site_has_no_problem():
    assert told() == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"spares": 3}, ["no spare", "lists 3 host(s)", "lower failavoid_spares"]),
        ({"spares": 0}, ["failavoid_spares is 0", "Set it to 1 or more"]),
        ({"guest_network": ""}, ["resource_manager_guest_network is not set", "10.77.2.0/23"]),
        ({"guest_network": "10.77.2.1/23"}, ["is no network", "10.77.2.0/23"]),
        ({"guest_network": "10.77.1.0/24"}, ["host01, host02, host03", "lie in the guests' network"]),
        ({"guest_network": "10.78.0.0/24", "nfs_clients": []}, ["10.78.0.0/24", "not part of", "10.77.0.0/16"]),
        ({"nfs_clients": ["10.77.0.0/24"]}, ["nfs_server_clients", "host01, host02, host03, guests (10.77.2.0/23)"]),
        ({"nfs_clients": ["10.77.0.0/23"]}, ["nfs_server_clients shuts out guests (10.77.2.0/23)"]),
    ],
)
def test_what_is_wrong_in_the_inventory_is_named_with_the_way_out(changed, named):
    (problem,) = told(changed)
    for words in named:
        assert words in problem


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"address": "10.77.1.1", "addresses": ["10.77.1.1"]}, ["host01 and host02", "10.77.1.1", "ansible_host"]),
        ({"survey": None}, ["do not answer over SSH: host02", "--limit"]),
        ({"survey": None, "error": "sudo: a password is required"}, ["host02", "sudo: a password is required"]),
        ({"hostname": "host01"}, ["host01 and host02 call themselves host01", "hostnamectl"]),
        ({"hostname": "localhost.localdomain"}, ["host02 calls itself localhost", "hostnamectl set-hostname host02"]),
        ({"python": [3, 7]}, ["host02 has Python 3.7", "3.9"]),
        ({"init": "openrc"}, ["host02", "openrc", "systemd"]),
        ({"memory_kb": 500_000}, ["host02 has 488 MiB"]),
        ({"now": NOW + 60}, ["host02's clock is 59 s ahead of", "chrony"]),
        ({"now": NOW - 60}, ["host02's clock is 59 s behind", "chrony"]),
        ({"bridges": []}, ["host02 has no bridge br0", "network_uplink"]),
        ({"uplink": "eth7"}, ["host02: network_uplink is eth7", "br0, eth0, lo"]),
        ({"addresses": ["192.0.2.1"]}, ["host02 is reached at 10.77.1.2", "192.0.2.1"]),
        ({"listeners": ['tcp *:16514 users:(("java",pid=3,fd=1))']}, ["host02: port 16514", '"java"']),
        ({"versions": {"qemu": "10.0.2"}}, ["versions of qemu: 10.0.2 on host02; 7.2.22 on host01, host03"]),
        ({"versions": {"libvirt": "11.3.0"}}, ["versions of libvirt: 11.3.0 on host02"]),
        ({"cpu": "Xeon 6130"}, ["host02 is the only host of its hardware class (Xeon 6130)", "guest_cpu_model"]),
        ({"cpu_flags": "aes avx2 avx512f"}, ["host02 has avx512f", "guest_cpu_model"]),
        ({"of": "head01", "unknown_users": ["ada"]}, ["head01 does not know ada", "service_common_job_users"]),
        ({"of": "head01", "listeners": ['tcp *:20048 users:(("rpc.mountd",pid=3,fd=1))']}, ["head01", "rpc.mountd"]),
        (
            {"of": "head01", "python": [3, 13]},
            ["head01 has Python 3.13", "packed for 3.11", "service_common_python_version to 3.13"],
        ),
        (
            {"of": "head01", "listeners": ['udp *:7411 users:(("nc",pid=3,fd=1))']},
            ["head01", "*:7411", '"nc"', "monitor_port"],
        ),
        ({"of": "head01", "listeners": ["tcp [::]:2049"]}, ["Ports that failavoid needs on head01", "[::]:2049"]),
        ({"of": "head01", "file_system": "overlay"}, ["head01", "overlay", "mount one of the kind ext4"]),
        ({"of": "head01", "free_mib": 100}, ["head01 has 100 MiB free", "2048 MiB"]),
    ],
)
def test_what_is_wrong_with_a_host_is_named_with_the_way_out(changes, named):
    (problem,) = told(**changes)
    for words in named:
        assert words in problem


@pytest.mark.parametrize("user", ["john.doe", "john_doe", "JDoe", "", "u" * 64, "{{ user }}"])
def test_users_whose_jobs_would_be_refused_are_named_with_the_rule_and_the_way_out(user):
    with pytest.raises(InvalidNameError):  # so says the resource manager
        check_name("user", user)
    (problem,) = told({"job_users": ["ada", user]})
    for words in ("service_common_job_users", repr(user), "a-z, 0-9 and '-'", "usermod --login", "out of the list"):
        assert words in problem


@pytest.mark.parametrize("user", ["site.watch", "site watch", "../watch", ""])
def test_readers_whose_names_no_token_can_carry_are_named_with_the_rule_and_the_way_out(user):
    (problem,) = told({"readers": ["ada", user]})
    for words in ("service_common_readers", repr(user), "a-z, A-Z, 0-9, '-' and '_'", "out of the list"):
        assert words in problem


def test_readers_may_have_names_that_jobs_can_not():
    assert told({"job_users": ["ada-2"], "readers": ["ada-2", "Site_Watch"]}) == []
    assert mint(b"s" * 32, "reader", "Site_Watch")


@pytest.mark.parametrize("variable", ["job_users", "readers"])
def test_root_is_the_administrator_and_no_user(variable):
    (problem,) = told({variable: ["root"]})
    assert f"service_common_{variable} lists root" in problem


SERVED = {"groups": {**site().groups, "netboot_server": HEAD}}
MAC = "52:54:00:12:34:5a"


def test_hosts_may_boot_over_the_network():
    assert told(SERVED, mac=MAC) == []


@pytest.mark.parametrize(
    ("mac", "named"),
    [
        ("52:54:00:12:34", ["host02", "'52:54:00:12:34'", "not the hardware address"]),
        ("52-54-00-12-34-5a", ["host02", "not the hardware address", "'52:54:00:12:34:56'"]),
        ("53:54:00:12:34:5a", ["host02", "not the hardware address of a network card"]),
        ("41123456", ["host02", "the number 41123456", "in quotes"]),
    ],
)
def test_what_is_no_hardware_address_is_named(mac, named):
    (problem,) = told(SERVED, mac=mac)
    for words in named:
        assert words in problem


def test_a_hardware_address_is_one_hosts_alone_however_it_is_written():
    hosts = [found("head01"), found("host01", mac=MAC), found("host02", mac=MAC.upper()), found("host03")]
    (problem,) = problems(site(**SERVED), hosts, NOW + 1)
    assert f"host01 and host02 have the same netboot_mac {MAC}" in problem


@pytest.mark.parametrize(
    ("servers", "mac", "named"),
    [
        ([], MAC, ["host02", "nobody serves what they boot", "netboot_server: {children: {head: {}}}"]),
        (HEAD, "", ["no host has a netboot_mac"]),
        (["host01"], MAC, ["'netboot_server' must hold the head", "it holds host01"]),
    ],
)
def test_hosts_that_boot_over_the_network_and_their_server_belong_together(servers, mac, named):
    (problem,) = told({"groups": {**site().groups, "netboot_server": servers}}, mac=mac)
    for words in named:
        assert words in problem


@pytest.mark.parametrize("of", ["host02", "head01"])
def test_hosts_are_reached_at_an_address_and_not_by_a_name(of):
    (problem,) = told(of=of, address=f"{of}.cluster", addresses=[])
    assert f"ansible_host of {of} is not set, or is a name: give the address" in problem


def test_the_servers_of_hosts_that_boot_over_the_network_want_their_ports():
    taken = {"listeners": ['udp 0.0.0.0:67 users:(("dhcpd",pid=3,fd=1))', 'udp *:69 users:(("in.tftpd",pid=4,fd=1))']}
    hosts = [found("head01", **taken), found("host01", mac=MAC), found("host02"), found("host03")]
    (problem,) = problems(site(**SERVED), hosts, NOW + 1)
    assert '0.0.0.0:67 users:(("dhcpd"' in problem
    assert '*:69 users:(("in.tftpd"' in problem
    assert told(of="head01", **taken) == []  # where nobody boots so


def test_a_name_that_can_not_be_used_is_named():
    workers = ["host01", "Host_2", "host03"]
    hosts = [found(name) for name in [*HEAD, "host01", "host03"]] + [replace(found("host02"), name="Host_2")]
    (problem,) = problems(site(groups={**site().groups, "hypervisor": workers}), hosts, NOW + 1)
    assert "'Host_2' is not allowed" in problem


def test_services_elsewhere_than_on_the_head_are_named_group_by_group():
    groups = {**site().groups, "monitor": ["host01"], "controller": []}
    first, second = told({"groups": groups})
    assert "'monitor' must hold the head" in first
    assert "it holds host01" in first
    assert "'controller' must hold the head" in second


def test_processors_may_differ_where_guests_do_not_see_them():
    for alike in ({"cpu_model": "EPYC"}, {"emulated": True}, {"kvm": False}):
        hosts = [found(name, cpu=f"CPU {name}", cpu_flags=name, **alike) for name in [*HEAD, *WORKERS]]
        assert problems(site(), hosts, NOW + 1) == []


def test_versions_may_differ_while_hosts_are_upgraded():
    assert told({"mixed_versions": True}, versions={"qemu": "10.0.2"}) == []


def test_a_host_may_be_the_only_one_of_its_class_that_this_run_looks_at():
    hosts = [found("head01"), found("host01"), *(found(name, survey=None, left_out=True) for name in WORKERS[1:])]
    assert problems(site(), hosts, NOW + 1) == []


def test_a_lone_host_may_have_a_class_that_another_takes():
    assert told({"compatible": {"old": ["EPYC 7402"]}}, hardware_class="old") == []


def test_a_host_that_is_left_out_is_not_missed():
    assert told(survey=None, left_out=True) == []


def test_a_busy_machine_takes_no_clock_for_wrong():
    """A host is asked and answers somewhere between two moments; only a clock outside them is surely wrong."""
    hosts = [replace(found(name), asked=NOW - 300) for name in [*HEAD, *WORKERS]]
    assert problems(site(), hosts, NOW + 300) == []


def test_a_machine_that_can_deploy_lacks_nothing(tmp_path):
    assert deployer.problems([str(tmp_path / "cache"), str(tmp_path)], library=True) == []
    assert not any(tmp_path.iterdir())


def test_what_the_machine_that_deploys_lacks_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(deployer.sys, "executable", str(tmp_path / "python3"))
    monkeypatch.setattr(deployer, "MODULES", ("hatchling", "no_such_module"))
    (tmp_path / "file").touch()
    packing, compilers, folder = deployer.problems([str(tmp_path / "file/cache")] * 2, library=True)
    assert "lacks no_such_module, uv beside" in packing
    assert "failavoid[deploy]" in packing
    assert "apt-get install gcc make" in compilers
    assert "mpi_wrapper_library" in compilers
    assert f"can't write {tmp_path}/file/cache" in folder
    assert "service_common_cache" in folder
    assert len(deployer.problems([], library=False)) == 1


def test_all_problems_are_told_at_once():
    assert len(told({"spares": 0, "guest_network": ""}, python=[3, 7], bridges=[])) == 4


CAPABILITIES = """
<domainCapabilities><cpu>
  <mode name='host-model' supported='yes'><model fallback='forbid'>EPYC-Rome</model></mode>
  <mode name='custom' supported='yes'>
    <model usable='yes' vendor='AMD'>EPYC</model>
    <model usable='no' vendor='AMD'>EPYC-Milan</model>
  </mode>
</cpu></domainCapabilities>
"""


@pytest.mark.parametrize(("model", "offered"), [("EPYC", True), ("EPYC-Milan", False), ("EPYC-Rome", False)])
def test_a_host_offers_the_processors_that_libvirt_calls_usable(model, offered):
    assert offers(CAPABILITIES, model) is offered


def test_a_host_that_does_not_offer_the_guests_processor_is_named():
    offering = {"host01": True, "host02": False, "host03": None}
    workers = [found(name, cpu_model="EPYC", cpu_model_offered=offered) for name, offered in offering.items()]
    (problem,) = problems(site(), [found("head01"), *workers], NOW + 1)
    assert "host02 does not offer guest_cpu_model EPYC" in problem
    assert "virsh domcapabilities" in problem
    emulated = [replace(host, emulated=True) for host in workers]
    assert problems(site(), [found("head01"), *emulated], NOW + 1) == []


def test_before_libvirt_is_there_nobody_knows_what_a_host_offers():
    assert offers("", "EPYC") is None


def test_looking_at_this_machine_changes_nothing_and_tells_figures(tmp_path):
    seen = look(str(tmp_path / "store"), users=["root", "no-such-user"])
    assert seen.memory_kb > 0
    assert "127.0.0.1" in seen.addresses
    assert seen.file_system
    assert seen.unknown_users == ["no-such-user"]
    assert not any(tmp_path.iterdir())
