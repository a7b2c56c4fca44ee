"""What evacuations do where there is a choice: another spare, packing, checkpoints, modes, several hosts and jobs."""

import dataclasses

import pytest
from evacuation_world import Crash, World, stays
from fastapi.testclient import TestClient
from test_controller import SECRET, bearer

from failavoid.controller.api import build_app
from failavoid.controller.controller import RequestError
from failavoid.controller.libvirt_view import RUNNING, GuestFacts
from failavoid.controller.limits import Policy
from failavoid.playbook_runner import PlaybookResult
from failavoid.shared.messages import Alarm, Device, Evidence, Guest, Job, MoveProgress


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.alive.clear()


def make(tmp_path, **settings):
    return World(tmp_path, **settings)


def released(world, job="job-1"):
    return not world.around.board.is_open(job)


def with_second_job(world, policy="migrate"):
    """A guest of job-2 on host1, whose ranks stop and run as they are told."""
    manager = world.manager
    request = dataclasses.replace(manager.job.request, policy=policy)
    manager.membership.jobs.append(Job("job-2", request, "running", ["guest7"]))
    guest = Guest("guest7", "uuid-7", "host1", "10.0.1.7", 2**18, [1], 0, "u", "ready", "job-2")
    manager.membership.guests.append(guest)
    world.where["guest7"] = {"host1": RUNNING}
    manager.change()


def with_racks(world, **racks):
    for host in world.manager.membership.hosts:
        host.domains = {"rack": racks.get(host.name, "other")}
    world.manager.change()


def rack_alarm(world, rack="rack=r1"):
    evidence = Evidence(0.8, 0.3, 0.01, 9.0, 0.75)
    alarm = Alarm("alarm-r", world.around.clock.now(), "", "", "power", "volts", 0.8, evidence, rack)
    return world.controller.take_alarm(alarm)


# -- the spare fails ---------------------------------------------------------------------------------------------


def only_to(host):
    """Guests move to this host, and to no other."""

    def move(migration):
        if migration.destination != host:
            return stays(migration)
        return {"guest": migration.guest, "state": "moved", "error": ""}, {host: RUNNING}

    return move


def test_guests_that_stayed_go_to_the_next_spare_and_those_that_moved_stay_moved(world):
    world.fail["guest2"] = only_to("host5")
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "RETIRED")
    assert [(m.guest, m.attempt, m.destination, m.state) for m in ended.migrations] == [
        ("guest1", 1, "host4", "moved"),
        ("guest2", 1, "host4", "failed"),
        ("guest2", 2, "host5", "moved"),
    ]
    assert [one["guest"] for _, placed in world.manager.commits for one in placed] == ["guest1", "guest2"]
    assert "guest2 did not move" in ended.failed_spares["host4"]
    assert ended.epoch == 1  # the ranks waited on
    assert world.manager.leases == {}


def test_a_spare_that_does_not_answer_after_a_failed_move_is_kept_from_others(world):
    def dies(migration):
        if migration.destination == "host4":
            world.silent_hosts.add("host4")
            return stays(migration)
        return only_to("host5")(migration)

    world.fail = {"guest1": dies, "guest2": dies}
    world.ranks_behave()
    assert world.until_state(world.alarm(), "RETIRED").spare == "host5"
    assert "could not move guests here" in world.manager.retired["host4"]
    assert world.manager.spares == []


def test_after_the_last_attempt_a_person_decides_and_the_ranks_run(tmp_path):
    world = make(tmp_path, policy=Policy(attempts=1))
    world.fail = {"guest1": stays, "guest2": stays}
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "FAILED")
    assert "1 spares were tried" in ended.error
    assert released(world)
    assert world.manager.spares == ["host4", "host5"]


def test_a_spare_that_is_about_to_fail_itself_is_given_up_before_the_move(world):
    with_racks(world, host4="r1")
    evacuation = world.until_state(world.alarm(), "NOTICED")
    assert rack_alarm(world) is None
    world.until(lambda: evacuation.spare == "host5")
    world.ranks_behave()
    ended = world.until_state(evacuation, "RETIRED")
    assert "alarm-r" in ended.failed_spares["host4"]
    assert world.where["guest1"] == {"host5": RUNNING}


def test_an_attempt_after_one_that_ended_before_its_notice_has_a_deadline(tmp_path):
    world = make(tmp_path, mode="recommend")
    evacuation = world.until_state(world.alarm(), "LEASED")
    assert world.alarm("host4", "alarm-2") is None
    world.until(lambda: evacuation.spare == "host5")
    world.ranks_behave()
    world.controller.confirm(evacuation.id, "ada")
    ended = world.until_state(evacuation, "RETIRED")
    assert [step.name for step in ended.steps if "noticed" in step.name] == ["noticed 2"]


