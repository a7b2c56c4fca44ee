"""Devices that are passed through to guests: given up before a move, given again wherever the guest is after it."""

import json
import threading
import time

import libvirt
import pytest

from failavoid.shared import devices, guest_state, guests, migration, moves, pinning, taps
from tests.unit.migration_world import HUGEPAGES, RUNNING, Connection, World, error

HERE, THERE = "0000:3b:02.1", "0000:5e:00.1"
VF = {"kind": "ib-vf", "address": HERE}
VF_THERE = {"kind": "ib-vf", "address": THERE}
DESTINATION = "10.77.1.5"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A host with a guest that was started with a device, and an empty destination."""
    world = World("g1")
    world.devices["g1"] = [HERE]
    monkeypatch.setattr(guests, "connect", lambda: Connection(world, "host01"))
    monkeypatch.setattr(migration, "look_at", lambda address: Connection(world, address))
    monkeypatch.setattr(migration, "check_way", lambda _address: None)
    monkeypatch.setattr(migration, "RECORDS", tmp_path / "migrations")
    monkeypatch.setattr(migration, "WATCH_S", 0.01)
    monkeypatch.setattr(devices, "LOOK_S", 0.01)
    monkeypatch.setattr(devices, "listen", lambda: None)  # the world's events need no loop
    monkeypatch.setattr(guest_state, "GUESTS", tmp_path / "guests")
    monkeypatch.setattr(taps, "forbid", lambda _address: None)
    with guest_state.locked("g1", "start") as path:
        guest_state.note(path, guest="g1", state="running", cores=[0, 1], address="10.77.2.1", devices=[VF])
    return world


def move_of(*given):
    return moves.Move("g1", "host01", "host05", DESTINATION, [0, 1], 0, devices=list(given))


def perform(*given, **limits):
    record = moves.Record("evac-1", [move_of(*given)], moves.Limits(**limits))
    migration.perform(record)
    return record.moves[0]


def noted():
    return devices.unplugged(guest_state.directory("g1"))


def test_a_guest_moves_without_its_device_and_nothing_is_plugged_in_by_the_source(world):
    seen = []

    def arrives(guest):
        seen.append((list(world.devices["g1"]), list(noted())))
        world.arrives(guest)

    world.move = arrives
    assert perform(VF_THERE).state == "moved"
    assert seen == [([], [f"pci {HERE}"])]
    assert "<hostdev" not in world.given[0]["parameters"][libvirt.VIR_MIGRATE_PARAM_DEST_XML]
    assert world.attached == []
    assert world.callbacks == {}


def test_what_is_taken_from_a_guest_is_noted_before_it_is_taken(world):
    seen = []

    def looked_at(guest, address):
        seen.append(list(noted()))
        world.at_once(guest, address)

    world.gives_up = looked_at
    perform(VF_THERE)
    assert seen == [[f"pci {HERE}"]]


def test_a_move_that_is_given_up_gives_the_guest_its_device_again(world):
    def refused(_guest):
        raise error("unable to connect to server")

    world.move = refused
    move = perform(VF_THERE)
    assert (move.state, move.error) == ("failed", "unable to connect to server")
    assert world.devices["g1"] == [HERE]
    assert world.attached == [("host01", f"pci {HERE}")]
    assert noted() == {}


def test_a_device_that_cannot_be_given_again_is_named_with_the_move_and_stays_noted(world):
    def refused(_guest):
        raise error("unable to connect to server")

    world.move, world.attach_error = refused, error("device is in use")
    move = perform(VF_THERE)
    assert move.error == (
        f"unable to connect to server; guest g1 runs, but could not be given pci {HERE} (device is in use): its job "
        "does without, unless you give it with 'virsh attach-device'"
    )
    assert list(noted()) == [f"pci {HERE}"]


def test_a_guest_that_does_not_give_its_device_up_is_not_moved(world):
    world.gives_up = world.refuses
    move = perform(VF_THERE)
    assert (move.state, world.given) == ("failed", [])
    assert f"guest g1 does not give up pci {HERE}" in move.error
    world.gives_up = lambda _guest, _address: None  # says nothing
    move = perform(VF_THERE, unplug_s=0.05)
    assert "has not given up" in move.error
    assert "see whether its kernel takes part in hot-plugging" in move.error
    assert world.devices["g1"] == [HERE]


def test_a_request_that_the_guest_has_not_answered_yet_may_be_repeated(world):
    def pending(guest, address):
        threading.Timer(0.05, world.at_once, (guest, address)).start()
        raise error(f"internal error: unable to execute QEMU command 'device_del': Device hostdev0 {devices._PENDING}")

    world.gives_up = pending
    assert perform(VF_THERE, unplug_s=20).state == "moved"


def test_a_move_can_be_given_up_while_the_guest_holds_its_device(world):
    world.gives_up = lambda _guest, _address: None
    record = moves.Record("evac-1", [move_of(VF_THERE)])
    mover = threading.Thread(target=migration.perform, args=(record,))
    mover.start()
    while not noted():
        time.sleep(0.01)
    migration._abort_mark("evac-1").touch()
    mover.join(20)
    assert record.moves[0].state == "cancelled"
    assert world.given == []


def test_a_mover_that_was_killed_after_the_device_was_taken_leaves_the_guest_with_it(world):
    """What the next call of the module does, from the record and the state directory alone."""
    path = guest_state.directory("g1")
    record = moves.Record("evac-1", [move_of(VF_THERE)])
    record.moves[0].state = "running"
    migration.write_record(record)
    devices.unplug(guests.find(guests.connect(), "g1"), path, 20, lambda: False)
    assert world.devices["g1"] == []
    (move,) = migration.wait("evac-1").moves
    assert move.state == "failed"
    assert world.devices["g1"] == [HERE]
    assert noted() == {}


def test_where_it_is_not_clear_where_a_guest_runs_no_device_is_plugged_in(world):
    def unclear(guest):
        world.hosts[DESTINATION][guest] = RUNNING
        raise error("something")

    world.move = unclear
    assert "Nothing was started or destroyed" in perform(VF_THERE).error
    assert world.attached == []
    assert list(noted()) == [f"pci {HERE}"]


@pytest.mark.parametrize(
    ("has", "given", "words"),
    [
        ([HERE], [], "and host05 is to give it none"),
        ([HERE, "0000:65:00.0"], [VF_THERE], "but not pci 0000:65:00.0 by its launch"),
        ([HERE], [{"kind": "gpu", "address": THERE}], "but host05 is to give it no ib-vf"),
    ],
)
def test_a_guest_whose_devices_the_destination_does_not_replace_is_refused_before_the_gate(world, has, given, words):
    world.devices["g1"] = has
    with pytest.raises(guests.GuestError, match=f"guest g1 has pci {HERE}.* passed through to it, {words}"):
        migration.preflight(guests.connect(), [move_of(*given)], {})


def test_a_device_taken_by_a_mover_that_was_killed_still_counts_as_the_guests(world):
    with guest_state.locked("g1", "migration") as path:
        devices.unplug(guests.find(guests.connect(), "g1"), path, 20, lambda: False)
    with pytest.raises(guests.GuestError, match="is to give it none"):
        migration.preflight(guests.connect(), [move_of()], {})
    migration.preflight(guests.connect(), [move_of(VF_THERE)], {})


@pytest.fixture
def destination(world, tmp_path, monkeypatch):
    """The destination's own view: its libvirt, its PCI devices, a bridge."""
    for address in (THERE, "0000:5e:00.2"):
        (tmp_path / "pci" / address).mkdir(parents=True)
    monkeypatch.setattr(devices, "SYSFS", tmp_path / "pci")
    monkeypatch.setattr(guests.pinning, "observe", lambda _pid: pinning.Pinning({0: [0], 1: [1]}, {0, 1}, ["bind:0"]))
    monkeypatch.setattr(guests, "process_of", lambda _name: 1)
    world.hosts["host01"].clear()
    world.devices.clear()
    return Connection(world, DESTINATION)


