"""Marks of hosts and whose they are, checks before a host returns, the site's hooks, the audit log."""

import threading
from types import SimpleNamespace

import pytest
from resource_manager_site import OPERATOR, SERVICE, USER, Site, bearer

from failavoid.resource_manager import hosts as hosts_module
from failavoid.resource_manager.hooks import Occasion, run
from failavoid.resource_manager.settings import Hooks, HostSettings, Settings
from failavoid.services import SettingsError, load_settings

OTHER = bearer("operator", "eve")


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    yield site
    site.hold.set()


def marks(site, name):
    return [(mark.kind, mark.who, mark.by_program, mark.reason) for mark in site.host(name).marks]


def restore(site, name="host1"):
    return site.post(f"/hosts/{name}/restore", headers=OPERATOR)


# -- marks -------------------------------------------------------------------------------------------------------


def test_a_drained_host_keeps_its_job_and_gets_no_other(site):
    job = site.ready(hosts=1)
    assert site.post("/hosts/host1/drain", {"reason": "new fan"}, OPERATOR).json()["pool"] == "allocated"
    assert marks(site, "host1") == [("drained", "operator root", False, "new fan")]
    site.end(job.id)
    assert (site.host("host1").pool, site.host("host1").reason) == ("suspect", "new fan")
    assert {guest.host for guest in site.guests(site.ready(hosts=1).id).values()} == {"host2"}


def test_a_mark_belongs_to_who_set_it_and_the_program_takes_back_its_own_alone(site):
    site.post("/hosts/host1/suspect", {"reason": "rule robust", "evacuation": "e-1", "job": "job-1"})
    site.post("/hosts/host1/suspect", {"reason": "it smells"}, OPERATOR)
    assert site.host("host1").reason == "rule robust; it smells"
    site.api.delete("/hosts/host1/suspect", headers=SERVICE)
    assert marks(site, "host1") == [("suspect", "operator root", False, "it smells")]
    site.api.delete("/hosts/host1/suspect", headers=OTHER)
    assert site.host("host1").pool == "suspect"
    site.api.delete("/hosts/host1/suspect", headers=OPERATOR)
    assert site.host("host1").pool == "free"


def test_the_same_owners_mark_gets_the_new_reason(site):
    for reason in ("first", "second"):
        site.post("/hosts/host1/drain", {"reason": reason}, OPERATOR)
    assert marks(site, "host1") == [("drained", "operator root", False, "second")]


def test_a_suspect_host_is_no_spare(site):
    for name in ("host1", "host2", "host3"):
        site.post(f"/hosts/{name}/suspect")
    assert site.post("/leases", {"evacuation": "e-1"}).json()["host"] == "host4"
    refused = site.post("/leases", {"evacuation": "e-2"})
    assert refused.status_code == 409
    assert "host1 suspect, host2 suspect, host3 suspect, host4 leased" in refused.json()["detail"]


def test_marks_survive_a_restart_and_new_settings(site):
    site.post("/hosts/host1/drain", {"reason": "new fan"}, OPERATOR)
    site.settings.hosts[0].memory_kb = 4096 * 1024
    site.start()
    assert marks(site, "host1") == [("drained", "operator root", False, "new fan")]
    assert site.host("host1").memory_kb == 4096 * 1024


def test_a_host_that_is_in_the_settings_again_is_in_service_again(site):
    site.ready(hosts=1)
    declared, site.settings.hosts = site.settings.hosts, site.settings.hosts[1:]
    site.start()
    assert site.host("host1").reason == "not in the settings any more"
    site.settings.hosts = declared
    site.start()
    assert site.host("host1").pool == "allocated"


@pytest.mark.parametrize("act", ["drain", "suspect", "retire"])
def test_what_is_said_of_a_host_is_text_and_the_host_is_known(site, act):
    assert site.post(f"/hosts/none/{act}", headers=OPERATOR).status_code == 404
    assert site.post(f"/hosts/host1/{act}", {"reason": ["x"]}, OPERATOR).status_code == 422
    assert site.post(f"/hosts/host1/{act}", headers=USER).status_code == 403