def test_who_waits_at_an_earlier_attempts_gate_is_sent_home(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    with_racks(world, host4="r1")
    rack_alarm(world)
    world.until(lambda: evacuation.attempt == 2)
    run = world.controller.run(evacuation.id)
    assert run.gate(1).cancelled
    world.stuck = True
    world.ranks_behave()
    world.until_state(evacuation, "MIGRATING")
    world.until(lambda: run.gate(2).open)
    assert not run.gate(1).open
    world.stuck = False
    world.until_state(evacuation, "RETIRED")


def test_moves_that_nothing_is_said_of_are_given_up_before_anything_is_decided(world):
    world.says_nothing = {"guest1"}
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "FAILED")
    assert world.aborted == [evacuation.id]


def test_if_no_spare_is_free_guests_are_packed_onto_hosts_of_their_job(world):
    world.manager.spares, world.manager.room = [], ["host2"]
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "RETIRED")
    assert world.where["guest1"] == {"host2": RUNNING}
    assert ended.spare == "host2"


def test_a_site_may_leave_guests_where_they_are_if_no_spare_is_free(tmp_path):
    world = make(tmp_path, policy=Policy(on_no_spare="leave"))
    world.manager.spares, world.manager.room = [], ["host2"]
    assert "no spare" in world.until_state(world.alarm(), "CANCELLED").error
    assert not any(request.pack for request in world.manager.requests)


def test_a_restart_after_the_lease_was_given_to_another_gives_up_what_still_moves(world):
    world.stuck = True
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "MIGRATING")
    world.crash()
    world.manager.leases.clear()
    world.manager.spares = []
    world.begin()
    world.controller.resume()
    world.ranks_behave()
    world.until(lambda: world.aborted)
    world.stuck = False
    ended = world.until_state(evacuation, "FAILED")
    assert evacuation.id in world.aborted
    assert "guest1, guest2 stay on host1" in ended.error
    assert released(world)


def test_a_cancellation_that_was_granted_outlives_a_restart(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    run = world.controller.run(evacuation.id)
    with world.around.changed:  # its thread can't go on before the controller is gone
        run.cancel("cancelled by operator ada")
        world.crash()
    world.begin()
    world.controller.resume()
    world.ranks_behave()
    assert world.until_state(evacuation, "CANCELLED").error == "cancelled by operator ada"
    assert world.where["guest1"] == {"host1": RUNNING}


def test_the_epoch_of_a_notice_that_was_cancelled_before_it_was_posted_is_not_used_again(world):
    world.around.board.cancel("job-1", 1)
    evacuation = world.until_state(world.alarm(), "NOTICED")
    assert evacuation.epoch == 2
    world.ranks_behave()
    world.until_state(evacuation, "RETIRED")


# -- several hosts, several jobs -----------------------------------------------------------------------------------


def test_the_hosts_of_a_failure_domain_share_one_notice_and_their_spares_are_elsewhere(world):
    with_racks(world, host1="r1", host2="r1", host4="r1")
    world.manager.room = ["host3"]
    world.ranks_behave()
    first = rack_alarm(world)
    second = next(e for e in world.controller.evacuations() if e is not first)
    assert world.until_state(first, "RETIRED").epoch == world.until_state(second, "RETIRED").epoch == 1
    assert {first.spare, second.spare} == {"host5", "host3"}
    assert world.around.board.notice("job-1").affected == ["guest1", "guest2", "guest3", "guest4"]


def test_the_earliest_predicted_failure_gets_the_last_spare(world):
    world.manager.spares = ["host4"]
    with world.around.changed:  # neither can ask before both are there
        late = world.alarm("host1", "alarm-1", predicted_failure_s=900.0)
        early = world.alarm("host2", "alarm-2", predicted_failure_s=60.0)
    world.ranks_behave()
    ended = [world.until_state(one, "RETIRED", "CANCELLED") for one in (early, late)]
    assert (ended[0].state, ended[0].spare) == ("RETIRED", "host4")


def test_a_host_is_left_by_the_guests_of_all_its_jobs(world):
    with_second_job(world)
    evacuations = world.controller.order("host1", "fan is loud", "ada")
    assert [one.job for one in evacuations] == ["job-1", "job-2"]
    with pytest.raises(RequestError, match="is being evacuated already, as"):
        world.controller.order("host1", "again", "ada")


def test_two_jobs_leave_one_host_each_by_its_own_barrier_and_the_host_is_retired_once_both_are_gone(world):
    with_second_job(world)
    world.stuck = True
    evacuations = world.controller.order("host1", "fan is loud", "ada")
    world.ranks_behave()
    for one in evacuations:
        world.until_state(one, "MIGRATING")
    assert [one.epoch for one in evacuations] == [1, 1]  # each job counts its own
    world.stuck = False
    first, second = (world.until_state(one, "RETIRED") for one in evacuations)
    assert {m.guest for m in first.migrations} == {"guest1", "guest2"}
    assert {m.guest for m in second.migrations} == {"guest7"}
    assert not any("host1" in places for places in world.where.values())
    assert set(world.manager.retired) == {"host1"}
    assert world.manager.leases == {}


def test_a_host_where_another_job_stays_is_not_retired(world):
    with_second_job(world, policy="off")
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "MOVED")
    assert "guest7 of job job-2" in next(step.detail for step in ended.steps if step.name == "retired")
    assert world.manager.retired == {}


