"""Estimates of moves, and what they lead to."""

import pytest

from failavoid.controller.libvirt_view import GuestFacts
from failavoid.controller.limits import Policy
from failavoid.controller.planning import Planner, estimate
from failavoid.shared.domain_xml import passed_through
from failavoid.shared.messages import Evacuation, Guest, Job, JobRequest, Migration

MIB = 2.0**20
GUESTS = [Guest(f"g{n}", f"u{n}", "host1", f"10.0.0.{n}", 1024 * 1024, [0], 0, "u", "ready", "job-1") for n in (1, 2)]


def plan(lead_s=None, facts=None, past=(), job_policy="migrate", **policy):
    planner = Planner(lambda _address: facts, Policy(**{"bandwidth_bps": 1024 * MIB, "overhead_s": 2.0, **policy}))
    job = Job("job-1", JobRequest("u", 1, 1, "k", 1, policy=job_policy), "running")
    return planner.plan("host1", "10.0.0.9", job, GUESTS, lead_s, list(past))


def test_guests_share_the_sources_link_so_their_times_add_up():
    made = plan(facts={})
    assert [guest.seconds for guest in made.guests] == [1.0, 1.0]
    assert made.needed_s == 4.0
    assert made.decision == "migrate"


def test_a_guest_that_writes_to_its_memory_takes_longer_and_still_ends():
    assert estimate(GUESTS[0], GuestFacts([], 512 * MIB), 1024 * MIB).seconds == 2.0
    assert estimate(GUESTS[0], GuestFacts([], 4096 * MIB), 1024 * MIB).seconds == 10.0


def test_bandwidth_is_what_earlier_evacuations_reached():
    def moved(*seconds):
        moves = [Migration("g", "a", "b", [0], 0, "moved", s, bytes=int(512 * MIB)) for s in seconds]
        return Evacuation("e", "a", "j", "RETIRED", migrations=moves)

    unmoved = Evacuation("e", "a", "j", "FAILED", migrations=[Migration("g", "a", "b", [0], 0, "failed", 9.0)])
    made = plan(facts={}, past=[moved(1.0, 2.0), unmoved, moved(4.0), moved(4.0)])
    assert made.bandwidth_bps == 128 * MIB  # median of 512, 128 and 128 MiB/s
    assert "measured in 3 evacuations" in " ".join(made.reasons)


@pytest.mark.parametrize(
    ("lead_s", "checkpoint_s", "decision"),
    [
        (None, 0.0, "migrate"),
        (4.0, 0.0, "migrate"),
        (3.9, 0.0, "nothing helps"),
        (3.9, 3.0, "checkpoint"),
        (2.0, 3.0, "nothing helps"),
    ],
)
def test_the_time_that_is_left_decides(lead_s, checkpoint_s, decision):
    assert plan(lead_s, {}, checkpoint_s=checkpoint_s).decision == decision


@pytest.mark.parametrize(("job_policy", "decision"), [("checkpoint", "checkpoint"), ("off", "off")])
def test_the_jobs_policy_comes_first(job_policy, decision):
    made = plan(job_policy=job_policy)
    assert made.decision == decision
    assert [guest.guest for guest in made.guests] == ["g1", "g2"]


def test_passed_through_devices_are_refused_or_to_be_unplugged():
    facts = {"g2": GuestFacts(["pci 0000:3b:02.1"])}
    assert plan(facts=facts).decision == "checkpoint"
    unplugged = plan(facts=facts, passed_through="unplug")
    assert unplugged.decision == "migrate"
    assert "to be unplugged before the move: g2 has pci 0000:3b:02.1" in unplugged.reasons


def test_that_the_host_cannot_be_asked_is_said():
    assert "libvirt on host1 does not answer" in " ".join(plan().reasons)


def test_passed_through_devices_are_found_in_a_guests_xml():
    xml = """<domain><devices>
      <hostdev mode='subsystem' type='pci'>
        <source><address domain='0x0000' bus='0x3b' slot='0x02' function='0x1'/></source></hostdev>
      <hostdev mode='subsystem' type='mdev'><source><address uuid='c2177883'/></source></hostdev>
      <interface type='hostdev'>
        <source><address type='pci' domain='0x0000' bus='0x5e' slot='0x00' function='0x2'/></source></interface>
      <interface type='bridge'><source bridge='br0'/></interface>
    </devices></domain>"""
    assert passed_through(xml) == ["pci 0000:3b:02.1", "mdev c2177883", "pci 0000:5e:00.2"]
