"""Guests on a real host, by the playbooks alone: started, verified, guarded, removed; strangers are refused."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.testbed.by_hand import DIRECTORIES, adhoc, make, said

START = "Start the guests and wait until they are up"
REMOVE = "Remove the guests"
ONE, TWO = "hand-1", "hand-2"


@pytest.fixture(scope="module")
def host(empty_hosts):
    """The host these guests run on."""
    return empty_hosts[-1]


@pytest.fixture(scope="module")
def hand(site, host, tmp_path_factory):
    """Two guests, started by one call of launch.yml."""
    hand = make(site, tmp_path_factory.mktemp("by-hand"))
    hand.clear(ONE, TWO, "hand-4")
    hand.first = hand.launch(host, hand.describe(ONE, 241), hand.describe(TWO, 242))
    yield hand
    hand.clear(ONE, TWO, "hand-4")


def test_the_result_names_each_guest_and_says_that_its_pins_were_verified(hand, host):
    assert hand.first.failures == []
    guests = said(hand.first, host, START)["guests"]
    assert [(one["guest"], one["state"], one["pin_verified"]) for one in guests] == [
        (ONE, "running", True),
        (TWO, "running", True),
    ]
    assert all(one["boot_s"] > 0 for one in guests)
    assert hand.domains(host) == {ONE: "running", TWO: "running"}


def test_the_kernel_agrees_on_cores_and_memory(hand, host):
    for name in (ONE, TWO):
        seen = hand.shell(
            host,
            f"""pid=$(cat /run/libvirt/qemu/{name}.pid)
            for task in /proc/$pid/task/*; do grep -q '^CPU 0/' $task/comm && grep Cpus_allowed_list $task/status; done
            grep -c ' bind:0 ' /proc/$pid/numa_maps""",
        ).split()
        assert seen[:2] == ["Cpus_allowed_list:", str(hand.guests[name]["cores"][0])]
        assert int(seen[2]) >= 1


def test_a_guest_does_not_come_back_by_itself(hand, host):
    assert hand.site.run(host, "virsh", "list", "--all", "--persistent", "--name").split() == []


def test_the_state_directory_tells_what_runs_there(hand, host):
    noted = hand.state(host, ONE)
    wanted = hand.guests[ONE]
    assert {key: noted[key] for key in ("guest", "state", "uuid", "image", "address", "host", "cores")} == {
        "guest": ONE,
        "state": "running",
        "uuid": wanted["uuid"],
        "image": wanted["image"],
        "address": wanted["address"],
        "host": host,
        "cores": wanted["cores"],
    }
    console = hand.site.run(host, "cat", f"{DIRECTORIES}/{ONE}/console.log")
    assert f"failavoid: guest {ONE} is up" in console
    assert f"<uuid>{wanted['uuid']}</uuid>" in hand.site.run(host, "cat", f"{DIRECTORIES}/{ONE}/domain.xml")


def test_a_guests_secret_is_for_its_qemu_alone(hand, host):
    shown = hand.site.run(host, "stat", "-c", "%a %U %G", f"{DIRECTORIES}/{ONE}/identity.json").split()
    assert shown[0] == "640"
    assert "libvirt-qemu" in shown[1:]
    secret = (hand.folder / "host_key").read_text().splitlines()[2]
    commands = hand.shell(host, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "opt/failavoid/identity" in commands
    assert secret not in commands
    assert secret not in hand.site.run(host, "virsh", "dumpxml", ONE)
    for log in (hand.folder / "logs").glob("*.log"):
        assert secret not in log.read_text()


def test_guests_are_preferred_by_the_oom_killer_only_as_far_as_the_inventory_says(hand, host):
    scores = hand.shell(host, f"cat /proc/$(cat /run/libvirt/qemu/{ONE}.pid)/oom_score_adj")
    assert int(scores) == hand.site.hosts[host].get("guest_oom_score_adj", 0)


@pytest.mark.parametrize("vcpus", [2, 4])
def test_every_vcpu_of_a_larger_guest_has_its_core_and_qemus_other_threads_the_guests_cores(hand, host, vcpus):
    name = f"hand-6-{vcpus}"
    hand.clear(name)
    try:
        started = hand.launch(host, hand.describe(name, 249, vcpus=vcpus, cores=[0, 1]))
        assert started.failures == []
        (told,) = said(started, host, START)["guests"]
        assert (told["pin_verified"], told["pin_differences"]) == (True, [])
        allowed = hand.shell(
            host,
            f"""for task in /proc/$(cat /run/libvirt/qemu/{name}.pid)/task/*; do
            echo "$(cat $task/comm):$(grep Cpus_allowed_list $task/status | cut -f2)"; done""",
        ).splitlines()
        by_vcpu = {line.split("/")[0]: line.rsplit(":", 1)[1] for line in allowed if line.startswith("CPU ")}
        assert by_vcpu == {f"CPU {number}": str(number % 2) for number in range(vcpus)}
        others = {line.rsplit(":", 1)[1] for line in allowed if not line.startswith("CPU ")}
        assert others <= {"0-1", "0", "1"}
        assert hand.run(name, "nproc").strip() == str(vcpus)
    finally:
        hand.clear(name)


def test_a_guest_on_hugepages_does_not_start_where_none_are_set_aside(hand, host):
    facts = json.loads(hand.site.run(host, "cat", "/etc/failavoid/host.json"))
    assert facts["hugepages"] == {}, "this test is for a testbed without hugepages"
    hand.clear("hand-7")
    refused = hand.launch(host, hand.describe("hand-7", 250, hugepage_kb=2048))
    assert "guest hand-7 could not be started" in refused.failures[0]
    assert "hand-7" not in hand.domains(host)
    assert "hand-7" not in hand.site.run(host, "ls", DIRECTORIES)


def test_started_again_nothing_changes(hand, host):
    again = hand.launch(host, hand.guests[ONE], hand.guests[TWO])
    assert again.failures == []
    task = said(again, host, START)
    assert task["changed"] is False
    assert [one["pin_verified"] for one in task["guests"]] == [True, True]


def test_a_running_guest_is_not_taken_for_another_definition_and_check_mode_says_so_too(hand, host, site):
    refused = hand.play("launch.yml", launch_guests=[{**hand.guests[ONE], "host": host, "memory_kb": 300000}])
    (words,) = refused.failures
    assert "memory 262144 KiB instead of 300000 KiB" in words
    assert "remove it first" in words
    other = {**hand.guests[ONE], "memory_kb": 300000}
    checked = adhoc(site, host, "failavoid_guest", check=True, guests=[other])
    assert "memory 262144 KiB instead of 300000 KiB" in checked["msg"]


def test_check_mode_says_what_would_be_done_and_does_nothing(hand, host, site):
    new = {**hand.describe("hand-3", 243), "host": host}
    shown = adhoc(site, host, "failavoid_guest", check=True, guests=[new])
    assert shown["changed"] is True
    gone = adhoc(site, host, "failavoid_guest", check=True, state="absent", guests=[{"name": ONE}])
    assert gone["changed"] is True
    assert hand.domains(host) == {ONE: "running", TWO: "running"}
    assert "hand-3" not in hand.site.run(host, "ls", DIRECTORIES)


def test_who_acts_on_a_guest_keeps_others_away(hand, host):
    lock = f"{DIRECTORIES}/{ONE}/lock"
    holder = subprocess.Popen(
        hand.site.ssh(host, "flock", lock, "sh", "-c", f"echo 'repair by hand' >{lock}; echo held; read wait"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        refused = hand.remove(host, ONE)
    finally:
        holder.communicate(b"\n", timeout=30)
    assert f"guest {ONE} on {host} is locked by: repair by hand" in refused.failures[0]
    assert hand.domains(host)[ONE] == "running"


def test_a_guest_that_does_not_come_up_is_told_with_its_console(hand, host):
    broken = hand.describe("hand-4", 244)
    broken["cmdline"] = broken["cmdline"].replace("init=/", "init=/no/such/").replace(" quiet", "")
    told = hand.launch(host, broken)
    (words,) = told.failures
    assert words.startswith(f"{host}: {START}: {host}: guest hand-4: ")
    assert "The last lines of its console:\n" in words
    assert "hand-4" not in hand.domains(host)
    assert hand.state(host, "hand-4")["state"] == "failed"
    assert "identity.json" not in hand.site.run(host, "ls", f"{DIRECTORIES}/hand-4")
    removed = said(hand.remove(host, "hand-4"), host, REMOVE)
    assert removed["changed"] is True


SPOOF = """
set -e
ip netns add spoof
trap 'ip netns del spoof; ip link del {tap} 2>/dev/null || true' EXIT
ip link add {tap} type veth peer name inside netns spoof
ip link set {tap} master br0 up
ip -n spoof link set inside address {mac} up
ip -n spoof address add {address}/16 dev inside
ip netns exec spoof ping -q -c 1 -W 2 {head} >/dev/null && echo its-own-address-is-heard
ip -n spoof address add {other}/16 dev inside
ip -n spoof neigh replace {head} lladdr {head_mac} dev inside nud permanent
ip netns exec spoof ping -q -c 1 -W 1 -I {other} {head} >/dev/null || echo another-address-is-not
ip -n spoof link set inside address 52:54:00:00:00:99
ip netns exec spoof ping -q -c 1 -W 1 -I {address} {head} >/dev/null || echo another-hardware-address-is-not
"""


def test_a_tap_speaks_with_its_guests_addresses_alone(hand, host, site):
    fake = hand.describe("hand-5", 245)
    address = fake["address"]
    head = site.hosts[site.head]["ansible_host"]
    numbers = bytes(int(part) for part in address.split("."))
    mac = "52:54:" + ":".join(f"{byte:02x}" for byte in numbers)
    hand.play(
        "migrate.yml",  # prepares the host, and forgets the guest again: the table is there afterwards
        **{
            "evacuation": "evac-no-guest",
            "migrate_guests": [{**fake, "source": host, "destination": host, "destination_address": head}],
        },
    )
    tap = f"fa-{numbers.hex()}"
    elements = f'guests {{ "{tap}" . {mac} . {address} }}', f'hardware {{ "{tap}" . {mac} }}'
    hand.shell(host, " && ".join(f"nft 'add element bridge failavoid {one}'" for one in elements))
    try:
        head_mac = site.run(site.head, "cat", "/sys/class/net/host0/address").strip()
        script = SPOOF.format(
            tap=tap, mac=mac, address=address, other=address.rsplit(".", 1)[0] + ".246", head=head, head_mac=head_mac
        )
        seen = hand.shell(host, script).split()
    finally:
        hand.shell(host, " && ".join(f"nft 'delete element bridge failavoid {one}'" for one in elements))
    assert seen == ["its-own-address-is-heard", "another-address-is-not", "another-hardware-address-is-not"]


def test_the_host_says_what_it_offers(site, host):
    facts = json.loads(site.run(host, "cat", "/etc/failavoid/host.json"))
    assert facts["domain_type"] in ("kvm", "qemu")
    assert facts["cores"] == sorted(core for cores in facts["numa"].values() for core in cores)
    memory = int(site.run(host, "grep", "MemTotal", "/proc/meminfo").split()[1])
    assert facts["memory_kb"] == memory


def test_the_head_asks_a_hosts_libvirt_with_its_certificate_and_a_stranger_can_not(hand, host, site):
    address = site.hosts[host]["ansible_host"]
    asked = ["virsh", "--readonly", "--connect", f"qemu+tls://{address}/system", "list", "--name"]
    assert ONE in site.run(site.head, *asked).split()
    asked[3] += "?pkipath=/tmp/stranger"
    make_stranger = """
    rm -rf /tmp/stranger; mkdir /tmp/stranger; cd /tmp/stranger; cp /etc/pki/CA/cacert.pem .
    certtool --generate-privkey --key-type=rsa --bits=2048 --outfile=clientkey.pem 2>/dev/null
    printf 'cn = "stranger"\\ntls_www_client\\nsigning_key\\nencryption_key\\nexpiration_days = 1\\n' >template
    certtool --generate-self-signed --load-privkey=clientkey.pem --template=template \\
      --outfile=clientcert.pem 2>/dev/null
    """
    hand.shell(site.head, make_stranger)
    refused = hand.shell(site.head, f"{' '.join(asked)} 2>&1; rm -rf /tmp/stranger", check=False)
    assert ONE not in refused
    assert "error" in refused


def test_libvirt_listens_on_the_hosts_network_alone_and_only_with_tls(site, host):
    listening = site.run(host, "ss", "-Hltn").split()
    assert f"{site.hosts[host]['ansible_host']}:16514" in listening
    assert not [one for one in listening if one.endswith(":16509")]
    assert [one for one in listening if one.endswith(":16514")] == [f"{site.hosts[host]['ansible_host']}:16514"]


def test_a_bridge_takes_over_an_uplink_once(hand, host, site):
    hand.shell(
        host, "ip link add try0 type veth peer try1 && ip address add 198.51.100.7/28 dev try0 && ip link set try0 up"
    )
    try:
        wanted = {"name": "try-br", "uplink": "try0", "address": "198.51.100.7"}
        assert adhoc(site, host, "failavoid_interface", check=True, **wanted)["changed"] is True
        made = adhoc(site, host, "failavoid_interface", **wanted)
        assert made["changed"] is True
        assert made["interface"] == {"name": "try-br", "ports": ["try0"], "addresses": ["198.51.100.7/28"], "up": True}
        assert adhoc(site, host, "failavoid_interface", check=True, **wanted)["changed"] is False
        assert adhoc(site, host, "failavoid_interface", **wanted)["changed"] is False
        other = adhoc(site, host, "failavoid_interface", name="try-br", address="198.51.100.8")
        assert "has not the host's address 198.51.100.8" in other["msg"]
    finally:
        hand.shell(host, "ip link del try-br; ip link del try0", check=False)
    missing = adhoc(site, host, "failavoid_interface", name="no-such-br")
    assert "set network_uplink" in missing["msg"]


def test_a_host_with_guests_is_not_retired_and_an_empty_one_is(hand, host, site):
    refused = hand.play("retire.yml", retire_host=host, retire_reason="a test")
    assert f"{host} still has {ONE}, {TWO}" in refused.failures[0]
    assert site.run(host, "ls", "/etc/failavoid/retired", check=False) == ""


def test_a_guest_is_removed_with_all_that_the_host_kept_of_it(hand, host, site):
    other = hand.remove(host, ONE, uuid="11111111-8f2b-4f0e-9a51-0c8c6a1b2c3d")
    assert "not removed" in other.failures[0]
    assert hand.guests[ONE]["address"] in hand.filter(host)
    removed = hand.remove(host, ONE, TWO)
    assert removed.failures == []
    assert [one["guest"] for one in said(removed, host, REMOVE)["guests"]] == [ONE, TWO]
    assert hand.domains(host) == {}
    assert site.run(host, "ls", DIRECTORIES) == ""
    assert hand.guests[ONE]["address"] not in hand.filter(host)
    assert said(hand.remove(host, ONE, TWO), host, REMOVE)["changed"] is False

    assert hand.play("retire.yml", retire_host=host, retire_reason="a test").failures == []
    assert site.run(host, "cat", "/etc/failavoid/retired") == "a test\n"
    for name in ("restore-1", "restore-2"):  # as of guests that a host expected when it died
        expected = json.dumps({"guest": name, "state": "expected", "address": "10.77.3.249"})
        site.run(host, "sh", "-c", f"mkdir {DIRECTORIES}/{name} && echo '{expected}' >{DIRECTORIES}/{name}/state.json")
    assert hand.play("restore.yml", restore_host=host, restore_coming=["restore-2"]).failures == []
    assert site.run(host, "ls", DIRECTORIES).split() == ["restore-2"]
    hand.clear("restore-2")
    assert site.run(host, "ls", "/etc/failavoid/retired", check=False) == ""