def test_an_alarm_that_a_crash_cut_short_is_taken_for_the_other_jobs_when_it_comes_again(world, monkeypatch):
    with_second_job(world)

    begin, begun = world.around.journal.begin, []

    def begins_once(*words, **more):
        if begun:
            world.crash()
            world.die()
        begun.append(words)
        begin(*words, **more)

    monkeypatch.setattr(world.around.journal, "begin", begins_once)
    with pytest.raises(Crash):
        world.alarm()
    world.begin()
    assert len(world.controller.evacuations()) == 1
    assert world.alarm().job == "job-1"
    assert len(world.controller.evacuations()) == 2
    assert world.around.journal.alarm("alarm-1").count("host1") == 2


# -- withdrawn ---------------------------------------------------------------------------------------------------


def test_an_alarm_that_is_withdrawn_cancels_and_a_new_one_begins_anew(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.controller.withdraw("alarm-1", "memory was freed")
    ended = world.until_state(evacuation, "CANCELLED")
    assert ended.error == "alarm alarm-1 was withdrawn: memory was freed"
    assert world.manager.spares == ["host4", "host5"]
    world.ranks_behave()
    world.until_state(world.alarm(name="alarm-2"), "RETIRED")


def test_when_all_evacuations_of_a_host_are_cancelled_at_once_it_is_suspected_no_more(world, monkeypatch):
    with_second_job(world)
    start, late = world.controller._start, []
    monkeypatch.setattr(
        world.controller, "_start", lambda run: (late.append if run.evacuation.job == "job-2" else start)(run)
    )
    first = world.until_state(world.alarm(), "NOTICED")
    world.controller.withdraw("alarm-1", "memory was freed")
    world.until_state(first, "CANCELLED")  # while the other is still open
    start(*late)
    world.until_state(late[0].evacuation, "CANCELLED")
    assert world.manager.suspected == set()


def test_a_host_stays_suspected_while_another_job_goes_on_to_leave_it(world):
    with_second_job(world)
    first, second = world.controller.order("host1", "fan is loud", "ada")
    for one in (first, second):
        world.until_state(one, "NOTICED")
    world.controller.cancel(first.id, "ada")
    world.until_state(first, "CANCELLED")
    assert world.manager.suspected == {"host1"}
    world.controller.cancel(second.id, "ada")
    world.until_state(second, "CANCELLED")
    assert world.manager.suspected == set()


def test_the_withdrawal_of_an_alarm_that_was_raised_again_cancels_what_the_first_has_begun(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    assert world.alarm(name="alarm-2") is None  # its host is being evacuated already
    world.restart()  # which alarms were of one cause is in the journal
    withdrawn = world.controller.withdraw("alarm-2", "memory was freed")
    assert withdrawn.id == evacuation.id
    assert world.until_state(evacuation, "CANCELLED").error == "alarm alarm-2 was withdrawn: memory was freed"


@pytest.mark.parametrize("changes", [{"metric": "temperature"}, {"host": "host2"}, {"job": "job-2"}, {"time": 1.0}])
def test_the_withdrawal_of_an_alarm_of_another_cause_or_of_an_earlier_one_leaves_an_evacuation_alone(world, changes):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    other = dataclasses.replace(evacuation.alarm, id="alarm-2", **changes)
    world.around.journal.note_alarm(other, "monitor", "")
    assert world.controller.withdraw("alarm-2", "it is well again") is None
    assert (evacuation.state, evacuation.cancel) == ("NOTICED", "")


def test_an_alarm_that_is_withdrawn_before_it_arrives_leads_to_nothing(world):
    assert world.controller.withdraw("alarm-1", "a mistake") is None
    assert world.alarm() is None


# -- checkpoints and plans -----------------------------------------------------------------------------------------


def test_a_job_may_ask_for_a_checkpoint_instead_of_a_move(world):
    world.manager.job.request.policy = "checkpoint"
    world.manager.change()
    evacuation = world.until_state(world.alarm(), "NOTICED")
    notice = world.around.board.notice("job-1")
    assert (notice.kind, notice.affected) == ("checkpoint", ["guest1", "guest2"])
    world.ranks_behave()
    ended = world.until_state(evacuation, "CHECKPOINTED")
    assert released(world)
    assert ended.spare is None
    assert world.playbook_runs == 0
    assert world.manager.retired == {}


def test_guests_with_passed_through_devices_stay_and_their_job_is_told_to_checkpoint(world):
    world.facts = {"guest2": GuestFacts(["pci 0000:3b:02.1"])}
    ended_plan = world.until_state(world.alarm(), "NOTICED").plan
    assert ended_plan.decision == "checkpoint"
    assert "guest2 has pci 0000:3b:02.1" in ended_plan.reasons[0]
    world.ranks_behave()


def test_guests_whose_devices_are_to_be_unplugged_get_those_of_their_spare(tmp_path):
    world = make(tmp_path, policy=Policy(on_devices="unplug"))
    for host in world.manager.membership.hosts:
        host.devices = {"ib-vf": ["0000:5e:00.1", "0000:5e:00.2"]}
    guest = next(guest for guest in world.manager.membership.guests if guest.name == "guest2")
    guest.devices = [Device("ib-vf", "0000:3b:02.1")]
    world.manager.change()
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "RETIRED")
    assert ended.plan.decision == "migrate"
    plugged = [Device("ib-vf", "0000:5e:00.1")]
    assert {m.guest: m.devices for m in ended.migrations} == {"guest1": [], "guest2": plugged}
    committed = {placed["guest"]: placed["devices"] for placed in world.manager.commits[0][1]}
    assert committed["guest2"] == [dataclasses.asdict(plugged[0])]


def test_where_nothing_helps_in_time_a_site_may_give_up_or_try_all_the_same(tmp_path):
    world = make(tmp_path / "tries")
    world.ranks_behave()
    ended = world.until_state(world.alarm(predicted_failure_s=1.0), "RETIRED")
    assert ended.plan.decision == "nothing helps"
    world = make(tmp_path / "gives-up", policy=Policy(on_short_lead="cancel"))
    assert "nothing helps" in world.until_state(world.alarm(predicted_failure_s=1.0), "CANCELLED").error


def test_a_plan_is_shown_without_acting(world):
    (plan,) = world.controller.plans("host1")
    assert (plan.job, plan.decision, [one.guest for one in plan.guests]) == ("job-1", "migrate", ["guest1", "guest2"])
    assert world.controller.evacuations() == []
    with pytest.raises(RequestError, match="no host or failure domain rack=r9"):
        world.controller.plans("rack=r9")


def test_a_job_may_say_what_happens_at_the_deadline(tmp_path):
    world = make(tmp_path, gather_timeout_s=0.1)
    world.manager.job.request.on_deadline = "cancel"
    world.manager.change()
    ended = world.until_state(world.alarm(), "CANCELLED")
    assert "the policy is to cancel then" in ended.error


# -- verified ------------------------------------------------------------------------------------------------------


def test_a_moved_guest_must_be_reached_by_a_peer_and_have_its_root(tmp_path):
    world = make(tmp_path)
    world.silent_agents = {"guest1", "guest3"}  # guest3 is asked to reach the moved ones
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "FAILED")
    assert "guest1 moved, but its agent does not say that its root file system answers" in ended.error
    assert "guest2 moved, but guest3 does not reach it at 10.0.1.2" in ended.error
    assert "guest2 moved, but its agent" not in ended.error
    assert released(world)