# -- back to service ---------------------------------------------------------------------------------------------


def test_a_host_returns_after_its_checks_and_not_before(site):
    site.post("/hosts/host1/drain", {}, OPERATOR)
    site.unheard["host1"] = "the monitor has heard nothing of host1's agent"
    site.fail["restore.yml"] = "host1: its memory is held"
    refused = restore(site)
    assert refused.status_code == 409
    assert refused.json()["detail"] == (
        "host1 is not restored: host1: its memory is held; the monitor has heard nothing of host1's agent"
    )
    assert site.host("host1").pool == "suspect"
    site.unheard.clear()
    site.fail.clear()
    assert restore(site).status_code == 200
    assert (site.host("host1").pool, site.host("host1").marks) == ("free", [])


def test_a_drained_host_returns_with_its_guests_on_it(site):
    job = site.ready(hosts=1)
    site.post("/hosts/host1/drain", {}, OPERATOR)
    assert restore(site).status_code == 200
    assert site.played("restore.yml") == [
        {
            "restore_host": "host1",
            "restore_guests": job.guests,
            "restore_coming": [],
            "restore_available_kb": int((2048 - 256 - 2 * 256) * 1024 * 0.8),
        }
    ]
    assert site.job(job.id).state == "ready"


def test_what_a_host_keeps_of_guests_that_are_on_their_way_to_it_is_kept_when_it_returns(site):
    job = site.ready(hosts=1)
    spare = site.post("/leases", {"evacuation": "e-1"}).json()["host"]
    site.post("/placements", {"guests": job.guests, "host": spare})
    site.post(f"/hosts/{spare}/drain", {}, OPERATOR)
    assert restore(site, spare).status_code == 200
    (asked,) = site.played("restore.yml")
    assert (asked["restore_guests"], asked["restore_coming"]) == ([], job.guests)


def test_a_mark_that_comes_during_the_checks_stays(site, monkeypatch):
    site.post("/hosts/host1/drain", {}, OPERATOR)
    play = site.play

    def suspected(*words, **named):
        site.post("/hosts/host1/suspect", {"reason": "rule robust"})
        return play(*words, **named)

    monkeypatch.setattr("failavoid.resource_manager.guests.run_playbook", suspected)
    assert restore(site).status_code == 200
    assert [kind for kind, *_ in marks(site, "host1")] == ["suspect"]


def test_a_host_without_a_mark_has_nothing_to_be_restored_from(site):
    assert "there is nothing to restore" in restore(site).json()["detail"]


def test_the_monitor_is_asked_for_the_hosts_last_sample(monkeypatch):
    samples = [{"node": "host1", "kind": "host", "time": 1000.0}, {"node": "host2", "kind": "host", "time": 900.0}]

    class Answer:
        def raise_for_status(self):
            pass

        def json(self):
            return samples

    monitor = SimpleNamespace(get=lambda _path: Answer())
    monkeypatch.setattr(hosts_module, "client", lambda *_words, **_named: monitor)
    monkeypatch.setattr(hosts_module.time, "time", lambda: 1010.0)
    heard = hosts_module.heard_by_monitor("http://monitor", b"s" * 48)
    assert heard("host1") == ""
    assert "has not heard host2's agent for 110 s" in heard("host2")
    assert "has heard nothing of host3's agent" in heard("host3")
    samples.append({"unknown": 1})
    assert "can't be asked" in heard("host1")


def test_a_monitor_that_is_not_there_is_no_yes():
    assert "can't be asked" in hosts_module.heard_by_monitor("http://127.0.0.1:1", b"s" * 48)("host1")


# -- hooks -------------------------------------------------------------------------------------------------------


