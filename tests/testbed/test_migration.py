"""Real moves between real hosts by migrate.yml alone: what is moved, what is refused, what outlives whom."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from failavoid.demo.observe import wait_until
from tests.testbed.by_hand import DIRECTORIES, make, said
from tests.testbed.conftest import PROJECT

MOVE, PREPARE, VERIFY = "Wait at the gate and migrate", "Prepare the destination", "Verify what has arrived"
ONE, TWO = "move-1", "move-2"
RECORDS = "/run/failavoid/migrations"
# Prints the sender of each RARP it hears, until its input ends.
LISTEN = """
import select, socket, sys
heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x8035))
print("listening", flush=True)
while True:
    ready, _, _ = select.select([heard, sys.stdin], [], [])
    if sys.stdin in ready:
        break
    print(heard.recv(100)[6:12].hex(":"), flush=True)
"""


@pytest.fixture(scope="module")
def hand(site, empty_hosts, tmp_path_factory):
    """Two guests on the first of the two hosts."""
    hand = make(site, tmp_path_factory.mktemp("by-hand"))
    hand.clear(ONE, TWO)
    started = hand.launch(empty_hosts[0], hand.describe(ONE, 247), hand.describe(TWO, 248))
    assert started.failures == []
    hand.run_id = str(int(time.time()))
    yield hand
    hand.clear(ONE, TWO)


@pytest.fixture
def ends(hand, empty_hosts):
    """Where the guests are now, and the other host."""
    here = hand.host_of[ONE]
    assert hand.host_of[TWO] == here
    other = next(host for host in empty_hosts if host != here)
    return here, other


def name(hand, what):
    return f"evac-{what}-{hand.run_id}"


def moved(hand, there, *guests):
    """Note that guests have moved, after a look at both ends."""
    for guest in guests:
        here = hand.host_of[guest]
        assert hand.domains(there)[guest] == "running"
        assert guest not in hand.domains(here)
        assert guest not in hand.site.run(here, "ls", DIRECTORIES)
        assert hand.guests[guest]["address"] not in hand.filter(here)
        assert hand.state(there, guest)["state"] == "running"
        hand.host_of[guest] = there


def stayed(hand, there, *guests):
    """Look at both ends of guests that have not moved."""
    for guest in guests:
        here = hand.host_of[guest]
        assert hand.domains(here)[guest] == "running"
        assert guest not in hand.domains(there)
        assert guest not in hand.site.run(there, "ls", DIRECTORIES, check=False)
        assert hand.guests[guest]["address"] not in hand.filter(there)
    # started "again" they are verified where they are: nothing changes, and the pins are right
    again = hand.launch(hand.host_of[guests[0]], *(hand.guests[guest] for guest in guests))
    assert again.failures == []


def test_guests_move_and_every_one_is_named_with_its_figures(hand, ends):
    here, there = ends
    before = {guest: hand.run(guest, "cat", "/proc/sys/kernel/random/boot_id") for guest in (ONE, TWO)}
    listener = subprocess.Popen(
        hand.site.ssh(hand.site.head, "python3", "-c", LISTEN), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert listener.stdout.readline() == "listening\n"
    result = hand.move(name(hand, "plain"), there, ONE, TWO)
    heard = listener.communicate("\n", timeout=30)[0].split()
    assert result.failures == []

    moves = {move["guest"]: move for move in said(result, here, MOVE)["migrations"]}
    assert set(moves) == {ONE, TWO}
    for move in moves.values():
        assert (move["state"], move["source"], move["destination"], move["error"]) == ("moved", here, there, "")
        assert move["bytes"] > 0
        assert move["elapsed_s"] > 0
        assert move["downtime_ms"] > 0
    verified = said(result, there, VERIFY)["migrations"]
    assert [(one["guest"], one["state"], one["pin_verified"]) for one in verified] == [
        (ONE, "moved", True),
        (TWO, "moved", True),
    ]
    prepared = said(result, there, PREPARE)
    assert prepared["begun"] <= prepared["done"]
    moved(hand, there, ONE, TWO)
    # QEMU has announced the guests' hardware addresses on the network, and they go on as they were
    for guest in (ONE, TWO):
        numbers = bytes(int(part) for part in hand.guests[guest]["address"].split("."))
        assert f"52:54:{numbers.hex(':')}" in heard
        assert hand.run(guest, "cat", "/proc/sys/kernel/random/boot_id") == before[guest]
    assert hand.site.run(there, "virsh", "list", "--all", "--persistent", "--name").split() == []


def test_asked_again_the_same_evacuation_gives_the_same_answer_and_changes_nothing(hand, ends):
    here, there = ends
    ident = name(hand, "again")
    words = hand.moves(ident, there, ONE)
    first = hand.play("migrate.yml", **words)
    moved(hand, there, ONE)
    again = hand.play("migrate.yml", **words)
    assert again.failures == []
    assert said(again, here, MOVE)["migrations"] == said(first, here, MOVE)["migrations"]
    assert [said(again, *task)["changed"] for task in ((there, PREPARE), (here, MOVE), (there, VERIFY))] == [False] * 3
    assert hand.move(name(hand, "back"), here, ONE).failures == []
    moved(hand, here, ONE)


class Gate:
    """A controller's gate, closed until it is told otherwise."""

    def __init__(self, address):
        gate = self
        self.open = self.cancelled = False
        self.asked = threading.Event()
        self.tokens = set()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                gate.tokens.add(self.headers["Authorization"])
                gate.asked.set()
                deadline = time.monotonic() + float(self.path.split("timeout=")[1])
                while not (gate.open or gate.cancelled) and time.monotonic() < deadline:
                    time.sleep(0.02)
                body = json.dumps({"evacuation": "e", "open": gate.open, "cancelled": gate.cancelled}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_words):
                pass

        self.server = ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self.server.server_port}/gate"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def gate(own_address):
    gate = Gate(own_address)
    yield gate
    gate.cancelled = True
    gate.server.shutdown()
    gate.server.server_close()


