"""The controller's API: who may do what, long polls, and errors that say the way out."""

import threading
import time

import httpx
import pytest
import uvicorn
from evacuation_world import PATIENCE_S, World
from fastapi.testclient import TestClient

from failavoid.controller.api import build_app
from failavoid.controller.connections import keep_connections
from failavoid.controller.playbooks import MoveOrder, variables
from failavoid.controller.settings import Settings
from failavoid.services import SettingsError, load_settings
from failavoid.shared.messages import Alarm, Evacuation, Evidence, GuestReport, Host, Migration, to_dict
from failavoid.shared.tokens import mint

SECRET = b"s" * 48


def bearer(role, subject="someone", nonce="0"):
    return {"Authorization": f"Bearer {mint(SECRET, role, subject, nonce)}"}


def guest(number):
    return bearer("guest", f"guest{number}", f"uuid-{number}")


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.around.cluster.refresh()
    yield world
    world.alive.clear()


@pytest.fixture
def api(world):
    return TestClient(build_app(world.controller, SECRET))


def alarm(**changes):
    return {
        **to_dict(
            Alarm("a-1", time.time(), "host1", "job-1", "robust", "unavailable", 0.8, Evidence(0.8, 0.3, 0.01, 9, 0.75))
        ),
        **changes,
    }


def test_an_alarm_begins_an_evacuation_that_can_be_looked_at(api, world):
    begun = api.post("/alarms", json=alarm(), headers=bearer("service")).json()
    assert begun["host"] == "host1"
    world.ranks_behave()
    world.until_state(Evacuation(begun["id"], "", "", ""), "RETIRED")
    shown = api.get(f"/evacuations/{begun['id']}", headers=bearer("reader")).json()
    assert shown["state"] == "RETIRED"
    assert shown["alarm"]["rule"] == "robust"
    assert api.get("/evacuations", headers=bearer("reader")).json() == [shown]


def test_an_alarm_without_cause_is_answered_with_nothing(api, world):
    world.manager.job.request.policy = "off"
    world.manager.change()
    assert api.post("/alarms", json=alarm(), headers=bearer("service")).json() == {}


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("POST", "/alarms", "guest"),
        ("POST", "/alarms", "user"),
        ("POST", "/evacuations", "user"),
        ("POST", "/evacuations", "service"),
        ("POST", "/evacuations/e/cancel", "host"),
        ("GET", "/evacuations/e/gate/1", "guest"),
        ("GET", "/guests/guest1/notice", "host"),
        ("POST", "/guests/guest1/report", "operator"),
    ],
)
def test_a_stranger_to_an_act_is_refused(api, method, path, role):
    assert api.request(method, path, json={}, headers=bearer(role)).status_code == 403
    assert api.request(method, path, json={}).status_code == 401


@pytest.mark.parametrize(
    "wrong", [{"host": "{{ x }}"}, {"job": "../etc"}, {"domain": "rack={{ x }}"}, {"id": ""}, {"value": "much"}]
)
def test_an_alarm_with_a_word_that_must_not_reach_a_playbook_is_refused(api, world, wrong):
    assert api.post("/alarms", json=alarm(**wrong), headers=bearer("service")).status_code == 422
    assert world.controller.evacuations() == []


def test_an_operator_evacuates_a_host_and_may_take_it_back(api, world):
    asked = {"host": "host2", "reason": "fan is loud"}
    (begun,) = api.post("/evacuations", json=asked, headers=bearer("operator", "ada")).json()
    assert "asked for by ada: fan is loud" in begun["reason"]
    again = api.post("/evacuations", json=asked, headers=bearer("operator", "ada"))
    assert again.status_code == 409
    assert begun["id"] in again.json()["detail"]
    world.until_state(Evacuation(begun["id"], "", "", ""), "NOTICED")
    assert api.post(f"/evacuations/{begun['id']}/cancel", headers=bearer("operator", "ada")).status_code == 200
    world.until_state(Evacuation(begun["id"], "", "", ""), "CANCELLED")
    late = api.post(f"/evacuations/{begun['id']}/cancel", headers=bearer("operator", "ada"))
    assert late.status_code == 409
    assert "CANCELLED" in late.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"host": "host9", "reason": ""}, 404, "no host host9"),
        ({"host": "host5", "reason": ""}, 409, "no job has guests"),
        ({"host": "Host 1", "reason": ""}, 422, "not allowed"),
        ({"reason": "x"}, 422, "'host' is missing"),
        (["host1"], 422, "an object is needed"),
    ],
)
def test_an_order_that_cannot_be_carried_out_says_why(api, body, status, word):
    answer = api.post("/evacuations", json=body, headers=bearer("operator"))
    assert answer.status_code == status
    assert word in answer.json()["detail"]


