"""An evacuation comes to one of its ends whatever happens, and never leaves ranks stopped."""

import sqlite3
import time

import pytest
from evacuation_world import World, half_way, stays

from failavoid.controller import evacuation as way
from failavoid.controller.controller import RequestError
from failavoid.controller.libvirt_view import OTHER, RUNNING
from failavoid.controller.manager import ManagerError
from failavoid.controller.verification import GONE, MOVED, STAYED, UNCLEAR, outcome
from failavoid.shared.messages import from_dict, to_dict

WAY = ["alarm", "leased", "noticed", "gathered", "migrating", "verified", "released", "retired"]


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.alive.clear()


@pytest.fixture
def impatient(tmp_path):
    """Ranks get a tenth of a second to stop."""
    world = World(tmp_path, gather_timeout_s=0.1)
    yield world
    world.alive.clear()


def released(world):
    notice = world.around.board.notice("job-1")
    return notice.epoch in (notice.done, notice.cancelled)


# -- the way as it should be -----------------------------------------------------------------------------------


def test_all_guests_of_the_host_leave_and_it_is_retired(world):
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "RETIRED")
    assert world.where["guest1"] == {"host4": RUNNING}
    assert world.where["guest2"] == {"host4": RUNNING}
    assert world.where["guest3"] == {"host2": RUNNING}
    assert "rule robust" in world.manager.retired["host1"]
    assert [(m.guest, m.state, m.downtime_ms) for m in ended.migrations] == [
        ("guest1", "moved", 20),
        ("guest2", "moved", 20),
    ]
    assert ended.error == ""


def test_each_step_is_begun_and_done_in_the_order_of_the_way(world):
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "RETIRED")
    steps = {step.name: step for step in ended.steps}
    done = [steps[name].done for name in WAY]
    assert done == sorted(done)
    assert all(step.begun <= step.done for step in ended.steps)
    assert steps["prepare_destination"].done <= steps["migrating"].done


def test_the_spare_is_leased_before_ranks_are_stopped(world):
    world.manager.spares = []
    ended = world.until_state(world.alarm(), "CANCELLED")
    assert "no spare" in ended.error
    assert world.around.board.notice("job-1").epoch == 0


def test_guests_wait_at_the_gate_until_all_ranks_have_stopped(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    run = world.controller.run(evacuation.id)
    world.say("ready", "guest1")
    time.sleep(0.05)
    assert not run.gate(1).open
    assert world.where["guest1"] == {"host1": RUNNING}
    world.ranks_behave()
    world.until_state(evacuation, "RETIRED")
    assert not run.gate(1).open  # nobody comes through later


def test_only_the_affected_guests_count(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.say("ready", "guest3", "guest4", "guest5", "guest6", "guest1")
    time.sleep(0.05)
    assert evacuation.state == "NOTICED"
    world.ranks_behave()
    world.until_state(evacuation, "RETIRED")


def test_released_is_when_the_last_word_arrived(world):
    world.ranks_behave("guest1")
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.say("ready", "guest2")
    world.until(lambda: world.around.board.notice("job-1").done == 1)
    assert evacuation.state == "VERIFIED"
    before = time.time()
    world.say("resumed", "guest2")
    ended = world.until_state(evacuation, "RETIRED")
    step = next(step for step in ended.steps if step.name == "released")
    assert before <= step.done <= time.time()
    assert step.detail == "2 of 2 guests resumed"


def test_the_resource_manager_knows_where_guests_are_before_ranks_run(world):
    world.ranks_behave("guest1")
    world.until_state(world.alarm(), "NOTICED")
    world.say("ready", "guest2")
    world.until(lambda: world.around.board.notice("job-1").done == 1)
    assert [one["guest"] for one in world.manager.commits[0][1]] == ["guest1", "guest2"]


def test_a_guest_that_never_resumes_does_not_hold_up_the_rest(tmp_path):
    world = World(tmp_path, resume_timeout_s=0.1)
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.say("ready", "guest1", "guest2")
    ended = world.until_state(evacuation, "RETIRED")
    assert "no word from guest1, guest2" in next(s for s in ended.steps if s.name == "released").detail


def test_ranks_need_not_wait_for_the_playbooks_own_end(world):
    world.lingers = True
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "RELEASED")
    time.sleep(0.05)
    assert world.manager.retired == {}
    world.lingers = False
    world.until_state(evacuation, "RETIRED")


def test_a_playbook_that_fails_at_its_very_end_is_not_overlooked(world):
    world.last_words = ["host4: Tidy up: no space left"]
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "FAILED")
    assert "no space left" in ended.error
    assert "host1" in world.manager.retired
    assert released(world)