# -- modes and the switch ------------------------------------------------------------------------------------------


def test_recommended_evacuations_wait_with_their_spare_for_a_person(tmp_path):
    world = make(tmp_path, mode="recommend")
    evacuation = world.until_state(world.alarm(), "LEASED")
    assert world.around.board.notice("job-1").epoch == 0
    world.controller.confirm(evacuation.id, "ada")
    world.ranks_behave()
    assert world.until_state(evacuation, "RETIRED").confirmed_by == "ada"
    with pytest.raises(RequestError, match="waits for nobody"):
        world.controller.confirm(evacuation.id, "ada")


def test_what_nobody_confirms_is_cancelled(tmp_path):
    world = make(tmp_path, mode="recommend", confirm_timeout_s=0.05)
    assert "nobody confirmed it" in world.until_state(world.alarm(), "CANCELLED").error
    assert world.manager.spares == ["host4", "host5"]


def test_an_operators_order_needs_no_confirmation(tmp_path):
    world = make(tmp_path, mode="recommend")
    world.ranks_behave()
    (evacuation,) = world.controller.order("host1", "fan", "ada")
    world.until_state(evacuation, "RETIRED")


def test_an_observing_controller_only_records_alarms(tmp_path):
    world = make(tmp_path, mode="observe")
    assert world.alarm() is None
    assert world.around.journal.alarm("alarm-1") == "the mode is observe: alarms are only recorded"