def test_an_unknown_evacuation_is_not_found(api):
    assert api.get("/evacuations/none", headers=bearer("reader")).status_code == 404


def test_while_the_resource_manager_was_never_heard_of_alarms_are_to_come_again(tmp_path):
    world = World(tmp_path)
    world.manager.down = True
    api = TestClient(build_app(world.controller, SECRET))
    assert api.post("/alarms", json=alarm(), headers=bearer("service")).status_code == 503
    assert api.get("/guests/guest1/notice", headers=guest(1)).status_code == 503


# -- guests ------------------------------------------------------------------------------------------------------


def test_a_guest_learns_its_job_at_once_and_then_waits_for_news(api, world):
    first = api.get("/guests/guest1/notice?after=0&timeout=20", headers=guest(1)).json()
    assert (first["job"], first["epoch"], first["affected"]) == ("job-1", 0, [])
    threading.Timer(0.1, world.alarm).start()
    news = api.get(f"/guests/guest1/notice?after={first['serial']}&timeout=20", headers=guest(1)).json()
    assert (news["epoch"], news["affected"]) == (1, ["guest1", "guest2"])
    assert news["serial"] > first["serial"]


def test_a_poll_without_news_ends_after_its_time_with_what_there_is(api):
    first = api.get("/guests/guest1/notice", headers=guest(1)).json()
    assert api.get(f"/guests/guest1/notice?after={first['serial']}&timeout=0.05", headers=guest(1)).json() == first


def test_a_guest_without_a_job_is_told_nothing_until_it_has_one(api, world):
    one = world.manager.membership.guests[0]
    one.job = None
    world.manager.change()
    world.around.cluster.refresh()
    assert api.get("/guests/guest1/notice?timeout=0.05", headers=guest(1)).json() == {}
    assert api.get("/guests/guest1/notice?after=7&timeout=20", headers=guest(1)).json() == {}

    def give_job():
        one.job = "job-1"
        world.manager.change()
        world.around.cluster.refresh()

    threading.Timer(0.1, give_job).start()
    assert api.get("/guests/guest1/notice?timeout=20", headers=guest(1)).json()["job"] == "job-1"


def test_a_guest_speaks_for_itself_alone(api):
    assert api.get("/guests/guest2/notice", headers=guest(1)).status_code == 403
    said = to_dict(GuestReport("job-1", 1, "ready", 1))
    assert api.post("/guests/guest2/report", json=said, headers=guest(1)).status_code == 403


def test_the_token_of_an_earlier_guest_of_the_same_name_is_worth_nothing(api):
    old = bearer("guest", "guest1", "uuid-of-old")
    assert api.get("/guests/guest1/notice", headers=old).status_code == 403
    assert "not any more" in api.get("/guests/guest1/notice", headers=old).json()["detail"]


def test_a_report_counts_only_for_the_guests_own_job_and_a_notice_that_was_given(api, world):
    def report(job="job-1", epoch=1, state="ready"):
        said = to_dict(GuestReport(job, epoch, state, 1))
        return api.post("/guests/guest1/report", json=said, headers=guest(1)).status_code

    assert report() == 409
    evacuation = world.until_state(world.alarm(), "NOTICED")
    assert report(job="job-2") == 409
    assert report(epoch=2) == 409
    assert report(state="sleepy") == 422
    assert report() == 200
    assert report() == 200
    assert list(world.around.board.reports("job-1", 1).ready) == ["guest1"]
    world.controller.cancel(evacuation.id, "ada")


# -- the gate ----------------------------------------------------------------------------------------------------