def test_a_host_that_fails_while_ranks_gather_for_another_waits_with_its_spare_for_the_next_epoch(world):
    first = world.until_state(world.alarm("host1"), "NOTICED")
    second = world.until_state(world.alarm("host2", "alarm-2"), "LEASED")
    time.sleep(0.05)
    assert (second.state, second.spare) == ("LEASED", "host5")
    world.ranks_behave()
    assert world.until_state(first, "RETIRED").epoch == 1
    assert world.until_state(second, "RETIRED").epoch == 2
    assert set(world.manager.retired) == {"host1", "host2"}


# -- alarms that lead to nothing -------------------------------------------------------------------------------


def test_the_same_alarm_again_names_the_same_evacuation(world):
    assert world.alarm().id == world.alarm().id
    assert len(world.controller.evacuations()) == 1


def test_a_host_that_is_being_evacuated_or_defunct_is_not_evacuated_again(world):
    evacuation = world.alarm()
    assert world.alarm(name="alarm-2") is None
    world.ranks_behave()
    world.until_state(evacuation, "RETIRED")
    assert world.alarm(name="alarm-3") is None
    assert len(world.controller.evacuations()) == 1


def test_a_job_with_policy_off_is_left_alone_and_the_alarm_recorded(world):
    world.manager.job.request.policy = "off"
    assert world.alarm() is None
    assert world.around.journal.alarm("alarm-1") == "failure avoidance is off for job job-1"


def test_an_alarm_of_a_host_without_guests_of_the_job_leads_to_nothing(world):
    assert world.alarm("host5") is None
    assert world.alarm("host9", "alarm-2") is None


def test_an_alarm_is_not_lost_while_the_resource_manager_is_away(world):
    world.manager.down = True
    with pytest.raises(ManagerError):
        world.alarm()
    world.manager.down = False
    assert world.alarm().host == "host1"


