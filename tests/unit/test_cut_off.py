"""While most hosts are silent the head is cut off: evacuations wait, and no host is given up for it."""

import time

import pytest
from evacuation_world import World

ALL = {f"host{n}" for n in range(1, 6)}


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.alive.clear()


def cut_off_at(world, state):
    """An evacuation whose head is cut off from all hosts once it has come so far."""
    evacuation = world.until_state(world.alarm(), state)
    world.silent_hosts = set(ALL)
    return evacuation


def test_a_head_that_is_cut_off_before_the_move_waits_and_may_take_the_same_spare_again(world):
    world.manager.spares = ["host4"]
    evacuation = cut_off_at(world, "NOTICED")
    world.drop_playbook = True
    world.until(lambda: evacuation.failed_spares)
    time.sleep(2 * world.limits.settle_timeout_s)  # longer than hosts that are silent alone are waited for
    assert (evacuation.attempt, evacuation.state) == (1, "NOTICED")
    world.drop_playbook = False
    world.silent_hosts = set()
    world.ranks_behave()
    ended = world.until_state(evacuation, "RETIRED")
    assert (ended.attempt, ended.spare, ended.failed_spares) == (2, "host4", {})
    assert set(world.manager.retired) == {"host1"}  # no spare was lost


def test_a_head_that_is_cut_off_during_the_move_attaches_to_it_again(world):
    world.stuck = True
    world.ranks_behave()
    evacuation = cut_off_at(world, "MIGRATING")
    world.says_nothing, world.last_words = set(world.where), ["host1 is unreachable"]
    world.stuck = False
    time.sleep(2 * world.limits.settle_timeout_s)
    assert (evacuation.state, world.aborted) == ("MIGRATING", [])
    world.says_nothing, world.last_words, world.silent_hosts = set(), [], set()
    ended = world.until_state(evacuation, "RETIRED")
    assert [(m.state, m.attempt) for m in ended.migrations] == [("moved", 1), ("moved", 1)]
    assert (world.aborted, world.playbook_runs) == ([], 2)


def test_a_head_that_stays_cut_off_does_not_wait_for_ever(tmp_path):
    world = World(tmp_path, cut_off_timeout_s=0.6)
    evacuation = cut_off_at(world, "NOTICED")
    world.drop_playbook = True
    world.until(lambda: evacuation.attempt > 1)


def test_ranks_that_could_not_be_heard_get_their_time_again_once_the_head_is_back(tmp_path):
    world = World(tmp_path, gather_timeout_s=0.5, on_deadline="cancel")
    evacuation = cut_off_at(world, "NOTICED")
    time.sleep(1.0)
    assert evacuation.state == "NOTICED"
    world.silent_hosts = set()
    world.ranks_behave()
    world.until_state(evacuation, "RETIRED")


def test_both_ends_that_die_alone_are_not_waited_for_as_a_head_is(world):
    evacuation = world.until_state(world.alarm(), "NOTICED")
    world.silent_hosts = {"host1", "host4"}
    world.drop_playbook = True
    world.until(lambda: evacuation.attempt > 1)
    assert "host4" in evacuation.failed_spares
