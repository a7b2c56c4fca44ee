"""Guests on a host: told from others of their name, awaited on their console, prepared for and removed with care."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import libvirt
import pytest

from failavoid.shared import domain_xml, guest_state, guests, taps

SPEC = domain_xml.GuestSpec(
    name="g1",
    uuid="6f1c7a2e-8f2b-4f0e-9a51-0c8c6a1b2c3d",
    memory_kb=262144,
    cores=[0],
    numa_node=0,
    address="10.77.2.3",
    kernel="/boot/vmlinuz",
    initrd="/boot/initrd.img",
    cmdline="console=ttyS0",
)
TEST_DRIVER = domain_xml.HostSettings("test")


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Libvirt's own test driver as this host; its taps' filter is a list."""
    allowed = []
    monkeypatch.setattr(guest_state, "GUESTS", tmp_path / "guests")
    monkeypatch.setattr(taps, "allow", allowed.append)
    monkeypatch.setattr(taps, "forbid", lambda address: address in allowed and allowed.remove(address))
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open("test:///default")
    connection.allowed = allowed
    yield connection
    for domain in connection.listAllDomains():  # the driver's state is the process's
        if domain.name() != "test":
            domain.destroy()
    connection.close()


def xml(**changes):
    return domain_xml.guest_xml(replace(SPEC, **changes), TEST_DRIVER, "/state/g1")


def running(host, **changes):
    domain = host.createXML(xml(**changes))
    with guest_state.locked("g1", "start") as path:
        guest_state.note(path, guest="g1", state="running", address=SPEC.address)
    host.allowed.append(SPEC.address)
    return domain


def test_what_libvirt_makes_of_a_definition_means_the_same(host):
    assert domain_xml.differences(xml(), running(host).XMLDesc()) == []


def test_the_same_size_in_another_unit_is_the_same():
    emulated = domain_xml.guest_xml(SPEC, domain_xml.HostSettings("qemu"), "/state/g1")
    found = ET.fromstring(emulated)
    for path, size, unit in (("memory", "256", "MiB"), ("features/tcg/tb-cache", "65536", "KiB")):
        found.find(path).text, found.find(path).attrib["unit"] = size, unit
    assert domain_xml.differences(emulated, ET.tostring(found, encoding="unicode")) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_kb": 524288}, "memory 262144 KiB instead of 524288 KiB"),
        ({"vcpus": 2}, "vcpu 1 instead of 2"),
        ({"kernel": "/new"}, "os/kernel /boot/vmlinuz instead of /new"),
        ({"cmdline": "quiet"}, "os/cmdline console=ttyS0 instead of quiet"),
        ({"address": "10.77.2.4"}, "devices/interface/mac address 52:54:0a:4d:02:03 instead of 52:54:0a:4d:02:04"),
    ],
)
def test_a_guest_that_runs_otherwise_is_told_from_the_wanted_one(changes, words):
    assert domain_xml.differences(xml(**changes), xml()) == [words]


def test_a_running_guest_is_not_taken_for_one_of_another_definition_or_uuid(host):
    running(host)
    with pytest.raises(
        guests.GuestError, match=r"runs, but with memory 262144 KiB instead of 1024 KiB\. .*remove it first"
    ):
        guests.start(host, replace(SPEC, memory_kb=1024), TEST_DRIVER, None, 1)
    other = "11111111-8f2b-4f0e-9a51-0c8c6a1b2c3d"
    with pytest.raises(guests.GuestError, match="another guest named g1 runs on this host"):
        guests.start(host, replace(SPEC, uuid=other), TEST_DRIVER, None, 1)


def test_a_guest_without_its_kernel_leaves_nothing_behind(host):
    with pytest.raises(guests.GuestError, match=r"/boot/vmlinuz is not on this host: run the role 'guest'"):
        guests.start(host, SPEC, TEST_DRIVER, None, 1)
    assert not guest_state.directory("g1").exists()
    assert host.allowed == []


def console(tmp_path, text):
    path = tmp_path / "console.log"
    path.write_text(text)
    return path