def test_commands_are_told_what_it_is_about(site, tmp_path):
    said = tmp_path / "said"
    words = "$FAILAVOID_EVENT $FAILAVOID_HOST $FAILAVOID_EVACUATION $FAILAVOID_JOB $FAILAVOID_REASON"
    command = f'echo "{words}" >>{said}'
    site.settings.hooks = Hooks(alarm=[command], retire=[command], restore=[command])
    site.post("/hosts/host1/suspect", {"reason": "it's hot; `id`", "evacuation": "e-1", "job": "job-1"})
    site.until(lambda: said.exists(), "no alarm")
    site.until(lambda: said.read_text() == "alarm host1 e-1 job-1 it's hot; `id`\n", "not the alarm")
    site.post("/hosts/host1/retire", {"reason": "evacuated", "evacuation": "e-1"})
    site.until(lambda: said.read_text().endswith("retire host1 e-1  evacuated\n"), "no retirement")
    site.until(lambda: site.played("retire.yml"), "the host was not marked")
    restore(site)
    site.until(lambda: "restore host1   evacuated" in said.read_text(), "no return")


def test_a_command_that_fails_is_reported_and_stops_nothing(site):
    site.settings.hooks = Hooks(retire=["echo no such partition; exit 3"])
    assert site.post("/hosts/host1/retire", headers=OPERATOR).status_code == 200
    site.until(lambda: "hook failed" in what(site), "not reported")
    (event,) = (event for event in events(site) if event["what"] == "hook failed")
    assert event["detail"]["failures"] == ["'echo no such partition; exit 3' ended with status 3: no such partition"]


def test_a_command_that_fails_stops_the_act_where_the_site_wants_it(site):
    site.settings.hooks = Hooks(retire=["exit 1"], restore=["exit 1"], must_succeed=True)
    refused = site.post("/hosts/host1/retire", headers=OPERATOR)
    assert refused.status_code == 409
    assert "the site's commands stopped the retire: 'exit 1' ended with status 1" in refused.json()["detail"]
    assert site.host("host1").pool == "free"
    site.post("/hosts/host1/drain", headers=OPERATOR)
    assert restore(site).status_code == 409
    assert site.host("host1").pool == "suspect"


@pytest.fixture
def slow(site, tmp_path, monkeypatch):
    """Commands for a retirement that must succeed and wait for `gate`, which has their status; `runs` counts them."""
    monkeypatch.setattr(hosts_module, "COMMANDS_S", 0.1)
    gate, runs = tmp_path / "gate", tmp_path / "runs"
    command = f"echo run >>{runs}; until [ -s {gate} ]; do sleep 0.02; done; exit $(cat {gate})"
    site.settings.hooks = Hooks(retire=[command], must_succeed=True)
    yield SimpleNamespace(gate=gate, runs=lambda: len(runs.read_text().splitlines()))
    gate.write_text("0\n")


def retire(site, evacuation="e-1", reason="evacuated"):
    return site.post("/hosts/host1/retire", {"reason": reason, "evacuation": evacuation})


def test_commands_that_take_longer_than_who_asks_waits_are_run_once(site, slow):
    for reason in ("rule robust, 3.1", "rule robust, 3.2"):
        answer = retire(site, reason=reason)
        assert answer.status_code == 503
        assert "host1: the site's commands for the retire are still running" in answer.json()["detail"]
    assert retire(site, "e-2").status_code == 503
    assert site.host("host1").pool == "free"
    slow.gate.write_text("0\n")
    site.until(lambda: retire(site).status_code == 200, "not retired")
    assert site.host("host1").pool == "defunct"
    assert retire(site).status_code == 200
    assert slow.runs() == 1
    assert restore(site).status_code == 200
    site.until(lambda: retire(site).status_code == 200, "not retired again")
    assert slow.runs() == 2


def test_who_asks_again_hears_that_commands_have_failed_meanwhile(site, slow):
    assert retire(site).status_code == 503
    slow.gate.write_text("3\n")
    answers = []
    site.until(lambda: answers.append(retire(site)) or answers[-1].status_code != 503, "the commands do not end")
    assert answers[-1].status_code == 409
    assert "ended with status 3" in answers[-1].json()["detail"]
    assert slow.runs() == 1
    slow.gate.write_text("0\n")
    site.until(lambda: retire(site).status_code == 200, "not retired")
    assert slow.runs() == 2