def in_background(act):
    results = []
    thread = threading.Thread(target=lambda: results.append(act()))
    thread.start()
    return thread, results


def test_guests_wait_at_the_gate_with_everything_prepared(hand, ends, gate, site):
    here, there = ends
    thread, results = in_background(lambda: hand.move(name(hand, "gate"), there, ONE, TWO, migrate_gate_url=gate.url))
    assert gate.asked.wait(60)
    assert hand.state(there, ONE)["state"] == "expected"
    assert hand.site.run(there, "cat", f"{DIRECTORIES}/{ONE}/identity.json") == "{}"
    assert hand.domains(here) == {ONE: "running", TWO: "running"}
    opened = time.time()
    gate.open = True
    thread.join(120)
    (result,) = results
    assert result.failures == []
    assert said(result, here, MOVE)["opened"] >= opened
    moved(hand, there, ONE, TWO)
    token = json.loads(site.run(here, "cat", "/etc/failavoid/agent.json"))["token"]
    assert gate.tokens == {f"Bearer {token}"}


def test_a_cancelled_gate_leaves_guests_and_destination_as_they_were(hand, ends, gate):
    _, there = ends
    thread, results = in_background(
        lambda: hand.move(name(hand, "cancelled"), there, ONE, TWO, migrate_gate_url=gate.url)
    )
    assert gate.asked.wait(60)
    gate.cancelled = True
    thread.join(120)
    assert "was cancelled" in results[0].failures[0]
    stayed(hand, there, ONE, TWO)


def test_a_destination_that_does_not_answer_is_named_and_nothing_is_moved(hand, ends):
    here, there = ends
    words = hand.moves(name(hand, "silent"), there, ONE)
    silent = ".".join([*hand.site.hosts[here]["ansible_host"].split(".")[:2], "1", "99"])
    words["migrate_guests"][0]["destination_address"] = silent
    refused = hand.play("migrate.yml", **words)
    assert (
        f"{here}: the host {silent} can't be reached from here over qemu+tls://{silent}/system" in refused.failures[0]
    )
    stayed(hand, there, ONE)