def arrive(world, given):
    with guest_state.locked("g1", "prepare") as path:
        guest_state.note(path, guest="g1", state="expected", address="10.77.2.1", devices=given)
    world.hosts[DESTINATION]["g1"] = RUNNING


def test_a_guest_that_has_arrived_gets_the_devices_of_its_new_host_once(world, destination):
    arrive(world, [VF_THERE])
    first = guests.arrived(destination, "g1", [0, 1], 0, None)
    assert (first["changed"], first["devices_missing"], first["pin_verified"]) == (True, "", True)
    assert world.devices["g1"] == [THERE]
    assert guests.arrived(destination, "g1", [0, 1], 0, None)["changed"] is False
    assert world.attached == [(DESTINATION, f"pci {THERE}")]
    assert THERE in json.dumps(guest_state.read(guest_state.directory("g1"))["devices"])


def test_a_guest_that_cannot_be_given_its_device_has_moved_all_the_same(world, destination):
    arrive(world, [VF_THERE])
    world.attach_error = error("no more available PCI slots")
    told = guests.arrived(destination, "g1", [0, 1], 0, None)
    assert (told["state"], told["pin_verified"]) == ("moved", True)
    assert f"could not be given pci {THERE} (no more available PCI slots)" in told["devices_missing"]
    world.attach_error = None  # asked again: the playbook is repeated
    assert guests.arrived(destination, "g1", [0, 1], 0, None)["devices_missing"] == ""
    assert world.devices["g1"] == [THERE]