def test_a_command_that_does_not_end_is_ended_with_its_children():
    hooks = Hooks(alarm=["echo begun; sleep 1000 & sleep 1000"], timeout_s=0.3)
    ended = run(hooks, Occasion("alarm", "host1", "x"))
    assert ended == ["'echo begun; sleep 1000 & sleep 1000' was ended after 0.3 s: begun"]


def test_what_a_command_leaves_running_is_not_waited_for():
    waited = threading.Event()
    thread = threading.Thread(
        target=lambda: (run(Hooks(alarm=["sleep 5 & exit 0"]), Occasion("alarm", "host1", "x")), waited.set())
    )
    thread.start()
    assert waited.wait(4)


# -- the audit log -----------------------------------------------------------------------------------------------


def events(site, after=0, headers=OPERATOR):
    return site.api.get(f"/events?after={after}", headers=headers).json()["events"]


def what(site):
    return [event["what"] for event in events(site)]


def test_every_change_is_in_the_audit_log_with_who_and_why(site):
    job = site.ready(hosts=1)
    site.post(f"/jobs/{job.id}/started", {"command": ["a.out"]}, USER)
    site.end(job.id)
    site.post("/hosts/host1/drain", {"reason": "new fan"}, OPERATOR)
    restore(site)
    found = [(event["who"], event["what"]) for event in events(site)]
    assert found == [
        ("user ada", "job submitted"),
        ("resource-manager", "guest started"),
        ("resource-manager", "guest started"),
        ("resource-manager", "job ready"),
        ("user ada", "job started"),
        ("user ada", "job ended"),
        ("operator root", "host drained"),
        ("operator root", "host restored"),
    ]
    assert [event["number"] for event in events(site)] == list(range(1, 9))
    assert events(site)[6]["detail"] == {"host": "host1", "reason": "new fan"}


def test_the_log_goes_on_after_a_restart_and_is_read_from_where_one_was(site):
    site.post("/hosts/host1/drain", {}, OPERATOR)
    site.start()
    site.post("/hosts/host2/drain", {}, OPERATOR)
    answer = site.api.get("/events?after=1", headers=OPERATOR).json()
    assert [event["detail"]["host"] for event in answer["events"]] == ["host2"]
    assert answer["last"] == 2


def test_a_poll_for_events_waits_for_one(site):
    threading.Timer(0.1, site.post, ("/hosts/host1/drain", {}, OPERATOR)).start()
    answer = site.api.get("/events?after=0&timeout=20", headers=OPERATOR).json()
    assert [event["what"] for event in answer["events"]] == ["host drained"]


def test_a_refused_change_is_none(site):
    site.ask(hosts=9)
    site.post("/hosts/none/drain", {}, OPERATOR)
    assert events(site) == []


@pytest.mark.parametrize("role", ["user", "guest", "host"])
def test_the_audit_log_is_for_those_who_run_the_site(site, role):
    assert site.api.get("/events", headers=bearer(role)).status_code == 403


def test_old_events_are_forgotten(site, monkeypatch):
    monkeypatch.setattr("failavoid.resource_manager.store.EVENTS_KEPT", 3)
    for number in range(6):
        site.post("/hosts/host1/drain", {"reason": str(number)}, OPERATOR)
    assert [event["number"] for event in events(site)] == [4, 5, 6]


# -- hardware classes and reserved spares ------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """Hosts 1 to 3 are old, 4 to 6 new; host 6 is a reserved spare; what runs on old ones runs on new ones."""
    site = Site(tmp_path, monkeypatch, hosts=6, compatible={"new": ["old"]})
    site.settings.hosts = [
        HostSettings(f"host{n}", f"10.0.0.{n}", 2048 * 1024, {"0": [0, 1]}, "", "old" if n < 4 else "new", n == 6)
        for n in range(1, 7)
    ]
    site.start()
    yield site
    site.hold.set()


