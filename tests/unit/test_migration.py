"""What a move comes to: decided from both ends, bounded, once only, whoever asks, whoever dies."""

import errno
import json
import os
import signal
import threading
import time
import xml.etree.ElementTree as ET
from unittest.mock import Mock

import libvirt
import pytest

from failavoid.shared import guest_state, guests, migration, moves, taps
from tests.unit.migration_world import PAUSED, RUNNING, Connection, Domain, World, error

THERE = "10.77.1.5"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """One host with two guests and an empty destination; nothing of this machine is touched."""
    world = World("g1", "g2")

    def look_at(address):
        if address in world.silent:
            raise guests.GuestError(f"the host {address} can't be reached")
        return Connection(world, address)

    monkeypatch.setattr(guests, "connect", lambda: Connection(world, "host01"))
    monkeypatch.setattr(migration, "look_at", look_at)
    monkeypatch.setattr(migration, "check_way", lambda _address: None)
    monkeypatch.setattr(migration, "RECORDS", tmp_path / "migrations")
    monkeypatch.setattr(migration, "WATCH_S", 0.01)
    monkeypatch.setattr(guest_state, "GUESTS", tmp_path / "guests")
    monkeypatch.setattr(taps, "forbid", lambda _address: None)
    for name in ("g1", "g2"):
        with guest_state.locked(name, "start") as path:
            guest_state.note(path, guest=name, state="running", cores=[0, 1], address="10.77.2.1")
    return world


def record(*names, **limits):
    made = [moves.Move(name, "host01", "host05", THERE, [0, 1], 0) for name in names or ("g1",)]
    return moves.Record("evac-1", made, moves.Limits(**limits))


def moved(world, *names, **limits):
    done = record(*names, **limits)
    migration.perform(done)
    assert done.ended
    return done.moves


def test_a_guest_that_runs_there_and_is_not_here_has_moved(world):
    (move,) = moved(world)
    assert (move.state, move.error) == ("moved", "")
    assert (move.downtime_ms, move.bytes, move.elapsed_s, move.iterations) == (20, 5000, 0.8, 3)
    assert not guest_state.directory("g1").exists()


def test_how_fast_a_guest_writes_to_its_memory_is_noted_while_it_moves(world):
    world.job |= {"memory_dirty_rate": 250, "memory_page_size": 4096}
    looked = threading.Event()
    stats = Domain.jobStats

    def arrives(guest):
        assert looked.wait(20)
        world.arrives(guest)

    def seen(domain, flags=0):
        looked.set()
        return stats(domain, flags)

    world.move = arrives
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Domain, "jobStats", seen)
        (move,) = moved(world)
    assert move.dirty_bps == 250 * 4096


def test_an_emulated_guest_stands_still_while_it_moves_because_emulation_misses_what_it_writes(world):
    world.domain_type = "qemu"
    (move,) = moved(world)
    assert move.state == "moved"
    assert not world.given[0]["flags"] & libvirt.VIR_MIGRATE_LIVE


def test_the_move_goes_over_tls_to_an_address_and_is_pinned_for_the_destination(world):
    done = record()
    done.moves[0].cores, done.moves[0].numa_node = [6, 7], 1
    migration.perform(done)
    (given,) = world.given
    assert given["uri"] == f"qemu+tls://{THERE}/system"
    assert given["parameters"][libvirt.VIR_MIGRATE_PARAM_URI] == f"tcp:{THERE}"
    for needed in (libvirt.VIR_MIGRATE_LIVE, libvirt.VIR_MIGRATE_PEER2PEER, libvirt.VIR_MIGRATE_TLS):
        assert given["flags"] & needed
    for never in (
        libvirt.VIR_MIGRATE_NON_SHARED_INC,
        libvirt.VIR_MIGRATE_NON_SHARED_DISK,
        libvirt.VIR_MIGRATE_POSTCOPY,
    ):
        assert not given["flags"] & never
    sent = ET.fromstring(given["parameters"][libvirt.VIR_MIGRATE_PARAM_DEST_XML])
    assert [pin.get("cpuset") for pin in sent.findall("cputune/vcpupin")] == ["6", "7"]
    assert sent.find("numatune/memory").get("nodeset") == "1"