def test_a_destination_without_the_guests_kernel_is_named_before_the_gate(hand, ends, gate):
    _here, there = ends
    folder = str(Path(hand.guests[ONE]["kernel"]).parent)
    hand.site.run(there, "mv", folder, f"{folder}.away")
    try:
        refused = hand.move(name(hand, "kernel"), there, ONE, migrate_gate_url=gate.url)
    finally:
        hand.site.run(there, "mv", f"{folder}.away", folder)
    assert f"which {there} does not have: run the role 'guest' there" in refused.failures[0]
    assert not gate.asked.is_set()
    stayed(hand, there, ONE)


@pytest.fixture
def slow(hand):
    """Moves take a while: until it is over, the guests are sent with 1 MiB/s."""
    pace(hand, 1)
    yield
    pace(hand, 0)


def pace(hand, mib_s):
    for guest in (ONE, TWO):
        hand.site.run(hand.host_of[guest], "virsh", "migrate-setspeed", guest, str(mib_s or 8796093022207), check=False)


def begun(hand, here, ident, state="running"):
    def look():
        text = hand.site.run(here, "cat", f"{RECORDS}/{ident}.json", check=False)
        return bool(text) and all(move["state"] == state and move["remaining"] for move in json.loads(text)["moves"])

    assert wait_until(look, 60)


def test_a_move_outlives_the_playbook_and_its_task(hand, ends, slow):
    here, there = ends
    ident = name(hand, "outlives")
    words = hand.moves(ident, there, ONE)
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", hand.site.inventory]
    command += [PROJECT / "playbooks/migrate.yml", "-e", json.dumps(words)]
    playbook = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    begun(hand, here, ident)
    playbook.kill()
    playbook.wait()
    mover = json.loads(hand.site.run(here, "cat", f"{RECORDS}/{ident}.json"))["process"]
    hand.shell(here, f"for p in $(pgrep -f 'python3$|AnsiballZ'); do [ $p = {mover} ] || kill -9 $p; done", check=False)
    assert hand.domains(here)[ONE] in ("running", "paused")  # an emulated one stands still

    # the guest is nobody else's to act on; its memory goes over TLS
    assert f"locked by: migration of {ident}" in hand.remove(here, ONE).failures[0]
    asked = hand.site.run(here, "virsh", "qemu-monitor-command", ONE, '{"execute": "query-migrate-parameters"}')
    assert json.loads(asked)["return"]["tls-creds"]
    refused = hand.remove(there, ONE)
    assert "give up the move first" in refused.failures[0]

    pace(hand, 0)
    again = hand.play("migrate.yml", **words)
    assert again.failures == []
    assert [move["state"] for move in said(again, here, MOVE)["migrations"]] == ["moved"]
    moved(hand, there, ONE)
    assert hand.move(name(hand, "outlived"), here, ONE).failures == []
    moved(hand, here, ONE)


def test_what_libvirt_still_moves_is_found_after_the_mover_was_killed(hand, ends, slow):
    here, there = ends
    ident = name(hand, "mover")
    thread, results = in_background(lambda: hand.move(ident, there, ONE))
    begun(hand, here, ident)
    mover = json.loads(hand.site.run(here, "cat", f"{RECORDS}/{ident}.json"))["process"]
    hand.site.run(here, "kill", "-9", str(mover))
    pace(hand, 0)
    thread.join(200)
    (result,) = results
    (move,) = said(result, here, MOVE)["migrations"]
    # with its client gone libvirt may go on or not: whatever it did, that is what is told
    if move["state"] == "moved":
        assert result.failures == []
        moved(hand, there, ONE)
        assert hand.move(name(hand, "mover-back"), here, ONE).failures == []
        moved(hand, here, ONE)
    else:
        assert move["state"] == "failed"
        stayed(hand, there, ONE)