def test_the_gate_opens_when_all_ranks_have_stopped_and_closes_behind_the_guests(api, world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    gate = f"/evacuations/{evacuation.id}/gate/1"
    assert api.get(f"{gate}?timeout=0", headers=bearer("host", "host1")).json() == {
        "evacuation": evacuation.id,
        "open": False,
        "cancelled": False,
    }
    world.stuck = True
    threading.Timer(0.1, world.ranks_behave).start()
    assert api.get(f"{gate}?timeout=20", headers=bearer("host", "host1")).json()["open"]
    world.stuck = False
    world.until_state(evacuation, "RETIRED")
    assert api.get(gate, headers=bearer("host", "host1")).json()["cancelled"]


def test_a_cancelled_evacuation_sends_those_at_the_gate_home(api, world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    threading.Timer(0.1, world.controller.cancel, (evacuation.id, "ada")).start()
    said = api.get(f"/evacuations/{evacuation.id}/gate/1?timeout=20", headers=bearer("host", "host1")).json()
    assert (said["open"], said["cancelled"]) == (False, True)


# -- many at once ------------------------------------------------------------------------------------------------


def test_64_guests_wait_at_once_and_all_hear_the_news(world):
    one = world.manager.membership.guests[0]
    for number in range(7, 65):
        world.manager.membership.guests.append(
            type(one)(**{**vars(one), "name": f"guest{number}", "uuid": f"uuid-{number}", "host": "host2"})
        )
    world.manager.change()
    world.around.cluster.refresh()
    config = uvicorn.Config(build_app(world.controller, SECRET), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    world.until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    first = world.around.board.notice("job-1").serial
    heard, waiting = {}, threading.Barrier(65)

    def poll(number):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
            client.get(f"/guests/guest{number}/notice?after=0", headers=guest(number))
            waiting.wait(PATIENCE_S)
            heard[number] = client.get(
                f"/guests/guest{number}/notice?after={first}&timeout={PATIENCE_S}", headers=guest(number)
            ).json()["epoch"]

    pollers = [threading.Thread(target=poll, args=(number,)) for number in range(1, 65)]
    for poller in pollers:
        poller.start()
    waiting.wait(PATIENCE_S)
    world.alarm()
    for poller in pollers:
        poller.join()
    server.should_exit = True
    thread.join()
    assert heard == dict.fromkeys(range(1, 65), 1)


# -- connections -------------------------------------------------------------------------------------------------


def test_hosts_that_cannot_be_reached_are_named_before_they_have_to_be_evacuated(tmp_path, caplog):
    (tmp_path / "hosts.yml").write_text(
        "hypervisor: {hosts: {good: {ansible_connection: local}, bad: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n"
    )
    stop = threading.Event()
    stop.set()
    keep_connections(tmp_path / "hosts.yml", tmp_path / "log", stop)
    assert "bad: Connect: " in caplog.text
    assert "good" not in caplog.text


# -- settings and variables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("port: 7413\n", "'url' is missing"),
        ("url: 10.77.0.1:7413\n", "line 1.*give it as https://"),
        ("url: http://10.77.0.1:7413\n", "line 1.*give it as https://"),
        ("url: https://h:1\nlimits: {on_deadline: pray}\n", "use one of migrate, cancel"),
        ("url: https://h:1\nlimits:\n  retry_s: -1\n", "line 3.*retry_s.*from 0"),
        ("url: https://h:1\nlimits: {gather: 1}\n", "unknown field 'gather'"),
    ],
)
def test_a_bad_setting_is_refused_by_name(tmp_path, text, complaint):
    (tmp_path / "controller.yml").write_text(text)
    with pytest.raises(SettingsError, match=complaint):
        load_settings(Settings, tmp_path / "controller.yml")


def test_the_playbook_is_given_checked_words_only():
    hosts = {"host4": Host("host4", "10.0.0.4")}
    move = Migration("g1", "host1", "host4", [2], 1, address="10.0.1.1")
    order = MoveOrder("e-1", 2, [move], hosts)
    assert variables(order, "http://10.0.0.1:7413") == {
        "evacuation": "e-1-a2",
        "migrate_guests": [
            {
                "name": "g1",
                "address": "10.0.1.1",
                "source": "host1",
                "destination": "host4",
                "destination_address": "10.0.0.4",
                "cores": [2],
                "numa_node": 1,
            }
        ],
        "migrate_gate_url": "http://10.0.0.1:7413/evacuations/e-1/gate/2",
    }
    hosts["host4"].address = "{{ lookup('pipe', 'id') }}"
    with pytest.raises(ValueError, match="not allowed"):
        variables(order, "http://10.0.0.1:7413")
