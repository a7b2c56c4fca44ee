"""A guest's domain XML, its state directory and lock, and how its pins are checked."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import libvirt
import pytest

from failavoid.shared import domain_xml, guest_state, pinning, taps

SPEC = domain_xml.GuestSpec(
    name="g0001",
    uuid="6f1c7a2e-8f2b-4f0e-9a51-0c8c6a1b2c3d",
    memory_kb=262144,
    cores=[2, 3],
    numa_node=1,
    address="10.77.2.3",
    kernel="/boot/vmlinuz",
    initrd="/boot/initrd.img",
    cmdline="console=ttyS0",
    vcpus=2,
    identity={"agent": {"token": "a-secret-token"}},
)


def domain(kind="qemu", **changes):
    return ET.fromstring(domain_xml.guest_xml(SPEC, domain_xml.HostSettings(kind, **changes), "/state/g0001"))


def test_each_vcpu_is_pinned_to_a_core_and_all_memory_to_its_node():
    made = domain()
    assert [(pin.get("vcpu"), pin.get("cpuset")) for pin in made.findall("cputune/vcpupin")] == [("0", "2"), ("1", "3")]
    assert made.find("cputune/emulatorpin").get("cpuset") == "2,3"
    assert made.find("numatune/memory").attrib == {"mode": "strict", "nodeset": "1"}


def test_the_guests_secret_is_in_a_file_and_not_in_its_definition():
    made = domain()
    assert made.find("sysinfo/entry").get("file") == "/state/g0001/identity.json"
    assert "a-secret-token" not in ET.tostring(made, encoding="unicode")


def test_a_guest_gives_memory_back_has_no_disk_and_does_not_start_again_by_itself():
    made = domain()
    assert made.find("devices/memballoon").get("freePageReporting") == "on"
    assert made.find("devices/disk") is None
    assert {made.findtext(event) for event in ("on_poweroff", "on_reboot", "on_crash")} == {"destroy"}


def test_only_an_emulated_guest_has_a_translation_cache():
    assert domain("qemu").findtext("features/tcg/tb-cache") == "64"
    assert domain("kvm").find("features/tcg") is None


def test_a_named_cpu_model_is_taken_as_it_is():
    assert domain(cpu_model="Westmere").findtext("cpu/model") == "Westmere"


def test_the_destinations_xml_differs_in_its_pins_alone():
    before = domain()
    after = ET.fromstring(domain_xml.destination_xml(ET.tostring(before, encoding="unicode"), [7], 0))
    assert [pin.get("cpuset") for pin in after.findall("cputune/vcpupin")] == ["7", "7"]
    assert after.find("numatune/memory").get("nodeset") == "0"
    for host_side in ("cputune", "numatune"):
        before.remove(before.find(host_side))
        after.remove(after.find(host_side))
    assert ET.canonicalize(ET.tostring(before)) == ET.canonicalize(ET.tostring(after))


def test_a_guest_without_a_core_is_refused():
    with pytest.raises(ValueError, match="at least one core"):
        domain_xml.destination_xml(ET.tostring(domain(), encoding="unicode"), [], 0)


def test_libvirt_takes_the_definition():
    connection = libvirt.open("test:///default")
    xml = domain_xml.guest_xml(SPEC, domain_xml.HostSettings("test"), "/state/g0001")
    made = connection.createXML(xml)
    assert made.UUIDString() == SPEC.uuid


def test_taps_have_names_that_fit_and_tell_guests_apart():
    names = {taps.tap_name(f"10.77.{block}.{host}") for block in (2, 3) for host in (1, 2, 255)}
    assert len(names) == 6
    assert all(len(name) <= 15 for name in names)


def test_a_guests_hardware_address_follows_from_its_address():
    assert taps.hardware_address("10.77.2.3") == "52:54:0a:4d:02:03"


def test_only_one_may_act_on_a_guest_and_the_other_is_told_who(tmp_path):
    refused = pytest.raises(guest_state.GuestLockedError, match="migration of evac-1")
    with guest_state.locked("g0001", "migration of evac-1", tmp_path), refused:
        guest_state.locked("g0001", "remove", tmp_path).__enter__()
    with guest_state.locked("g0001", "remove", tmp_path):
        pass


def test_the_state_directory_says_what_where_and_since_when(tmp_path):
    with guest_state.locked("g0001", "start", tmp_path) as path:
        guest_state.note(path, guest="g0001", state="running")
        noted = guest_state.note(path, cores=[1])
    assert noted["state"] == "running"
    assert noted["cores"] == [1]
    assert noted["since"] > 0
    assert guest_state.known(tmp_path) == ["g0001"]


def test_a_private_file_is_its_owners_alone(tmp_path):
    guest_state.write_private(tmp_path / "identity.json", "{}")
    assert (tmp_path / "identity.json").stat().st_mode & 0o077 == 0


def test_a_guests_name_can_not_lead_out_of_its_directory(tmp_path):
    with pytest.raises(ValueError, match="not allowed"):
        guest_state.directory("../etc", tmp_path)


def process(tmp_path, affinity="2", policy="bind:1", pages="N1=1000", threads=()):
    """A guest's process as the kernel shows it; ``threads`` are more of QEMU's, by name and affinity."""
    for number, (comm, allowed) in enumerate([("CPU 0/TCG", affinity), *threads], 78):
        task = tmp_path / "77" / "task" / str(number)
        task.mkdir(parents=True)
        (task / "comm").write_text(f"{comm}\n")
        (task / "status").write_text(f"Name:\tx\nCpus_allowed_list:\t{allowed}\n")
    (tmp_path / "77" / "numa_maps").write_text(
        f"7f0000000000 default file=/usr/lib/x N0=40 kernelpagesize_kB=4\n7f1000000000 {policy} anon=1000 {pages}\n"
    )
    return pinning.observe(77, tmp_path)


def test_a_guest_on_its_core_and_node_is_as_it_should_be(tmp_path):
    assert pinning.differences(process(tmp_path), [2], 1, 1) == []


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ({"affinity": "0-3"}, r"vCPU 0 may run on cores \[0, 1, 2, 3\], not \[2\]"),
        ({"policy": "default"}, "memory has policy default"),
        ({"policy": "bind:0"}, "memory has policy bind:0, not bind:1"),
        ({"threads": [("qemu-system-x86", "0-3")]}, r"QEMU's other threads may run on cores \[0, 1, 2, 3\], not \[2\]"),
        ({"pages": "N0=10 N1=990"}, r"pages lie on other NUMA nodes than 1: \{0: 10\}"),
    ],
)
def test_a_guest_that_runs_elsewhere_is_told_of(tmp_path, found, complaint):
    said = pinning.differences(process(tmp_path, **found), [2], 1, 1)
    assert len(said) == 1
    assert re.search(complaint, said[0])


@pytest.mark.parametrize("vcpus", [2, 4])
def test_every_vcpu_has_a_core_of_its_own_and_qemu_itself_the_guests_cores(tmp_path, vcpus):
    cores = list(range(4, 4 + vcpus))
    more = [(f"CPU {number}/KVM", core) for number, core in enumerate(cores[1:], 1)]
    emulator = [("qemu-system-x86", f"4-{cores[-1]}"), ("worker", "4")]
    found = process(tmp_path, affinity="4", threads=[*more, *emulator])
    assert pinning.differences(found, cores, 1, vcpus) == []
    swapped = pinning.differences(found, cores[::-1], 1, vcpus)
    assert len(swapped) == vcpus
    assert f"vCPU {vcpus} may run on cores None" in pinning.differences(found, [*cores, 9], 1, vcpus + 1)[0]


def test_a_guests_memory_is_found_on_hugepages_among_larger_numbers_of_small_ones(tmp_path):
    process(tmp_path)
    (tmp_path / "77" / "numa_maps").write_text(
        "7f0000000000 default file=/usr/lib/x N0=4000 kernelpagesize_kB=4\n"
        "7f1000000000 bind:1 file=/dev/hugepages/libvirt/qemu/1-g1/x huge dirty=128 N1=128 kernelpagesize_kB=2048\n"
    )
    found = pinning.observe(77, tmp_path)
    assert (found.pages, found.page_kb) == ({1: 128}, 2048)
    assert pinning.differences(found, [2], 1, 1, 2048) == []


def test_a_guest_that_should_be_on_hugepages_and_is_not_is_told_of(tmp_path):
    assert pinning.differences(process(tmp_path), [2], 1, 1, 2048) == ["memory lies on pages of 4 kB, not of 2048 kB"]


def test_a_guest_on_hugepages_keeps_them_and_is_told_from_one_on_ordinary_pages():
    made = domain_xml.guest_xml(replace(SPEC, hugepage_kb=2048), domain_xml.HostSettings("kvm"), "/state/g0001")
    assert domain_xml.hugepage_kb_of(made) == 2048
    assert ET.fromstring(made).find("devices/memballoon").get("freePageReporting") == "off"
    ordinary = domain_xml.guest_xml(SPEC, domain_xml.HostSettings("kvm"), "/state/g0001")
    assert domain_xml.differences(made, ordinary) == ["pages of 4 KiB instead of 2048 KiB"]
    moved = domain_xml.destination_xml(made, [7], 0)
    assert domain_xml.hugepage_kb_of(moved) == 2048


def test_a_guests_devices_are_in_its_definition_and_missed_where_it_runs_without():
    vf = {"kind": "ib-vf", "address": "0000:3b:02.1"}
    made = domain_xml.guest_xml(replace(SPEC, devices=[vf]), domain_xml.HostSettings("kvm"), "/state/g0001")
    assert list(domain_xml.passed_through(made)) == ["pci 0000:3b:02.1"]
    assert ET.fromstring(made).find("devices/hostdev").get("managed") == "yes"
    without = domain_xml.guest_xml(SPEC, domain_xml.HostSettings("kvm"), "/state/g0001")
    assert domain_xml.differences(made, without) == ["no pci 0000:3b:02.1"]


@pytest.mark.parametrize("address", ["3b:02.1", "0000:3b:02.9", "0000:3B:02.1", "{{ x }}"])
def test_what_is_no_pci_address_is_refused(address):
    with pytest.raises(ValueError, match=r"write it as 0000:3b:02\.1"):
        domain_xml.hostdev_xml(address)


def test_the_kernels_lists_are_read():
    assert pinning.parse_list("0-2,5,7-8\n") == [0, 1, 2, 5, 7, 8]
    assert pinning.parse_list("\n") == []