def test_a_destination_says_before_the_move_that_it_has_not_got_the_device(world, destination):
    with pytest.raises(devices.DeviceError, match=r"no PCI device 0000:77:00\.0 .*correct hypervisor_devices"):
        devices.check_free(destination, [{"kind": "gpu", "address": "0000:77:00.0"}])
    world.hosts[DESTINATION]["other"] = RUNNING
    world.devices["other"] = [THERE]
    with pytest.raises(devices.DeviceError, match=f"ib-vf {THERE} is guest other's already"):
        devices.check_free(destination, [VF_THERE])
    devices.check_free(destination, [{"kind": "ib-vf", "address": "0000:5e:00.2"}])


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"ib-vf": [THERE, "0000:5e:00.2"], "gpu": []}, ""),
        ({"ib-vf": [THERE, "5e:00.1"]}, "hypervisor_devices names PCI devices this host does not have: 5e:00.1 "),
        ({"ib-vf": [THERE], "gpu": [THERE]}, f"hypervisor_devices names {THERE} twice"),
        ({"IB VF": [THERE]}, "hypervisor_devices: device kind name 'IB VF' is not allowed"),
    ],
)
def test_devices_that_the_inventory_declares_are_there_once_and_have_a_kind(destination, declared, words):
    said = devices.wrong_declaration(declared)
    assert said.startswith(words)
    assert bool(said) == bool(words)


def test_hugepages_of_the_destinations_node_are_counted_before_the_gate_for_all_that_come(world):
    world.hosts["host01"]["g2"] = RUNNING
    world.devices.clear()
    world.backing, world.hugepages = HUGEPAGES, 255
    both = [move_of(), moves.Move("g2", "host01", "host05", DESTINATION, [2, 3], 0)]
    with pytest.raises(guests.GuestError, match="host05 has 255 free hugepages of 2048 kB on NUMA node 0 and 256 are"):
        migration.preflight(guests.connect(), both, {})
    migration.preflight(guests.connect(), both[:1], {})
    both[1].numa_node = 1
    migration.preflight(guests.connect(), both, {})
