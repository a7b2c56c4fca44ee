"""Whatever fails, and whenever the controller dies, every evacuation comes to an end that harms nobody.

Hypothesis chooses what happens: the same sequences in each `make test`, thousands of new ones in `make search`.
"""

import logging

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model_world import KINDS, ModelWorld
from sequences import tried

from failavoid.controller.controller import RequestError
from failavoid.controller.limits import Policy
from failavoid.shared.messages import Alarm, Evidence

GUESTS = ("a1", "a2", "a3", "a4", "a5", "b1", "b2")
IN_USE, ANY_HOST = ("host1", "host2", "host3"), ("host1", "host2", "host3", "host4", "host5", "host6")


class Evacuations(RuleBasedStateMachine):
    """Rules are what happens to a controller; after each, all that can go on has gone on."""

    @initialize(
        mode=st.sampled_from(["act", "act", "recommend"]),
        pack=st.booleans(),
        on_deadline=st.sampled_from(["migrate", "cancel"]),
        room=st.sampled_from([3, 4]),
    )
    def make(self, mode, pack, on_deadline, room):
        logging.disable(logging.CRITICAL)  # thousands of evacuations that fail by intent
        policy = Policy(attempts=2, on_no_spare="pack" if pack else "leave")
        self.world = ModelWorld(mode, policy, on_deadline, room)

    def asked(self, act, *words):
        """Ask the controller for something; returns whether it was granted."""
        world = self.world
        granted = False
        if world.controller is not None:
            with world.lives():
                try:
                    act(*words)
                    granted = True
                except RequestError:
                    pass
        world.settle()
        return granted

    def evacuation(self, number):
        found = self.world.controller.evacuations() if self.world.controller else []
        return found[number % len(found)] if found else None

    @rule(
        host=st.sampled_from(ANY_HOST), job=st.sampled_from(["job-a", "job-b"]), lead=st.sampled_from([None, 5.0, 40.0])
    )
    def alarm(self, host, job, lead):
        self._alarm(host, job, lead, "")

    @rule(rack=st.sampled_from(["rack=r1", "rack=r2"]))
    def alarm_of_a_rack(self, rack):
        self._alarm("", "", None, rack)

    def _alarm(self, host, job, lead, domain):
        world = self.world
        world.alarms += 1
        evidence = Evidence(0.8, 0.3, 0.01, 9.0, 5.0, predicted_failure_s=lead)
        alarm = Alarm(
            f"alarm-{world.alarms}", world.clock.time, host, job, "robust", "unavailable", 0.8, evidence, domain
        )
        if world.controller is not None:
            self.asked(world.controller.take_alarm, alarm)

    @rule(host=st.sampled_from(IN_USE))
    def order(self, host):
        if self.world.controller is not None:
            self.asked(self.world.controller.order, host, "maintenance", "ada")

    @rule(number=st.integers(0, 5))
    def cancel(self, number):
        evacuation = self.evacuation(number)
        if evacuation and self.asked(self.world.controller.cancel, evacuation.id, "ada"):
            self.world.granted.add(evacuation.id)

    @rule(number=st.integers(1, 5))
    def withdraw(self, number):
        world = self.world
        if world.controller is None:
            return
        concerned = [e for e in world.controller.evacuations() if e.alarm and e.alarm.id == f"alarm-{number}"]
        if self.asked(world.controller.withdraw, f"alarm-{number}", "it is well again"):
            world.granted |= {evacuation.id for evacuation in concerned if evacuation.cancel}

    @rule(number=st.integers(0, 5))
    def confirm(self, number):
        evacuation = self.evacuation(number)
        if evacuation:
            self.asked(self.world.controller.confirm, evacuation.id, "ada")

    @rule(stop=st.booleans())
    def switch(self, stop):
        if self.world.controller is not None:
            act = self.world.controller.stop_evacuations if stop else self.world.controller.allow_evacuations
            self.asked(act, "ada", "a test")

    @rule(chosen=st.sets(st.sampled_from(GUESTS), min_size=1))
    def agents_speak(self, chosen):
        self.world.agents_speak(sorted(chosen))
        self.world.settle()

    @rule()
    def all_agents_speak(self):
        self.world.agents_speak(GUESTS)
        self.world.settle()

    @rule(number=st.integers(0, 3), how=st.sampled_from(["moved", "moved", "failed"]))
    def a_move_ends(self, number, how):
        self.world.end_move(number, how)
        self.world.settle()

    @rule()
    def time_passes(self):
        self.world.advance()
        self.world.settle()

    @rule(seconds=st.sampled_from([1.0, 30.0, 400.0]))
    def much_time_passes(self, seconds):
        self.world.advance(seconds)
        self.world.settle()

    @rule(host=st.sampled_from(ANY_HOST))
    def a_host_falls_silent(self, host):
        self.world.silent.add(host)
        self.world.settle()

    @precondition(lambda self: self.world.silent)
    @rule()
    def hosts_answer_again(self):
        self.world.silent.clear()
        self.world.settle()

    @rule(host=st.sampled_from(["host4", "host5", "host6"]))
    def a_spare_dies(self, host):
        self.world.host_fails(host)
        self.world.settle()

    @rule(silent=st.booleans())
    def the_resource_manager(self, silent):
        self.world.manager.silent = silent
        self.world.faults.happened = True  # a lease that can't be returned expires
        self.world.settle()

    @rule(job=st.sampled_from(["job-a", "job-b"]))
    def a_job_ends(self, job):
        self.world.manager.end_job(job)
        self.world.settle()

    @rule(after=st.integers(0, 15), kind=st.sampled_from(KINDS))
    def something_is_about_to_go_wrong(self, after, kind):
        self.world.faults.arm(after, kind)

    @rule()
    def the_controller_is_killed(self):
        if self.world.controller is not None:
            self.world.kill()

    @rule()
    def the_controller_is_restarted(self):
        self.world.begin()
        self.world.settle()

    @invariant()
    def guests_run_once(self):
        if hasattr(self, "world"):
            self.world.check_that_guests_run_once()

    def teardown(self):
        logging.disable(logging.NOTSET)
        if not hasattr(self, "world"):
            return
        try:
            self.world.heal_and_finish()
            self.world.check_the_end()
        finally:
            self.world.kill()  # its threads


Evacuations.TestCase.settings = tried(usually=500, steps=25)
test_evacuations = Evacuations.TestCase