def test_stopped_evacuations_stay_stopped_over_a_restart_until_they_are_allowed(world):
    world.controller.stop_evacuations("ada", "tests of the network")
    world.restart()
    assert world.controller.status.stopped_by == "ada"
    assert world.alarm() is None
    with pytest.raises(RequestError, match=r"stopped by ada \(tests of the network\)"):
        world.controller.order("host1", "", "bob")
    world.controller.allow_evacuations("ada")
    world.restart()
    world.ranks_behave()
    world.until_state(world.alarm(name="alarm-2"), "RETIRED")


# -- the API -------------------------------------------------------------------------------------------------------


@pytest.fixture
def api(world):
    world.around.cluster.refresh()
    return TestClient(build_app(world.controller, SECRET))


def test_the_switch_the_status_and_the_audit_trail(api):
    ada = bearer("operator", "ada")
    assert api.post("/stop", json={"reason": "storm"}, headers=ada).json()["stopped"]
    assert api.get("/status", headers=bearer("reader")).json()["reason"] == "storm"
    assert api.post("/evacuations", json={"host": "host1", "reason": ""}, headers=ada).status_code == 409
    assert not api.post("/allow", headers=ada).json()["stopped"]
    found = api.get("/events?after=0", headers=bearer("reader")).json()
    assert [(e["who"], e["detail"]["act"], e["detail"]["reason"]) for e in found["events"]] == [
        ("ada", "stop evacuations", "storm"),
        ("ada", "evacuate", ""),
        ("ada", "allow evacuations", ""),
    ]
    assert found["events"][1]["detail"]["outcome"].startswith("refused: new evacuations are stopped by ada")
    assert api.get(f"/events?after={found['last']}", headers=bearer("reader")).json() == {
        "events": [],
        "last": found["last"],
    }


@pytest.mark.parametrize("path", ["/stop", "/allow", "/evacuations/e/confirm", "/alarms/a/withdraw"])
def test_no_reader_changes_anything(api, path):
    assert api.post(path, json={}, headers=bearer("reader")).status_code == 403


def test_a_failure_domain_may_be_ordered_and_planned(api, world):
    with_racks(world, host1="r1", host2="r1")
    planned = api.get("/plan?host=rack%3Dr1", headers=bearer("reader")).json()
    assert [one["host"] for one in planned] == ["host1", "host2"]
    ordered = api.post("/evacuations", json={"host": "rack=r1", "reason": ""}, headers=bearer("operator")).json()
    assert [(one["host"], one["domain"]) for one in ordered] == [("host1", "rack=r1"), ("host2", "rack=r1")]
    assert api.get("/plan?host=rack%3D%7B%7B", headers=bearer("reader")).status_code == 422


def test_how_far_moves_have_come_is_asked_while_guests_move(api, world):
    world.controller._progress = lambda address, guests: [MoveProgress(guest, 5, 7) for guest in guests]
    world.stuck = True
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "MIGRATING")
    path = f"/evacuations/{evacuation.id}/progress"
    shown = api.get(path, headers=bearer("reader")).json()
    assert shown[0] == {"guest": "guest1", "processed": 5, "remaining": 7}
    world.stuck = False
    world.until_state(evacuation, "RETIRED")
    assert api.get(path, headers=bearer("reader")).json() == []


def test_a_withdrawal_of_an_unknown_alarm_is_no_error(api):
    assert api.post("/alarms/a-9/withdraw", json={"reason": "x"}, headers=bearer("service")).json() == {}


def test_an_abort_that_cannot_be_run_is_said(world):
    world.says_nothing = {"guest1"}
    world.around.abort = lambda order: PlaybookResult(2, "failed", None, {}, ["host1 can't be reached"])
    world.ranks_behave()
    assert "giving up: host1 can't be reached" in world.until_state(world.alarm(), "FAILED").error