def test_an_error_is_not_taken_for_the_outcome(world):
    def arrives_with_an_error(guest):
        world.arrives(guest)
        raise error("End of file while reading data: Input/output error")

    world.move = arrives_with_an_error
    (move,) = moved(world)
    assert (move.state, move.error) == ("moved", "")


def test_success_is_not_taken_for_the_outcome_either(world):
    world.move = lambda _guest: None
    (move,) = moved(world)
    assert move.state == "failed"
    assert "still runs here" in move.error


def test_a_guest_that_stays_is_put_on_its_cores_again_and_keeps_its_directory(world):
    def refused(_guest):
        raise error("unable to connect to server")

    world.move = refused
    (move,) = moved(world)
    assert (move.state, move.error) == ("failed", "unable to connect to server")
    assert world.pinned == [(0, [0]), (1, [1]), ("emulator", [0, 1])]
    assert guest_state.read(guest_state.directory("g1"))["state"] == "running"


def test_a_processor_that_does_not_fit_is_named(world):
    def refused(_guest):
        raise error("guest CPU doesn't match", libvirt.VIR_ERR_CPU_INCOMPATIBLE)

    world.move = refused
    (move,) = moved(world)
    assert move.error.startswith("host05's processor lacks what the guest was started with")
    assert "guest_cpu_model" in move.error


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        (RUNNING, RUNNING, "running on host01 and running on host05"),
        (None, None, "absent on host01 and absent on host05"),
        (PAUSED, None, "there but not running on host01 and absent on host05"),
        (None, PAUSED, "absent on host01 and there but not running on host05"),
    ],
)
def test_where_it_is_not_clear_nothing_is_started_or_destroyed(world, here, there, words):
    def unclear(guest):
        for host, state in (("host01", here), (THERE, there)):
            world.hosts[host].pop(guest, None)
            if state is not None:
                world.hosts[host][guest] = state
        raise error("something")

    world.move = unclear
    (move,) = moved(world)
    assert move.state == "failed"
    assert words in move.error
    assert "Nothing was started or destroyed" in move.error
    assert guest_state.directory("g1").exists()


def test_libvirts_success_counts_where_the_destination_has_fallen_silent(world):
    def arrives(guest):
        world.arrives(guest)
        world.silent.add(THERE)

    world.move = arrives
    (move,) = moved(world)
    assert move.state == "moved"
    assert "can't be reached" in move.error


def test_an_error_and_a_silent_destination_are_told_as_unclear(world):
    def arrives(guest):
        world.arrives(guest)
        world.silent.add(THERE)
        raise error("connection lost")

    world.move = arrives
    (move,) = moved(world)
    assert move.state == "failed"
    assert "Nothing was started or destroyed" in move.error


def test_a_guest_that_somebody_else_acts_on_is_not_moved(world):
    with guest_state.locked("g1", "remove"):
        (move,) = moved(world)
    assert move.state == "failed"
    assert "locked by: remove" in move.error
    assert world.given == []


def test_a_move_that_sends_nothing_is_given_up(world):
    world.move = world.waits_for_abort
    (move,) = moved(world, stall_s=0.05)
    assert move.state == "failed"
    assert "nothing was sent for 0 s" in move.error
    assert world.pinned


def test_a_guest_that_writes_faster_than_it_is_sent_does_not_stall(world):
    def converges_late(guest):
        for step in range(30):  # ever more remains, ever more is sent
            world.job = {"data_processed": 100 * step, "data_remaining": 100 + step}
            time.sleep(0.02)
        world.arrives(guest)

    world.move = converges_late
    (move,) = moved(world, stall_s=0.3)
    assert (move.state, world.aborts) == ("moved", 0)


