"""Hosts that boot the system image over the network by a site's playbooks: emulated machines with two NUMA nodes.

A container on a machine with one NUMA node can't show a guest on the wrong one: here it can be.
"""

from __future__ import annotations

import json
import uuid

import pytest

from tests.netboot import asking, place

pytestmark = pytest.mark.timeout(3600)

HOST = place.BIOS.name
GUEST = {"name": "pinned", "cores": [2], "numa_node": 1}  # a core of the second node
# A guest that does no more than to boot its kernel: an emulated CPU's emulated CPU is slow.
MAKE_INITRD = """
set -e
rm -rf /run/initrd && mkdir -p /run/initrd/bin && cp /usr/bin/busybox /run/initrd/bin/busybox
cat >/run/initrd/init <<'END'
#!/bin/busybox sh
echo "failavoid: guest pinned is up"
while :; do /bin/busybox sleep 60; done
END
chmod 0755 /run/initrd/init
(cd /run/initrd && find . | cpio --quiet --create --format=newc) >/var/lib/failavoid/boot/no-more.img
"""


def image():
    """What the current image's manifest says."""
    return json.loads((place.STORE / "current/manifest.json").read_text())


# -- what firmware is told


def test_firmware_gets_ipxe_and_ipxe_its_hosts_script(site):
    for booted in (place.BIOS, place.UEFI):
        for words, file in (
            ({"architecture": asking.BIOS}, "undionly.kpxe"),
            ({"architecture": asking.UEFI_X86_64}, "snponly.efi"),
            ({"architecture": asking.BIOS, "ipxe": True}, f"{booted.name}.ipxe"),
            ({"architecture": asking.UEFI_X86_64, "ipxe": True}, f"{booted.name}.ipxe"),
        ):
            told = asking.offer(place.BRIDGE, booted.mac, **words)
            assert told == {"address": booted.address, "boot_file": file}, words


def test_a_stranger_is_not_answered(site):
    assert asking.offer(place.BRIDGE, "52:54:00:99:99:99") == {}


def test_what_a_host_boots_can_be_fetched_and_nothing_else_of_the_image(site):
    root = image()["root"]
    assert asking.fetch(place.HEAD_ADDRESS, f"{HOST}.ipxe").startswith(b"#!ipxe\n")
    assert len(asking.fetch(place.HEAD_ADDRESS, f"{root}/vmlinuz")) == 512
    for name in (f"{root}/../../etc/shadow", "../sysimage/current/manifest.json", "/etc/passwd"):
        with pytest.raises(FileNotFoundError):
            asking.fetch(place.HEAD_ADDRESS, name)


def test_the_playbook_that_lets_hosts_boot_changes_nothing_the_second_time(site):
    said = place.play(site.inventory, "netboot.yml")
    assert f"{place.HEAD} " in said
    recap = said.split("PLAY RECAP")[1]
    assert "changed=0" in next(line for line in recap.splitlines() if line.startswith(place.HEAD)), said[-3000:]


# -- a host that has booted


def test_a_host_boots_the_current_image_as_the_inventory_names_it(site, booted):
    assert site.run(HOST, "hostname").strip() == HOST
    mark = json.loads(site.run(HOST, "cat", "/usr/lib/failavoid/image.json"))
    assert (mark["image"], mark["class"]) == (image()["digest"], "host")
    assert "systemd" in site.run(HOST, "cat", "/proc/1/comm")
    store = f"{place.HEAD_ADDRESS}:{place.STORE}"
    assert store in site.run(HOST, "findmnt", "--noheadings", "--output=SOURCE", "--types=nfs").split()


def test_a_host_boots_from_the_card_that_the_inventory_names_though_it_is_not_the_first(site, booted):
    links = {link["ifname"]: link for link in json.loads(site.run(HOST, "ip", "-json", "link"))}
    assert links["boot0"]["address"] == place.BIOS.mac.lower()
    assert "eth0" in links, "the other card is the first on the bus"


def test_the_bridge_takes_over_the_card_that_the_root_comes_over(site, booted):
    links = {link["ifname"]: link for link in json.loads(site.run(HOST, "ip", "-json", "-4", "address"))}
    assert links["br0"]["addr_info"][0]["local"] == place.BIOS.address
    assert "boot0" not in links or not links["boot0"]["addr_info"]


def test_the_host_says_that_it_has_two_numa_nodes(site, booted):
    facts = place.module(site.inventory, HOST, "failavoid_numa_info")
    assert "msg" not in facts, facts["msg"]
    assert facts["changed"] is False, "the role 'hypervisor' has found the same"
    assert facts["host"]["numa"] == {"0": [0, 1], "1": [2, 3]}
    assert facts["host"]["cores"] == [0, 1, 2, 3]
    assert facts["host"]["domain_type"] == "qemu"


def test_cores_that_guests_may_not_use_are_left_out_of_their_node(site, booted):
    facts = place.module(site.inventory, HOST, "failavoid_numa_info", cores=[1, 2, 3], path="/run/host.json")
    assert facts["host"]["numa"] == {"0": [1], "1": [2, 3]}