def test_no_alarm_undoes_an_operators_cancellation(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.controller.cancel(evacuation.id, "ada")
    world.until_state(evacuation, "CANCELLED")
    assert world.alarm(name="alarm-2") is None
    assert [one.host for one in world.controller.order("host1", "after all", "ada")] == ["host1"]


def test_without_a_spare_the_next_alarm_tries_again(world):
    world.manager.spares = []
    world.until_state(world.alarm(), "CANCELLED")
    world.manager.spares = ["host5"]
    world.ranks_behave()
    world.until_state(world.alarm(name="alarm-2"), "RETIRED")


# -- cancelled -------------------------------------------------------------------------------------------------


def cancelled_cleanly(world, evacuation, spares_tried=1):
    assert released(world)
    assert len(world.manager.given_back) == spares_tried
    assert world.manager.spares == ["host4", "host5"]
    assert world.manager.commits == []
    assert world.manager.retired == {}
    assert world.manager.suspected == set()
    assert world.where["guest1"] == {"host1": RUNNING}
    run = world.controller.run(evacuation.id)
    return run.gate(1).cancelled and not run.gate(1).open


def test_the_host_gets_no_new_work_while_it_is_left(world):
    world.until_state(world.alarm(), "NOTICED")
    assert world.manager.suspected == {"host1"}


def test_cancelled_while_ranks_gather_everything_is_as_before(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.say("ready", "guest1")
    world.controller.cancel(evacuation.id, "ada")
    ended = world.until_state(evacuation, "CANCELLED")
    assert ended.error == "cancelled by operator ada"
    assert cancelled_cleanly(world, ended)


def test_once_guests_move_it_is_too_late_to_cancel(world):
    world.stuck = True
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "MIGRATING")
    with pytest.raises(RequestError, match="until its guests begin to move"):
        world.controller.cancel(evacuation.id, "ada")
    world.stuck = False
    world.until_state(evacuation, "RETIRED")


def test_the_job_ends_before_its_guests_move(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.manager.job.state = "completed"
    world.manager.change()
    world.around.cluster.refresh()
    ended = world.until_state(evacuation, "CANCELLED")
    assert ended.error == "job job-1 has ended"
    assert cancelled_cleanly(world, ended)


def test_no_destination_can_be_prepared(world):
    world.preparation_fails = "host4: Prepare the destination: no bridge br0"
    ended = world.until_state(world.alarm(), "CANCELLED")
    assert "no spare to move to" in ended.error
    assert "host5 failed: the destination could not be prepared: host4: Prepare the destination: no br" in ended.error
    assert cancelled_cleanly(world, ended, spares_tried=2)


def test_the_guests_do_not_fit_on_the_spare(world):
    world.manager.refuse = {"/placements"}
    ended = world.until_state(world.alarm(), "CANCELLED")
    assert "refused" in ended.error
    assert world.manager.spares == ["host4", "host5"]
    assert world.around.board.notice("job-1").epoch == 0


def test_the_spare_is_returned_when_the_resource_manager_is_back(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.manager.down = True
    world.controller.cancel(evacuation.id, "ada")
    world.until(lambda: released(world))
    world.manager.down = False
    world.until_state(evacuation, "CANCELLED")
    assert len(world.manager.given_back) == 1


# -- deadline --------------------------------------------------------------------------------------------------


def test_at_the_deadline_guests_move_with_running_ranks(impatient):
    impatient.ranks_behave("guest1")
    evacuation = impatient.alarm()
    impatient.until(lambda: impatient.around.board.notice("job-1").done == 1)
    impatient.say("resumed", "guest2")
    ended = impatient.until_state(evacuation, "RETIRED")
    assert "at the deadline 1 of 2" in next(s for s in ended.steps if s.name == "gathered").detail


def test_at_the_deadline_the_policy_may_be_to_cancel(impatient):
    impatient.limits.on_deadline = "cancel"
    impatient.ranks_behave("guest1")
    ended = impatient.until_state(impatient.alarm(), "CANCELLED")
    assert "at the deadline 1 of 2" in ended.error
    assert cancelled_cleanly(impatient, ended)


def test_the_predicted_failure_less_a_moves_time_is_the_deadline(world):
    evacuation = world.alarm(predicted_failure_s=world.limits.expected_migration_s + 0.2)
    ended = world.until_state(evacuation, "MIGRATING", "VERIFIED", "RELEASED", "RETIRED")
    assert "0 of 2" in next(s for s in ended.steps if s.name == "gathered").detail


# -- the move does not come out as it should ---------------------------------------------------------------------


def test_a_guest_that_stays_leaves_the_evacuation_failed_and_the_other_committed(world):
    world.fail["guest2"] = stays
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "FAILED")
    assert "guest2 did not move and runs on host1: refused" in ended.error
    assert [one["guest"] for one in world.manager.commits[0][1]] == ["guest1"]
    assert released(world)
    assert world.manager.retired == {}
    assert world.manager.spares == ["host5"]  # it was tried, and given back


def test_if_all_stay_the_spare_is_returned(world):
    world.fail = {"guest1": stays, "guest2": stays}
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "FAILED")
    assert world.manager.commits == []
    assert world.manager.spares == ["host4", "host5"]
    assert released(world)
    assert world.alarm(name="alarm-2") is None  # a person has to decide first
    assert ended.state == "FAILED"


def test_when_it_is_unclear_where_a_guest_runs_the_spare_is_kept_and_nothing_destroyed(world):
    world.fail["guest2"] = half_way
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "FAILED")
    assert "where guest2 runs is not clear (host1 says not running, host4 says not running)" in ended.error
    assert "destroy nothing" in ended.error
    assert world.manager.given_back == []
    assert [one["guest"] for one in world.manager.commits[0][1]] == ["guest1"]
    assert released(world)


def test_a_spare_where_guests_might_be_is_given_to_nobody(world):
    world.fail = {"guest1": half_way, "guest2": half_way}
    world.ranks_behave()
    world.until_state(world.alarm(), "FAILED")
    assert world.manager.commits == []
    assert world.manager.given_back == []
    assert "may run here" in world.manager.retired["host4"]
    assert released(world)


def test_a_commit_whose_answer_was_lost_is_not_taken_for_a_failure(world):
    world.manager.lose_answer = True
    world.ranks_behave()
    world.until_state(world.alarm(), "RETIRED")
    assert len(world.manager.commits) == 1