def test_a_guest_is_up_when_its_console_says_so(tmp_path):
    guests.await_console("g1", console(tmp_path, "booting\r\nfailavoid: guest g1 is up\r\n"), 20)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x\nfailavoid: error: no NFS server at 10.77.0.1\n", r"g1: failavoid: error: no NFS server at 10\.77\.0\.1\."),
        ("[0.1] Kernel panic - not syncing: VFS\n", r"g1: Kernel panic - not syncing: VFS\."),
        ("failavoid: guest g2 is up\n", "g1: it did not come up within 0 s"),
        ("", r"g1: it did not come up within 0 s[^\n]*\n\(it has said nothing\)"),
    ],
)
def test_a_guest_that_does_not_come_up_is_told_with_its_consoles_last_lines(tmp_path, monkeypatch, text, reason):
    monkeypatch.setattr(guests, "LOOK_S", 0.2)
    with pytest.raises(guests.GuestError, match=reason) as raised:
        guests.await_console("g1", console(tmp_path, text), 0.1)
    assert text.strip() in str(raised.value)


def test_a_guest_whose_qemu_ends_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(guests, "LOOK_S", 0.2)
    with pytest.raises(guests.GuestError, match="its QEMU has ended while it booted"):
        guests.await_console("g1", console(tmp_path, "booting\n"), 3600, lambda: False)


def test_the_last_lines_are_the_last(tmp_path):
    said = guests.last_lines(console(tmp_path, "".join(f"line {n}\n" for n in range(100))))
    assert said.splitlines() == [f"line {n}" for n in range(100 - guests.CONSOLE_LINES, 100)]


def test_a_host_without_the_bridge_is_not_prepared(host):
    with pytest.raises(guests.GuestError, match="there is no bridge no-such on this host: run the role 'network'"):
        guests.expect(host, "g1", SPEC.address, "no-such", "evac-1", [])
    assert not guest_state.directory("g1").exists()


def test_nothing_is_prepared_over_a_guest_that_is_here(host):
    running(host)
    with pytest.raises(guests.GuestError, match="is on this host already"):
        guests.expect(host, "g1", SPEC.address, "br0", "evac-1", [])


def test_asked_again_in_the_same_evacuation_nothing_is_changed(host):
    running(host)
    guest_state.note(guest_state.directory("g1"), evacuation="evac-1")
    assert guests.expect(host, "g1", SPEC.address, "br0", "evac-1", [])["changed"] is False


def test_a_guest_that_was_expected_and_did_not_come_is_forgotten_and_one_that_runs_is_not(host):
    with guest_state.locked("g2", "prepare") as path:
        guest_state.note(path, guest="g2", state="expected", address="10.77.2.9")
    host.allowed.append("10.77.2.9")
    running(host)
    assert [guests.not_expected(host, name) for name in ("g1", "g2", "g3")] == [False, True, False]
    assert host.allowed == [SPEC.address]
    assert not guest_state.directory("g2").exists()


def test_a_guest_is_removed_with_its_secret_and_its_taps_right(host):
    running(host)
    guest_state.write_private(guest_state.directory("g1") / "identity.json", "{}")
    assert guests.end(host, "g1", SPEC.uuid) is True
    assert guests.find(host, "g1") is None
    assert not guest_state.directory("g1").exists()
    assert host.allowed == []
    assert guests.end(host, "g1", SPEC.uuid) is False


def test_a_guest_of_another_uuid_is_not_removed(host):
    running(host)
    with pytest.raises(guests.GuestError, match="not removed"):
        guests.end(host, "g1", "11111111-8f2b-4f0e-9a51-0c8c6a1b2c3d")
    assert guests.is_running(host, "g1")


def test_a_listing_shows_libvirts_word_beside_the_directorys(host):
    running(host).suspend()
    with guest_state.locked("lost", "start") as path:
        guest_state.note(path, guest="lost", state="running")
    shown = {one["guest"]: one for one in guests.listing(host)}
    assert (shown["g1"]["uuid"], shown["g1"]["running"], shown["g1"]["noted"]["state"]) == (SPEC.uuid, False, "running")
    assert (shown["lost"]["uuid"], shown["lost"]["running"]) == (None, False)