def test_the_time_limit_of_a_move_grows_with_the_guests_memory(world, monkeypatch):
    monkeypatch.setattr(moves, "LEAST_LIMIT_S", 0.05)

    def lasts(guest):
        if world.aborted.wait(0.5):
            raise error("operation aborted", libvirt.VIR_ERR_OPERATION_ABORTED)
        world.arrives(guest)

    world.move = lasts
    (short,) = moved(world, "g1", seconds_per_gib=0.1)
    assert "too long for a guest of its size" in short.error
    world.aborted.clear()
    (long,) = moved(world, "g2", seconds_per_gib=600)
    assert long.state == "moved"


def test_a_large_guests_destination_has_time_to_clear_its_memory_before_a_silence_is_a_stall(world, monkeypatch):
    monkeypatch.setattr(migration, "PREPARE_S_PER_GIB", 400.0)  # of a quarter of a GiB
    world.job = {"data_processed": 0}

    def comes_late(guest):
        assert not world.aborted.wait(0.3)
        world.arrives(guest)

    world.move = comes_late
    (move,) = moved(world, stall_s=0.05)
    assert (move.state, world.aborts) == ("moved", 0)


def test_memory_is_sent_on_one_connection_at_full_speed_unless_the_site_says_otherwise(world):
    moved(world, "g1")
    moved(world, "g2", connections=4, bandwidth_mib_s=1000)
    plain, wide = world.given
    assert not plain["flags"] & libvirt.VIR_MIGRATE_PARALLEL
    assert libvirt.VIR_MIGRATE_PARAM_BANDWIDTH not in plain["parameters"]
    assert wide["flags"] & libvirt.VIR_MIGRATE_PARALLEL
    assert wide["flags"] & libvirt.VIR_MIGRATE_TLS
    assert wide["parameters"][libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] == 4
    assert wide["parameters"][libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] == 1000


def test_moves_share_the_bandwidth_and_what_is_sent_slowly_on_purpose_has_its_time():
    assert record("g1", "g2", bandwidth_mib_s=100).bandwidth_mib_s() == 50
    assert record("g1", "g2", bandwidth_mib_s=100, parallel=1).bandwidth_mib_s() == 100
    assert record("g1", "g2", bandwidth_mib_s=1).bandwidth_mib_s() == 1
    terabyte_kb = 2**30
    assert record(seconds_per_gib=1).limit_s(terabyte_kb) == 1024
    assert record(seconds_per_gib=1, bandwidth_mib_s=100).limit_s(terabyte_kb) == 3 * 2**20 / 100


def test_guests_move_at_the_same_time(world):
    both = threading.Barrier(2)

    def together(guest):
        both.wait(10)
        world.arrives(guest)

    world.move = together
    assert [move.state for move in moved(world, "g1", "g2")] == ["moved", "moved"]


def test_no_more_guests_move_at_once_than_allowed(world):
    under_way, most = [], []

    def watched(guest):
        under_way.append(guest)
        most.append(len(under_way))
        time.sleep(0.05)
        under_way.remove(guest)
        world.arrives(guest)

    world.move = watched
    assert [move.state for move in moved(world, "g1", "g2", parallel=1)] == ["moved", "moved"]
    assert max(most) == 1


def test_moves_outlive_the_process_that_asked_for_them(world, tmp_path):
    go = tmp_path / "go"

    def when_told(guest):
        while not go.exists():
            time.sleep(0.01)
        world.arrives(guest)

    world.move = when_told
    asker = os.fork()
    if asker == 0:
        migration.start(record())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(asker, 0)
    assert migration.read_record("evac-1").ended is None
    assert not migration.start(record()), "a second one must not be started"
    go.touch()
    assert [move.state for move in migration.wait("evac-1").moves] == ["moved"]


def test_a_mover_that_was_killed_is_told_from_one_that_works(world):
    def dies(guest):
        world.arrives(guest)
        os.kill(os.getpid(), signal.SIGKILL)

    world.move = dies
    migration.start(record("g1", "g2", parallel=1))
    # the other end of the fork has its own world: let this one show what the daemons would
    world.arrives("g1")
    one, other = migration.wait("evac-1").moves
    assert one.state == "moved"
    assert (other.state, other.error) == ("failed", "the process that was to move it ended before")