def test_the_lease_is_renewed_while_guests_move(world):
    world.manager.lease_s = 1.0
    world.stuck = True
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "MIGRATING")
    world.until(lambda: world.manager.renewals >= 3)
    world.stuck = False
    assert world.until_state(evacuation, "RETIRED").spare == "host4"


def test_a_playbook_that_names_no_guest_is_no_success(world):
    world.says_nothing = {"guest1"}
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "FAILED")
    assert "the playbook says nothing of guest1" in ended.error
    assert "host1" in world.manager.retired  # libvirt shows that all have left


def test_a_guest_that_is_not_pinned_where_it_should_be_is_named(world):
    world.unpinned = {"guest1"}
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "FAILED")
    assert "guest1 moved, but its pinning was not verified" in ended.error
    assert len(world.manager.commits[0][1]) == 2


def test_a_guest_that_does_not_answer_after_its_move_is_named(world):
    world.silent_guests = {"guest2"}
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "FAILED")
    assert "guest2 moved, but does not answer at 10.0.1.2" in ended.error
    assert released(world)


def test_a_source_that_died_after_the_move_changes_nothing(world):
    world.stuck = True
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "MIGRATING")
    world.silent_hosts = {"host1"}
    world.stuck = False
    world.until_state(evacuation, "RETIRED")


def test_a_refused_retirement_is_for_a_person(world):
    world.manager.refuse = {"/hosts"}
    world.ranks_behave()
    ended = world.until_state(world.alarm(), "FAILED")
    assert "/hosts/host1/retire is refused" in ended.error
    assert released(world)


def test_ranks_run_on_while_the_resource_manager_is_away(world):
    world.stuck = True
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "MIGRATING")
    world.manager.down = True
    world.stuck = False
    world.until(lambda: released(world))
    assert world.manager.commits == []
    world.manager.down = False
    world.until_state(evacuation, "RETIRED")
    assert len(world.manager.commits) == 1


def test_a_job_that_ends_while_its_guests_move_ends_the_evacuation_cleanly(world):
    world.stuck = True
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "MIGRATING")
    world.manager.job.state = "failed"
    world.manager.change()
    gone = ({"guest": "guest2", "state": "failed", "error": "no domain"}, {})
    world.fail["guest2"] = lambda migration: gone
    world.stuck = False
    ended = world.until_state(evacuation, "RETIRED")
    assert [m.state for m in ended.migrations] == ["moved", "cancelled"]


def test_a_host_that_fails_before_its_guests_move_takes_the_job_but_not_the_spare(world):
    world.stuck = True
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "MIGRATING")
    world.manager.job.state = "failed"
    world.manager.change()
    world.fail["guest1"] = lambda migration: ({"guest": "guest1", "state": "failed", "error": "killed"}, {})
    world.fail["guest2"] = stays
    world.stuck = False
    ended = world.until_state(evacuation, "CANCELLED")
    assert ended.error.startswith("job job-1 has ended, nothing has moved")
    assert "killed" in ended.error
    assert world.manager.spares == ["host4", "host5"]
    assert world.manager.retired == {}
    assert released(world)


# -- restarts --------------------------------------------------------------------------------------------------


