"""The monitor as a whole: real datagrams in, groups by long polls, alarms out, and its API."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from failavoid.monitor.groups import groups_of
from failavoid.monitor.service import Monitor, build_app, check_sources
from failavoid.monitor.settings import Settings
from failavoid.monitor.store import Store
from failavoid.prediction.settings import RuleSettings
from failavoid.services import SettingsError, load_settings
from failavoid.shared.messages import Alarm, Guest, Job, JobRequest, Membership, RuleEvent, Sample, from_dict
from failavoid.shared.samples import Encoder
from failavoid.shared.tokens import mint, verify

SECRET = b"s" * 48
PROJECT = Path(__file__).parents[2]
TOTAL = 2_000_000


def guest(name, host, job="job-1", state="ready"):
    return Guest(name, f"uuid-{name}", host, "10.77.2.1", 262144, [0], 0, "demo", state, job)


def membership(version, hosts, state="running"):
    request = JobRequest("demo", 1000, 1000, "ssh-ed25519 AAAA", len(hosts))
    guests = [guest(f"guest-{number}", host) for number, host in enumerate(hosts)]
    return Membership(version, [], guests, [Job("job-1", request, state, [g.name for g in guests])])


class Neighbours:
    """The resource manager's and the controller's HTTP API, as far as the monitor uses it."""

    def __init__(self):
        self.alarms = []
        self.status = 200
        self.asked_after = []
        self.tokens = set()
        self._changed = threading.Condition()
        self._membership = membership(1, [])
        neighbours = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, status, body):
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_GET(self):
                neighbours.tokens.add(self.headers["Authorization"].removeprefix("Bearer "))
                where = urlsplit(self.path)
                if where.path != "/membership":
                    self.answer(503, {"error": "this controller knows of no evacuations"})
                    return
                query = {key: float(values[0]) for key, values in parse_qs(where.query).items()}
                self.answer(200, asdict(neighbours.wait(query["after"], query["timeout"])))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if neighbours.status == 200:
                    neighbours.alarms.append(from_dict(Alarm, body))
                self.answer(neighbours.status, {})

        class Server(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                if not isinstance(sys.exc_info()[1], ConnectionError):  # a monitor that ends waits for no answer
                    super().handle_error(request, client_address)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def wait(self, after, timeout):
        self.asked_after.append(after)
        with self._changed:
            self._changed.wait_for(lambda: self._membership.version > after, timeout)
            return self._membership

    def set_hosts(self, hosts, state="running"):
        with self._changed:
            self._membership = membership(self._membership.version + 1, hosts, state)
            self._changed.notify_all()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def neighbours():
    there = Neighbours()
    yield there
    there.close()


def eventually(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this never came about"
        time.sleep(0.02)


class Agents:
    """Sends what agents on hosts would send, over real UDP, ten times a second."""

    def __init__(self, port, hosts):
        self.used = dict.fromkeys(hosts, 0.4)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(port,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()

    def _run(self, port):
        encoders = {host: Encoder(mint(SECRET, "host", host)) for host in self.used}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            while not self._stopped.wait(0.1):
                for host, encoder in encoders.items():
                    udp.sendto(encoder.encode(time.time(), sample(self.used[host]), [0.1, 0.2]), ("127.0.0.1", port))


def sample(used, guests=0.3):
    return {
        "mem_total_kb": TOTAL,
        "mem_available_kb": round(TOTAL * (1 - used)),
        "mem_active_kb": round(TOTAL * used / 2),
        "guests_rss_kb": round(TOTAL * guests),
    }


def free_port():
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        return tcp.getsockname()[1]


@pytest.fixture
def settings(neighbours):
    return Settings(
        listen="127.0.0.1",
        port=free_port(),
        resource_manager=neighbours.url,
        controller=neighbours.url,
        interval_s=0.1,
        stale_s=1.0,
        reraise_s=1.0,
        rules=RuleSettings(persistence_s=0.3, slope_window_s=3.0),
    )


@pytest.fixture
def monitor(settings):
    monitor = Monitor(settings, SECRET)
    monitor.start()
    yield monitor
    monitor.stop()


@pytest.fixture
def api(monitor):
    token = mint(SECRET, "reader", "someone")
    return TestClient(build_app(monitor, SECRET), headers={"Authorization": f"Bearer {token}"})


def hosts_of_job(monitor, job="job-1"):
    return [host for group in monitor.follower.groups() if group.job == job for host in group.hosts]


HOSTS = ["host01", "host02", "host03", "host04"]


def test_what_agents_send_is_served(monitor, api):
    before = time.time()
    with Agents(monitor.settings.port, HOSTS):
        eventually(lambda: len(api.get("/samples").json()) == 4)
        eventually(lambda: len(api.get(f"/history?since={before}").json()) >= 12)
    last = [from_dict(Sample, one) for one in api.get("/samples").json()]
    assert [one.node for one in last] == HOSTS
    assert last[0].kind == "host"
    assert last[0].cores == [0.1, 0.2]
    assert last[0].metrics["mem_total_kb"] == TOTAL
    history = [from_dict(Sample, one) for one in api.get(f"/history?since={before}").json()]
    times = [one.time for one in history if one.node == "host01"]
    assert times == sorted(times)
    assert api.get(f"/history?since={time.time() + 1}").json() == []


def test_a_sample_that_cannot_be_taken_keeps_no_other_from_being_heard(monitor, api, monkeypatch, caplog):
    take = monitor.store.take

    def trip(sample, *more):
        if sample.node == "host01":
            raise OverflowError("a defect")
        take(sample, *more)

    monkeypatch.setattr(monitor.store, "take", trip)
    with Agents(monitor.settings.port, HOSTS[:2]):
        eventually(lambda: "OverflowError" in caplog.text)
        since = time.time()
        eventually(lambda: api.get(f"/history?since={since}").json())


def test_the_api_wants_a_token(monitor):
    stranger = TestClient(build_app(monitor, SECRET))
    for path in ("/samples", "/history", "/alarms", "/rule-events"):
        assert stranger.get(path).status_code == 401


def test_a_job_name_that_is_none_is_refused(api):
    assert api.get("/rule-events?job={{x}}").status_code == 422


def test_a_failing_host_of_a_job_is_alarmed_about(monitor, neighbours, api):
    with Agents(monitor.settings.port, [*HOSTS, "host05"]) as agents:
        neighbours.set_hosts(HOSTS)
        eventually(lambda: hosts_of_job(monitor) == HOSTS)
        agents.used["host05"] = 0.95  # runs no guest of a job
        eventually(lambda: len(monitor.store.last()) == 5)
        agents.used["host03"] = 0.85
        eventually(lambda: neighbours.alarms)
    alarm = neighbours.alarms[0]
    assert (alarm.host, alarm.job, alarm.rule, alarm.metric) == ("host03", "job-1", "robust", "unavailable")
    assert alarm.value == pytest.approx(0.85, abs=0.01)
    assert alarm.evidence.pressure_from == "host"
    assert alarm.evidence.peers == 3
    assert api.get("/alarms").json()[0] == asdict(alarm)
    events = [from_dict(RuleEvent, one) for one in api.get("/rule-events?job=job-1").json()]
    assert {event.rule for event in events} == {"robust", "threshold"}  # of four hosts `paper` sees nothing
    assert {event.host for event in events} == {"host03"}
    assert api.get("/rule-events?job=job-2").json() == []
    assert verify(SECRET, next(iter(neighbours.tokens))).role == "service"


def test_an_application_that_fills_all_hosts_raises_no_alarm(monitor, neighbours, api):
    with Agents(monitor.settings.port, HOSTS) as agents:
        neighbours.set_hosts(HOSTS)
        eventually(lambda: monitor.follower.groups())
        for step in range(50):
            for host in HOSTS:
                agents.used[host] = 0.4 + 0.01 * step
            time.sleep(0.05)
        eventually(lambda: len(api.get("/rule-events").json()) == 4)
        time.sleep(1)
    assert {event["rule"] for event in api.get("/rule-events").json()} == {"threshold"}
    assert not neighbours.alarms


def test_alarms_are_brought_to_a_controller_that_comes_back(monitor, neighbours):
    neighbours.status = 503
    with Agents(monitor.settings.port, HOSTS) as agents:
        neighbours.set_hosts(HOSTS)
        agents.used["host02"] = 0.9
        eventually(lambda: monitor.evaluator.alarms)
        assert not neighbours.alarms
        neighbours.status = 200
        eventually(lambda: neighbours.alarms)
        assert neighbours.alarms[0].host == "host02"


def test_an_alarm_is_raised_again_while_the_controller_does_nothing(monitor, neighbours):
    with Agents(monitor.settings.port, HOSTS) as agents:
        neighbours.set_hosts(HOSTS)
        agents.used["host02"] = 0.9
        eventually(lambda: len(neighbours.alarms) >= 2)
    first, second = neighbours.alarms[:2]
    assert first.id != second.id
    assert second.time - first.time >= 1.0


def test_the_monitor_follows_the_job_to_its_new_hosts_by_itself(monitor, neighbours):
    with Agents(monitor.settings.port, [*HOSTS, "host05"]) as agents:
        neighbours.set_hosts(HOSTS)
        agents.used["host02"] = 0.9
        eventually(lambda: neighbours.alarms)
        moved = ["host01", "host05", "host03", "host04"]
        neighbours.set_hosts(moved)
        eventually(lambda: hosts_of_job(monitor) == sorted(moved))
        time.sleep(0.2)
        told = len(neighbours.alarms)
        time.sleep(1.5)  # more than reraise_s
        assert len(neighbours.alarms) == told
        agents.used["host05"] = 0.9
        eventually(lambda: neighbours.alarms[-1].host == "host05")


@pytest.mark.parametrize("state", ["allocating", "completed", "failed"])
def test_a_job_that_does_not_run_has_no_group(state):
    assert groups_of(membership(1, HOSTS, state)) == []


def test_a_lost_guest_holds_its_host_no_longer():
    there = membership(1, HOSTS)
    there.guests[0] = replace(there.guests[0], state="lost")
    assert [group.hosts for group in groups_of(there)] == [tuple(HOSTS[1:])]


def test_the_membership_is_followed_by_long_polls_and_found_again_after_a_restart(monitor, neighbours):
    neighbours.set_hosts(HOSTS)
    eventually(lambda: monitor.follower.groups())
    assert neighbours.asked_after[0] == -1
    eventually(lambda: neighbours.asked_after[-1] == 2)
    port = neighbours.server.server_port
    neighbours.close()
    assert hosts_of_job(monitor) == HOSTS
    with neighbours._changed:  # the poll under way gets its answer, the next finds nobody
        neighbours._membership = membership(3, HOSTS)
        neighbours._changed.notify_all()
    time.sleep(0.3)
    again = Neighbours.__new__(Neighbours)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    again.server = Server(("127.0.0.1", port), neighbours.server.RequestHandlerClass)
    threading.Thread(target=again.server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        neighbours.set_hosts(HOSTS[:3])
        eventually(lambda: hosts_of_job(monitor) == HOSTS[:3])
    finally:
        again.close()


def test_only_guests_that_the_site_has_now_are_heard(monitor, neighbours, api):
    neighbours.set_hosts(HOSTS)
    eventually(lambda: monitor.follower.groups())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for name, uuid in (("guest-0", "uuid-of-an-earlier-one"), ("guest-1", "uuid-guest-1")):
            datagram = Encoder(mint(SECRET, "guest", name, uuid)).encode(time.time(), sample(0.1), [])
            udp.sendto(datagram, ("127.0.0.1", monitor.settings.port))
    eventually(lambda: api.get("/samples").json())
    assert [(one["node"], one["kind"]) for one in api.get("/samples").json()] == [("guest-1", "guest")]


# --- the store


def stored(*samples, stale_s=5.0):
    """A store that was sent (host, time, share of memory in use)."""
    store = Store(3600.0, stale_s)
    for host, when, used in samples:
        store.take(Sample(host, "host", when, sample(used)), when)
    return store


def test_hosts_that_sample_at_different_moments_are_compared_at_the_same():
    store = stored(("a", 10.0, 0.40), ("b", 10.5, 0.45), ("a", 11.0, 0.50), ("b", 11.5, 0.55))
    collection = store.collect(10.75)
    assert collection.shares("unavailable") == pytest.approx([0.475, 0.475], abs=1e-5)
    assert collection.shares("guests") == pytest.approx([0.3, 0.3])


def test_a_value_is_held_for_a_while_and_then_unknown():
    store = stored(("a", 10.0, 0.4))
    assert store.collect(14.9).shares("unavailable") == pytest.approx([0.4])
    assert np.isnan(store.collect(15.1).shares("unavailable")).all()
    assert np.isnan(store.collect(9.9).shares("unavailable")).all()


def test_the_metric_active_can_be_chosen():
    collection = stored(("a", 10.0, 0.4)).collect(10.0)
    assert collection.shares("active") == pytest.approx([0.2])
    assert collection.shares("unavailable") == pytest.approx([0.4])


def test_nodes_that_are_gone_are_forgotten():
    store = stored(("a", 10.0, 0.4), ("b", 4000.0, 0.4))
    assert store.drop_silent(4000.0) == [("host", "a")]
    assert [one.node for one in store.last()] == ["b"]
    assert np.isnan(store.collect(10.0).shares("unavailable")[0])


# --- settings and the process


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("port: 7411\nrule: magic\n", "line 2.*'rule' is 'magic'; use one of robust, paper, paper-learned, threshold"),
        ("metric: swap\n", "line 1.*'metric' is 'swap'; use one of unavailable, active"),
        ("rules:\n  sigma: 2\n  treshold: 0.8\n", "line 3.*unknown field 'treshold'"),
        ("rules:\n  sigma: 2\n  threshold: 75\n", "line 3.*'threshold' is 75"),
        ("rules: {threshold: 0.8}\napplications:\n  a:\n    threshold: 8\n", "line 4.*'a': setting 'threshold' is 8"),
        ("rules: {z: 4}\napplications:\n  a: {zz: 8}\n", "line 3.*'a': unknown setting 'zz'"),
        (
            "modes:\n  - {name: heat, metric: temperature_c, normal: 40, failure: 100}\n"
            "  - name: fan\n    metric: fan\n    normal: 1\n    failure: 2\n",
            "line 4.*'metric' is 'fan'",
        ),
        (
            "modes:\n  - {name: heat, metric: temperature_c, normal: 40, failure: 100}\n"
            "  - {name: fan, metric: fan_rpm, normal: 9000, failure: 1000, rules: {z: 0}}\n",
            "line 3.*'fan': setting 'z' is 0",
        ),
        ("alerts:\n  - kind: mail\n    to: [a]\n  - kind: pager\n", "line 4.*'kind' is 'pager'"),
        ("sources:\n  - kind: agents\n  - kind: telepathy\n", "line 3.*installed are agents"),
        ("sources:\n  - kind: ldms\n    options:\n      path: x.csv\n", "line 4.*give the whole path"),
        ("sources:\n  - kind: agents\n    options: {speed: 1}\n", "line 3.*unknown option 'speed'"),
        ("interval_s: 0\n", "line 1.*'interval_s' is 0"),
        ("controller: head:7413\n", "line 1.*'controller' is 'head:7413'; give it as https://"),
    ],
)
def test_bad_settings_are_refused_with_line_and_name(tmp_path, text, complaint):
    (tmp_path / "monitor.yml").write_text(text)
    with pytest.raises(SettingsError, match=complaint):
        load_settings(Settings, tmp_path / "monitor.yml", check_sources)


def test_settings_for_the_paper_are_read(tmp_path):
    (tmp_path / "monitor.yml").write_text("rule: paper\nmetric: active\nrules: {sigma: 2, threshold: 0.75}\n")
    settings = load_settings(Settings, tmp_path / "monitor.yml")
    assert (settings.rule, settings.metric, settings.rules.sigma) == ("paper", "active", 2.0)


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=PROJECT, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def end(process):
    process.terminate()
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors


@pytest.fixture
def settings_file(tmp_path, neighbours):
    port = free_port()
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "monitor.yml").write_text(
        f"listen: 127.0.0.1\nport: {port}\ntls: {{enabled: false}}\nsecret: {tmp_path}/secret\n"
        f"resource_manager: {neighbours.url}\ncontroller: {neighbours.url}\n"
    )
    return tmp_path / "monitor.yml", port


def test_a_monitor_process_hears_an_agent_process_and_both_end_cleanly(tmp_path, settings_file):
    path, port = settings_file
    (tmp_path / "agent.json").write_text(
        json.dumps(
            {
                "node": "host01",
                "kind": "host",
                "token": mint(SECRET, "host", "host01"),
                "monitor": f"127.0.0.1:{port}",
                "interval_s": 0.1,
            }
        )
    )
    agent = start("failavoid.agent", "--settings", str(tmp_path / "agent.json"))
    monitor = start("failavoid.monitor.service", "--settings", str(path))
    reader = {"Authorization": f"Bearer {mint(SECRET, 'reader', 'someone')}"}

    def heard():
        try:
            return httpx.get(f"http://127.0.0.1:{port}/samples", headers=reader).json()
        except httpx.ConnectError:
            return []

    try:
        eventually(heard, 30)
        (one,) = [from_dict(Sample, sample) for sample in heard()]
        assert one.node == "host01"
        assert 0 < one.metrics["mem_available_kb"] <= one.metrics["mem_total_kb"]
    finally:
        agent_end, monitor_end = end(agent), end(monitor)
    assert agent_end == (0, "")
    assert monitor_end[0] == 0
    assert "Traceback" not in monitor_end[1]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_monitor_that_is_started_again_knows_what_it_heard_before(tmp_path, settings_file, how):
    path, port = settings_file
    with path.open("a") as file:
        file.write(f"state: {tmp_path}\ninterval_s: 0.1\n")
    reader = {"Authorization": f"Bearer {mint(SECRET, 'reader', 'someone')}"}

    def history():
        try:
            return httpx.get(f"http://127.0.0.1:{port}/history", headers=reader).json()
        except httpx.TransportError:
            return []

    with Agents(port, HOSTS):
        monitor = start("failavoid.monitor.service", "--settings", str(path))
        eventually(history, 30)
        before = history()[0]["time"]
        if how == signal.SIGKILL:
            eventually(lambda: list(tmp_path.glob("archive/open/*.npz")))
        monitor.send_signal(how)
        monitor.communicate(timeout=30)
        monitor = start("failavoid.monitor.service", "--settings", str(path))
        eventually(history, 30)
        known = history()[0]
    assert end(monitor)[0] == 0
    assert known["time"] < before + 1
    assert known["node"] in HOSTS


def test_a_port_that_is_taken_ends_the_monitor_with_one_sentence(settings_file):
    path, port = settings_file
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", port))
        monitor = start("failavoid.monitor.service", "--settings", str(path))
        _, errors = monitor.communicate(timeout=30)
    assert monitor.returncode == 1
    assert "Address already in use" in errors
    assert str(path) in errors
    assert "Traceback" not in errors