def test_a_move_that_is_given_up_leaves_the_guests_pinned_where_they_were(hand, ends, slow):
    here, there = ends
    ident = name(hand, "abort")
    thread, results = in_background(lambda: hand.move(ident, there, ONE, TWO))
    begun(hand, here, ident)
    aborted = hand.play("abort.yml", evacuation=ident, abort_hosts=[here])
    assert aborted.failures == []
    (task,) = aborted.host_results[here].values()
    assert [move["state"] for move in task["migrations"]] == ["cancelled", "cancelled"]
    thread.join(120)
    assert results[0].failures
    assert {move["state"] for move in said(results[0], here, MOVE)["migrations"]} == {"cancelled"}
    stayed(hand, there, ONE, TWO)


# Has a guest give up its virtual source of random numbers, a PCI device that its kernel uses, as if it were passed
# through, and gives it back: there are no devices to pass through in a testbed.
UNPLUG = """
import sys, xml.etree.ElementTree as ET
sys.path.insert(0, "/opt/failavoid/lib")
from failavoid.shared import devices, domain_xml, guest_state, guests

def passed_through(xml):
    return {"pci 0000:3b:02.1": ET.tostring(rng, encoding="unicode") for rng in ET.fromstring(xml).iter("rng")}

domain_xml.passed_through = passed_through
devices.listen()
domain = guests.find(guests.connect(), sys.argv[1])
with guest_state.locked(sys.argv[1], "a test") as path:
    for act in sys.argv[2:]:
        if act == "unplug":
            devices.unplug(domain, path, 60, lambda: False)
        else:
            devices.put_back(domain, path)
        print(len(passed_through(domain.XMLDesc())), len(devices.unplugged(path)))
"""


def test_a_guest_gives_up_a_device_while_it_runs_and_gets_it_again(hand, ends):
    here, _ = ends
    seen = hand.site.run(here, "python3", "-c", UNPLUG, ONE, "unplug", "unplug", "put back", "put back")
    assert seen.splitlines() == ["0 1", "0 1", "1 0", "1 0"]
    # 4 is the number of such a device on the virtio bus, as the guest's kernel sees it
    assert "0x0004" in hand.run(ONE, "sh", "-c", "cat /sys/bus/virtio/devices/*/device").split()


def test_a_guest_whose_device_was_taken_moves_only_where_it_gets_another(hand, ends):
    here, there = ends
    hand.site.run(here, "python3", "-c", UNPLUG, ONE, "unplug")
    try:
        refused = hand.move(name(hand, "no-device"), there, ONE)
        assert f"and {there} is to give it none" in refused.failures[0]
        words = hand.moves(name(hand, "unknown-device"), there, ONE)
        words["migrate_guests"][0]["devices"] = [{"kind": "ib-vf", "address": "0000:77:00.0"}]
        refused = hand.play("migrate.yml", **words)
        assert "there is no PCI device 0000:77:00.0 (ib-vf) here" in refused.failures[0]
        stayed(hand, there, ONE)
    finally:
        hand.site.run(here, "python3", "-c", UNPLUG, ONE, "put back")


def test_memory_goes_over_several_connections_within_the_bandwidth_that_is_set(hand, ends):
    here, there = ends
    result = hand.move(name(hand, "wide"), there, ONE, migrate_connections=4, migrate_bandwidth_mib_s=512)
    assert result.failures == []
    moved(hand, there, ONE)
    assert hand.move(name(hand, "wide-back"), here, ONE).failures == []
    moved(hand, here, ONE)


def test_memory_is_never_sent_in_the_clear(hand, ends):
    here, there = ends
    address = hand.site.hosts[there]["ansible_host"]
    hand.site.run(there, "mkdir", "-p", f"{DIRECTORIES}/{ONE}")
    hand.site.run(there, "touch", f"{DIRECTORIES}/{ONE}/identity.json")
    try:
        by_hand = f"virsh migrate --live --p2p {ONE} qemu+tls://{address}/system tcp:{address} 2>&1"
        assert "TLS" in hand.shell(here, by_hand, check=False)
    finally:
        hand.site.run(there, "rm", "-r", f"{DIRECTORIES}/{ONE}")
    stayed(hand, there, ONE)