def test_a_restart_while_ranks_gather_goes_on_with_the_same_epoch_and_spare(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.say("ready", "guest1")
    world.restart()
    assert world.around.board.notice("job-1").epoch == 1
    world.say("ready", "guest2")  # guest1's word is in the journal
    world.ranks_behave()
    ended = world.until_state(evacuation, "RETIRED")
    assert ended.epoch == 1
    assert ended.spare == "host4"
    assert world.manager.spares == ["host5"]


def test_a_restart_after_the_spare_was_lost_cancels(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.crash()
    world.manager.leases.clear()
    world.manager.spares = []
    world.begin()
    world.controller.resume()
    world.ranks_behave()
    ended = world.until_state(evacuation, "CANCELLED")
    assert "the lease of host4 was lost" in ended.error
    assert released(world)


def test_a_restart_while_guests_move_runs_the_playbook_again(world):
    world.stuck = True
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "MIGRATING")
    world.until(lambda: world.playbook_runs == 1)
    world.restart()
    world.ranks_behave()
    world.stuck = False
    world.until_state(evacuation, "RETIRED")
    assert world.playbook_runs == 2


def test_a_restart_between_verified_and_released_releases(world):
    world.ranks_behave("guest1")
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.say("ready", "guest2")
    world.until_state(evacuation, "VERIFIED")
    world.until(lambda: released(world))
    world.restart()
    world.say("resumed", "guest1", "guest2")
    world.until_state(evacuation, "RETIRED")
    assert len(world.manager.commits) == 1
    assert world.playbook_runs == 1


def test_a_restart_in_a_cancellation_finishes_it(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.manager.down = True
    world.controller.cancel(evacuation.id, "ada")
    world.until(lambda: released(world))
    world.manager.down = False
    world.restart()
    assert world.until_state(evacuation, "CANCELLED").error == "cancelled by operator ada"
    assert world.manager.spares == ["host4", "host5"]


def test_after_a_restart_old_evacuations_read_the_same(world):
    world.ranks_behave()
    ended = to_dict(world.until_state(world.alarm(), "RETIRED"))
    world.restart()
    (again,) = world.controller.evacuations()
    assert to_dict(again) == ended
    assert from_dict(type(again), ended) == again
    assert world.alarm() is again


# -- errors of the controller itself ---------------------------------------------------------------------------


def raises(error):
    def act(*_words, **_more):
        raise error

    return act


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk full"), RuntimeError("a bug")])
def test_an_evacuation_that_cannot_even_be_cancelled_ends_the_controller_and_a_restart_ends_it(
    world, monkeypatch, error
):
    given_up = []
    world.around.give_up = lambda: given_up.append(True)
    with monkeypatch.context() as broken:
        broken.setattr(way, "go_on", raises(RuntimeError("a bug")))
        broken.setattr(way, "cancelled", raises(error))
        evacuation = world.alarm()
        world.until(lambda: given_up)
    world.restart()
    world.ranks_behave()
    world.until_state(evacuation, "RETIRED")


def test_a_cancellation_that_cannot_be_written_down_has_no_effect(world, monkeypatch):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    with monkeypatch.context() as full:
        full.setattr(world.around.journal, "save", raises(sqlite3.OperationalError("disk full")))
        with pytest.raises(sqlite3.OperationalError):
            world.controller.cancel(evacuation.id, "ada")
    world.ranks_behave()
    world.until_state(evacuation, "RETIRED")


def test_a_confirmation_that_cannot_be_written_down_has_no_effect(tmp_path, monkeypatch):
    world = World(tmp_path, mode="recommend")
    evacuation = world.until_state(world.alarm(), "LEASED")
    with monkeypatch.context() as full:
        full.setattr(world.around.journal, "save", raises(sqlite3.OperationalError("disk full")))
        with pytest.raises(sqlite3.OperationalError):
            world.controller.confirm(evacuation.id, "ada")
    assert evacuation.confirmed_by == ""
    world.controller.confirm(evacuation.id, "ada")
    world.ranks_behave()
    world.until_state(evacuation, "RETIRED")
    world.alive.clear()


# -- where a guest is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "destination", "said", "over", "expected"),
    [
        ({}, {"g": RUNNING}, "moved", False, MOVED),
        ({}, {"g": RUNNING}, "", False, MOVED),
        (None, {"g": RUNNING}, "moved", False, MOVED),
        (None, {"g": RUNNING}, "", False, UNCLEAR),
        ({"g": RUNNING}, {}, "", False, STAYED),
        ({"g": RUNNING}, {}, "moved", False, STAYED),
        ({"g": RUNNING}, None, "", False, UNCLEAR),
        ({"g": RUNNING}, None, "moved", False, UNCLEAR),
        ({"g": RUNNING}, None, "failed", False, STAYED),
        ({"g": OTHER}, None, "failed", False, UNCLEAR),
        ({"g": RUNNING}, {"g": OTHER}, "", False, UNCLEAR),
        ({"g": OTHER}, {"g": RUNNING}, "moved", False, UNCLEAR),
        ({"g": RUNNING}, {"g": RUNNING}, "moved", False, UNCLEAR),
        ({"g": OTHER}, {}, "", False, UNCLEAR),
        ({}, {}, "moved", False, UNCLEAR),
        ({}, {}, "", True, GONE),
        (None, None, "moved", True, UNCLEAR),
        (None, {}, "moved", True, UNCLEAR),
    ],
)
def test_only_clear_signs_from_both_hosts_decide_where_a_guest_is(source, destination, said, over, expected):
    assert outcome("g", source, destination, said, over) == expected