# -- a guest on its node, and on the wrong one


@pytest.fixture(scope="module")
def guest(site, booted):
    """Start a guest on the second node by the project's module; return how to look at it again."""
    site.run(HOST, "sh", "-c", MAKE_INITRD)
    spec = {
        **GUEST,
        "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, GUEST["name"])),
        "memory_kb": 131072,
        "address": "10.78.2.1",
        "kernel": f"/var/lib/failavoid/boot/{image()['root']}/vmlinuz",
        "initrd": "/var/lib/failavoid/boot/no-more.img",
        "cmdline": "console=ttyS0 cryptomgr.notests random.trust_cpu=on no_timer_check",
    }

    def look(**changes):
        return place.module(site.inventory, HOST, "failavoid_guest", guests=[{**spec, **changes}], boot_timeout=360)

    look.first = look()
    yield look
    place.module(site.inventory, HOST, "failavoid_guest", state="absent", guests=[{"name": GUEST["name"]}])


def shell(site, script):
    """Run a script on the host that knows the process id of the guest's QEMU as $pid."""
    return site.run(HOST, "sh", "-c", f"pid=$(cat /run/libvirt/qemu/{GUEST['name']}.pid); {script}")


def test_a_guest_runs_on_its_node(guest, site):
    assert "msg" not in guest.first, guest.first["msg"]
    (told,) = guest.first["guests"]
    assert (told["pin_verified"], told["pin_differences"]) == (True, [])
    assert list(told["pages_by_node"]) == ["1"]
    assert told["pages_by_node"]["1"] * told["page_kb"] > 16384, "a kernel has booted in that memory"


def test_the_hosts_kernel_agrees(guest, site):
    vcpu = shell(site, "grep -l '^CPU 0/' /proc/$pid/task/*/comm | sed s/comm/status/ | xargs grep Cpus_allowed_list")
    assert vcpu.split() == ["Cpus_allowed_list:", "2"]
    largest = shell(site, "sort -t= -k2 /proc/$pid/numa_maps | grep 'bind:1 ' | grep -c 'N1='")
    assert int(largest) >= 1


def test_memory_that_lies_on_the_wrong_node_is_found_out(guest, site):
    shell(site, "migratepages $pid 1 0")
    wrong = guest()
    (told,) = wrong["guests"]
    assert told["pin_verified"] is False
    assert any("pages lie on other NUMA nodes than 1: {0: " in words for words in told["pin_differences"])
    assert HOST in wrong["msg"]
    assert "pages lie on other NUMA nodes than 1" in wrong["msg"]
    shell(site, "migratepages $pid 0 1")
    assert guest()["guests"][0]["pin_verified"] is True


def test_a_processor_that_may_run_on_the_wrong_core_is_found_out(guest, site):
    site.run(HOST, "virsh", "vcpupin", GUEST["name"], "0", "0")
    wrong = guest()
    assert f"guest {GUEST['name']}: vCPU 0 may run on cores [0], not [2]" in wrong["msg"]
    site.run(HOST, "virsh", "vcpupin", GUEST["name"], "0", "2")
    assert guest()["guests"][0]["pin_verified"] is True


def test_a_guest_that_was_to_be_on_the_other_node_is_found_out(guest):
    wrong = guest(cores=[0], numa_node=0)
    (told,) = wrong["guests"]
    assert told["pin_verified"] is False
    for words in ("vCPU 0 may run on cores [2], not [0]", "bind:1, not bind:0", "other NUMA nodes than 0: {1: "):
        assert words in wrong["msg"]


# -- other firmware


def test_a_machine_with_uefi_and_no_ipxe_boots_so_too(site):
    machine = place.Machine(place.UEFI)
    try:
        said = machine.await_console("login: |Reached target")
    finally:
        machine.end()
    assert f"failavoid.image={image()['digest']}" in said
    assert place.UEFI.address in said


# -- the end


def test_what_a_running_host_has_its_root_from_is_not_removed(site, booted):
    meant = {"remove_confirmed": True, "remove_running_guests": True}
    refusal = place.refused(site.inventory, "remove.yml", "--limit", f"{place.HEAD}:{HOST}", **meant)
    assert f"{HOST} has booted over the network and runs from the head's NFS server" in refusal
    assert "-e remove_running_hosts=true. Nothing was changed." in refusal
    assert site.run(HOST, "ls", "/usr").split(), "its root is still there"


def test_what_serves_can_be_removed(site, booted):
    place.play(site.inventory, "netboot_absent.yml")
    assert site.run(place.HEAD, "ls", "/var/lib/failavoid/netboot", check=False) == ""
    assert site.run(place.HEAD, "systemctl", "is-active", "failavoid-netboot", check=False).strip() == "inactive"
    assert asking.offer(place.BRIDGE, place.BIOS.mac) == {}
    assert site.run(HOST, "cat", "/proc/1/comm").strip() == "systemd", "hosts that have booted need it no more"
