"""Whichever call of an evacuation fails, loses its answer or is the controller's last, the evacuation ends well."""

import logging

import pytest
from model_world import AFTER, BEFORE, KILL_AFTER, LEASE_S, ModelWorld

from failavoid.controller.limits import Policy
from failavoid.shared.messages import Alarm, Evidence

MOVES = {  # how the first moves end, and the evacuations after them
    "both move": (("moved", "moved"), ["RETIRED"] * 2),
    "one stays": (("moved", "failed"), ["RETIRED"] * 2),
    "both stay": (("failed", "failed"), ["RETIRED"] * 2),
    "packed onto two hosts": (("moved", "moved"), ["RETIRED"]),
    "nobody reaches them": (("moved", "moved"), ["FAILED"] * 2),
}
LONG_S = 2 * LEASE_S  # nobody renews a lease meanwhile
GUESTS = ("a1", "a2", "a3", "a4", "a5", "b1", "b2")


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Play:
    """The evacuations of host1, which two jobs have guests on, by the name of how the first moves end.

    A controller that is killed is restarted after ``away_s``; then others have taken what was free, if that is long.
    """

    def __init__(self, moves, away_s=1.0):
        self.world, self.away_s, self.heard = ModelWorld(policy=Policy(attempts=3), room=3), away_s, False
        if moves == "packed onto two hosts":
            self.world.manager.others_take_what_is_free()
            self.world.manager.end_job("job-b")
        self.world.blind = moves == "nobody reaches them"
        self.ends = list(MOVES[moves][0])

    def alarm(self):
        """The monitor sends it until there is an answer."""
        evidence = Evidence(0.8, 0.3, 0.01, 9.0, 5.0)
        with self.world.lives():
            self.world.controller.take_alarm(
                Alarm("alarm-1", self.world.clock.time, "host1", "job-a", "robust", "unavailable", 0.8, evidence)
            )
            self.heard = True

    def restart(self):
        self.world.advance(self.away_s)
        if self.away_s > LEASE_S:
            self.world.manager.others_take_what_is_free()
        self.world.begin()

    def to_the_end(self):
        world = self.world
        for _ in range(20):
            if world.controller is None:
                self.restart()
            if not self.heard:
                self.alarm()
            world.settle()
            world.agents_speak(GUESTS)
            world.settle()
            while world.moving():
                world.end_move(0, self.ends.pop(0) if self.ends else "moved")
            world.settle()
            world.check_that_guests_run_once()
            if world.controller is not None:
                world.advance()
        world.heal_and_finish()
        world.check_the_end()
        world.evacuations = world.controller.evacuations()
        world.kill()  # its threads
        return world


@pytest.mark.parametrize("moves", MOVES)
def test_without_a_fault_each_ends_as_its_moves_did(moves):
    world = Play(moves).to_the_end()
    assert [one.state for one in world.evacuations] == MOVES[moves][1]
    assert not any("host1" in world.where[name] for name, guest in world.manager.guests.items() if guest.job)


@pytest.mark.parametrize("moves", MOVES)
@pytest.mark.parametrize(
    ("kind", "away_s"),
    [(BEFORE, 0.0), (AFTER, 0.0), (KILL_AFTER, 1.0), (KILL_AFTER, LONG_S)],
    ids=["fails", "loses its answer", "is the last", "is the last for long"],
)
def test_whichever_call_goes_wrong_nobody_is_harmed_and_what_is_short_changes_nothing(moves, kind, away_s):
    calls = Play(moves).to_the_end().faults.count
    for number in range(calls):
        play = Play(moves, away_s)
        play.world.faults.arm(number, kind)
        try:
            world = play.to_the_end()
            if away_s < LEASE_S:
                assert [one.state for one in world.evacuations] == MOVES[moves][1]
        except AssertionError as error:
            raise AssertionError(f"call {number} of {calls}: {error}") from error
