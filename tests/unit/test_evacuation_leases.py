"""Guests go only to a spare that is known to be theirs, and a controller that knows nothing yet waits for word."""

import logging

import pytest
from model_world import LEASE_S, ModelWorld

from failavoid.controller.libvirt_view import RUNNING
from failavoid.controller.limits import Policy

GUESTS = ("a1", "a2", "b1")  # of two jobs on host1


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def world():
    world = ModelWorld(policy=Policy(attempts=2, on_no_spare="leave"))
    yield world
    world.kill()  # its threads


def order(world, host="host1"):
    with world.lives():
        world.controller.order(host, "maintenance", "ada")
    world.settle()


def ranks_stop(world):
    world.agents_speak(GUESTS)
    world.settle()


def wait(world, seconds):
    world.advance(seconds)
    world.settle()


def restart(world, after_s, with_manager=True):
    world.kill()
    world.advance(after_s)
    world.manager.silent = not with_manager
    world.begin()
    world.settle()


def states(world):
    return [one.state for one in world.controller.evacuations()]


def spares(world):
    return [one.spare for one in world.controller.evacuations()]


def end(world):
    world.heal_and_finish()
    world.check_that_guests_run_once()
    world.check_the_end()
    return states(world)


# -- whose the spare is ------------------------------------------------------------------------------------------


def test_after_a_restart_nobody_moves_before_the_resource_manager_has_said_whose_the_spare_is(world):
    order(world)
    world.kill()
    world.advance(LEASE_S + 100)
    world.manager.silent = True
    world.begin()
    world.around.cluster._take(world.manager.picture())  # the one thing that it says
    ranks_stop(world)
    assert states(world) == ["GATHERED"] * 2
    assert world.moving() == []
    assert end(world) == ["RETIRED"] * 2


def test_a_silent_resource_manager_that_is_back_in_time_costs_no_spare(world):
    order(world)
    taken = spares(world)
    restart(world, after_s=1.0, with_manager=False)
    ranks_stop(world)
    assert states(world) == ["NOTICED"] * 2  # nothing is known of hosts and guests
    world.manager.silent = False
    wait(world, 2.0)
    assert spares(world) == taken
    assert {guest for _, guest in world.moving()} == set(GUESTS)
    assert end(world) == ["RETIRED"] * 2


def test_guests_move_under_a_lease_that_lasts_whether_the_resource_manager_answers_or_not(world):
    order(world)
    world.manager.silent = True
    ranks_stop(world)
    assert {guest for _, guest in world.moving()} == set(GUESTS)


def test_once_the_lease_has_run_out_a_silent_resource_manager_is_waited_for(world):
    world.limits.gather_timeout_s = 2 * LEASE_S
    order(world)
    world.manager.silent = True
    wait(world, LEASE_S + 1)
    ranks_stop(world)
    assert states(world) == ["GATHERED"] * 2
    assert world.moving() == []
    assert end(world) == ["RETIRED"] * 2


def test_who_comes_to_an_open_gate_late_is_not_let_through_before_the_lease_is_renewed(world):
    order(world)
    world.silent.add("host1")  # its module can't ask
    wait(world, 60.0)
    world.manager.silent = True
    world.clock.time += LEASE_S
    world.silent.clear()
    run = world.controller.run(world.controller.evacuations()[0].id)
    assert run.evacuation.state == "MIGRATING"
    assert not run.gate(1).open
    world.manager.silent = False
    world.settle()
    assert {guest for _, guest in world.moving()} == set(GUESTS)
    assert end(world) == ["RETIRED"] * 2


def test_what_still_moves_is_given_up_when_somebody_else_has_the_spare(world):
    order(world)
    ranks_stop(world)
    assert {guest for _, guest in world.moving()} == set(GUESTS)
    world.manager.silent = True
    wait(world, LEASE_S + 1)
    world.manager.others_take_what_is_free()
    world.manager.silent = False
    wait(world, 2.0)
    assert world.moving() == []
    assert [world.where[guest] for guest in GUESTS] == [{"host1": RUNNING}] * 3
    assert end(world) == ["FAILED"] * 2


def test_where_a_guest_may_be_on_a_host_with_guests_of_its_own_its_place_ends_with_the_lease():
    world = ModelWorld(policy=Policy(attempts=2, on_no_spare="pack"))
    world.manager.end_job("job-a")
    world.manager.others_take_what_is_free()
    order(world)
    ranks_stop(world)
    world.silent.add("host1")
    world.end_move(0, "moved")
    wait(world, 0.0)
    wait(world, world.limits.settle_timeout_s + 1)
    ranks_stop(world)
    (evacuation,) = world.controller.evacuations()
    assert evacuation.state == "FAILED"
    (lease,) = [one for one in world.manager.leases.values() if one.evacuation == evacuation.id]
    assert evacuation.spare == lease.host == "host3"  # where b2 runs
    assert "where b1 runs is not clear" in evacuation.error
    assert "could not keep host3 from others: it still has guests of jobs" in evacuation.error
    world.check_the_end()
    world.advance(LEASE_S + 1)
    assert lease.id not in world.manager.leases
    world.kill()


# -- nothing is known yet ----------------------------------------------------------------------------------------


def test_a_controller_started_before_the_resource_manager_goes_on_with_a_move_once_that_is_there(world):
    order(world)
    ranks_stop(world)
    restart(world, after_s=1.0, with_manager=False)
    world.end_move(0, "moved")
    for _ in range(10):
        wait(world, 10.0)
    assert states(world) == ["MIGRATING"] * 2
    assert end(world) == ["RETIRED"] * 2


def test_an_evacuation_that_had_not_been_planned_is_not_given_up_for_want_of_news(world):
    world.faults.arm(5, "kill after")
    order(world)
    assert world.controller is None
    restart(world, after_s=1.0, with_manager=False)
    wait(world, 60.0)
    assert set(states(world)) == {"PREDICTED"}
    assert set(end(world)) == {"RETIRED"}


def test_a_cancellation_is_not_kept_waiting_for_news(world):
    order(world)
    restart(world, after_s=1.0, with_manager=False)
    for evacuation in world.controller.evacuations():
        world.controller.cancel(evacuation.id, "ada")
    world.settle()
    assert not world.around.board.is_open("job-a")
    assert end(world) == ["CANCELLED"] * 2