def hosts_of(site, job):
    return {guest.host for guest in site.guests(job.id).values()}


def test_a_job_gets_hosts_of_one_class(mixed):
    assert hosts_of(mixed, mixed.ready(hosts=2, hardware_class="new")) == {"host4", "host5"}
    answer = mixed.ask(hosts=4)
    assert answer.status_code == 409
    assert "4 hosts of class 'old'" in answer.json()["detail"]
    assert hosts_of(mixed, mixed.ready(hosts=3)) == {"host1", "host2", "host3"}


def test_a_class_that_no_host_has_is_named(mixed):
    assert "the hosts' classes are 'new', 'old'" in mixed.ask(hardware_class="newest").json()["detail"]


def test_a_job_is_refused_when_the_last_spare_its_guests_can_move_to_would_go(mixed):
    mixed.post("/hosts/host6/drain", {}, OPERATOR)
    refused = mixed.ask(hosts=2, hardware_class="new")
    assert refused.status_code == 409
    assert "2 hosts of class 'new' are asked for, 2 are free and 1 must stay spare" in refused.json()["detail"]


def test_a_spare_is_of_a_class_that_the_guests_can_run_on(mixed):
    new = mixed.ready(hosts=1, hardware_class="new")
    mixed.post("/hosts/host5/drain", {}, OPERATOR)
    assert mixed.post("/leases", {"evacuation": "e-1", "guests": new.guests}).json()["host"] == "host6"
    refused = mixed.post("/leases", {"evacuation": "e-2", "guests": new.guests})
    assert refused.status_code == 409
    assert "host1 is of hardware class 'old'" in refused.json()["detail"]
    assert mixed.post("/placements", {"guests": new.guests, "host": "host1"}).status_code == 409


def test_reserved_spares_are_leased_first_and_no_job_gets_them(mixed):
    mixed.ready(hosts=2, hardware_class="new")
    assert mixed.host("host6").reason == "reserved spare"
    old = mixed.ready(hosts=1)
    assert mixed.post("/leases", {"evacuation": "e-1", "guests": old.guests}).json()["host"] == "host6"


def test_a_spare_without_room_for_the_guests_is_not_leased(mixed):
    job = mixed.ready(hosts=1, guests_per_host=2, guest_memory_kb=786432)
    for number in (2, 3, 4, 5):
        mixed.post(f"/hosts/host{number}/drain", {}, OPERATOR)
    with mixed.store.change() as state:
        state.hosts["host6"].memory_kb = 1024 * 1024
    refused = mixed.post("/leases", {"evacuation": "e-1", "guests": job.guests})
    assert refused.status_code == 409
    assert "host6 has 1024 MiB, 256 of them its own" in refused.json()["detail"]


def test_a_guest_has_as_many_cores_as_asked_for_and_nobody_elses(tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch, share_cores=False)
    guests = site.guests(site.ready(hosts=1, guests_per_host=1, guest_vcpus=2).id)
    assert [guest.cores for guest in guests.values()] == [[0, 1]]
    refused = site.ask(hosts=1, guests_per_host=3)
    assert refused.status_code == 409
    assert "768 MiB and 3 cores for guests" in refused.json()["detail"]


# -- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("silence_s: 1", "use 10 or more"),
        ("restore_memory_share: 2", "it is a share"),
        ("hooks: {timeout_s: 0}", "use more than 0"),
        ("warm_pools: [{guests: 1, memory_kb: 1}]", "131072 or more"),
        ("warm_pools: [{guests: 1, user: '{{ x }}'}]", "not allowed"),
        ("hooks: {alarms: [x]}", "unknown field 'alarms'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, line, word):
    text = "hosts: []\nhead_address: 10.0.0.1\nguest_network: 10.0.2.0/24\nprefix: 16\n"
    (tmp_path / "s.yml").write_text(text + line + "\n")
    with pytest.raises(SettingsError, match=word):
        load_settings(Settings, tmp_path / "s.yml")