def test_a_move_can_be_given_up_before_it_begins(world):
    assert migration.abort("evac-1") == []
    (move,) = moved(world)
    assert (move.state, move.error) == ("cancelled", "given up before it began")
    assert world.given == []


def test_a_move_that_is_given_up_leaves_the_guest_on_its_cores(world):
    world.move = world.waits_for_abort
    done = record()
    mover = threading.Thread(target=migration.perform, args=(done,))
    mover.start()
    while not world.given:
        time.sleep(0.01)
    migration._abort_mark("evac-1").touch()
    mover.join(20)
    assert done.moves[0].state == "cancelled"
    assert ("emulator", [0, 1]) in world.pinned


def test_a_name_is_for_one_evacuation(world):
    done = record()
    migration.perform(done)
    connection = guests.connect()
    migration.used_before(connection, done, ["g1"])  # asked again: the same
    with pytest.raises(guests.GuestError, match="give this evacuation a name of its own"):
        migration.used_before(connection, done, ["g2"])
    world.hosts["host01"]["g1"] = RUNNING  # it has come back since
    with pytest.raises(guests.GuestError, match="give this evacuation a name of its own"):
        migration.used_before(connection, done, ["g1"])


def test_what_can_be_known_before_is_checked_before(world):
    connection = guests.connect()
    asked = record().moves
    files = ["/boot/vmlinuz", "/boot/initrd.img"]
    migration.preflight(connection, asked, {"host05": files})
    with pytest.raises(guests.GuestError, match=r"boots /boot/initrd.img, which host05 does not have"):
        migration.preflight(connection, asked, {"host05": files[:1]})
    world.silent.add(THERE)
    with pytest.raises(guests.GuestError, match="can't be reached"):
        migration.preflight(connection, asked, {})
    world.hosts["host01"]["g1"] = PAUSED
    with pytest.raises(guests.GuestError, match="does not run on this host: nothing is moved"):
        migration.preflight(connection, asked, {})


def test_a_host_that_does_not_answer_is_named_with_what_to_check():
    with pytest.raises(guests.GuestError, match=r"127\.0\.0\.2 can't be reached .*libvirtd.*certificates.*port 16514"):
        migration.look_at("127.0.0.2")


def test_a_firewall_between_hosts_is_seen_before_memory_is_sent(world, monkeypatch):
    monkeypatch.undo()
    migration.check_way("127.0.0.2")  # nobody listens: nothing is in the way
    for trouble in (TimeoutError("timed out"), OSError(errno.EHOSTUNREACH, "No route to host")):
        monkeypatch.setattr(migration.socket, "create_connection", Mock(side_effect=trouble))
        with pytest.raises(guests.GuestError, match=r"port 49215 can't be reached .*49152-49215 must be open"):
            migration.check_way(THERE)


def test_the_record_can_be_read_by_root_alone_and_whole_at_any_time(world):
    done = record()
    migration.write_record(done)
    path = migration.record_path("evac-1")
    assert path.stat().st_mode & 0o077 == 0
    assert migration.read_record("evac-1") == done
    assert json.loads(path.read_text())["evacuation"] == "evac-1"


def test_the_oldest_records_of_ended_evacuations_are_removed_and_open_ones_stay(world, monkeypatch):
    monkeypatch.setattr(migration, "KEPT_RECORDS", 2)
    for number in range(4):
        ended = None if number == 0 else float(number)
        migration.write_record(moves.Record(f"old-{number}", [], ended=ended))
        os.utime(migration.record_path(f"old-{number}"), (number, number))
        migration.record_path(f"old-{number}").with_suffix(".lock").touch()
    assert migration.start(record())
    assert migration.wait("evac-1").ended
    left = sorted(path.name for path in migration.RECORDS.iterdir() if path.name.startswith("old"))
    assert left == [f"old-{number}.{kind}" for number in (0, 2, 3) for kind in ("json", "lock")]
