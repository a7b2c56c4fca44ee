"""Estimates of moves, and what they lead to."""

from dataclasses import replace

import pytest

from failavoid.controller.libvirt_view import GuestFacts
from failavoid.controller.limits import Policy
from failavoid.controller.planning import Planner, estimate
from failavoid.shared.domain_xml import passed_through
from failavoid.shared.messages import Device, Evacuation, Guest, Host, Job, JobRequest, Migration

MIB = 2.0**20
GUESTS = [Guest(f"g{n}", f"u{n}", "host1", f"10.0.0.{n}", 1024 * 1024, [0], 0, "u", "ready", "job-1") for n in (1, 2)]


VF = Device("ib-vf", "0000:3b:02.1")
WITH_VF = [GUESTS[0], replace(GUESTS[1], devices=[VF])]
OFFERS = Host("host2", "10.0.0.8", devices={"ib-vf": ["0000:5e:00.1"]})


def plan(lead_s=None, facts=None, past=(), job_policy="migrate", guests=GUESTS, others=(), on_devices="", **policy):
    """The plan for host1; ``on_devices`` is the job's, ``policy`` the site's, whose own is ``site_on_devices``."""
    site = {"bandwidth_bps": 1024 * MIB, "overhead_s": 2.0, "on_devices": policy.pop("site_on_devices", "refuse")}
    planner = Planner(lambda _address: facts, Policy(**site, **policy))
    job = Job("job-1", JobRequest("u", 1, 1, "k", 1, policy=job_policy, on_devices=on_devices), "running")
    return planner.plan(Host("host1", "10.0.0.9"), job, guests, lead_s, list(past), list(others))


def test_guests_share_the_sources_link_so_their_times_add_up():
    made = plan(facts={})
    assert [guest.seconds for guest in made.guests] == [1.0, 1.0]
    assert made.needed_s == 4.0
    assert made.decision == "migrate"


def test_a_guest_that_writes_to_its_memory_takes_longer_and_still_ends():
    assert estimate(GUESTS[0], GuestFacts([], 512 * MIB), 1024 * MIB).seconds == 2.0
    assert estimate(GUESTS[0], GuestFacts([], 4096 * MIB), 1024 * MIB).seconds == 10.0


def test_what_a_guest_wrote_while_it_moved_before_counts_where_libvirt_has_measured_nothing():
    def before(dirty_bps):
        moves = [Migration(GUESTS[0].name, "a", "b", [0], 0, "moved", dirty_bps=dirty_bps)]
        return Evacuation("e", "a", "j", "RETIRED", migrations=moves)

    past = [before(int(256 * MIB)), before(int(512 * MIB)), before(None)]
    assert [guest.dirty_bps for guest in plan(facts={}, past=past).guests] == [512 * MIB, None]
    measured = {GUESTS[0].name: GuestFacts([], 128 * MIB)}
    assert plan(facts=measured, past=past).guests[0].dirty_bps == 128 * MIB


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


def test_guests_with_devices_are_not_moved_unless_site_or_job_have_them_unplugged():
    refused = plan(facts={}, guests=WITH_VF, others=[OFFERS])
    assert refused.decision == "checkpoint"
    assert "g2 has pci 0000:3b:02.1 (policy on_devices: refuse)" in refused.reasons[0]
    assert [guest.devices for guest in refused.guests] == [[], ["pci 0000:3b:02.1"]]
    words = (("refuse", "unplug", "migrate"), ("unplug", "", "migrate"), ("unplug", "refuse", "checkpoint"))
    for site, job, decision in words:
        made = plan(facts={}, guests=WITH_VF, others=[OFFERS], site_on_devices=site, on_devices=job)
        assert made.decision == decision


def test_a_plan_to_unplug_names_the_devices_and_who_offers_the_same():
    said = " ".join(plan(facts={}, guests=WITH_VF, others=[OFFERS], on_devices="unplug").reasons)
    assert "to be unplugged before the move: g2 has pci 0000:3b:02.1; host2 can give the same" in said


def test_where_no_host_offers_the_devices_the_guests_do_not_move():
    made = plan(facts={}, guests=WITH_VF, others=[replace(OFFERS, devices={})], on_devices="unplug")
    assert made.decision == "checkpoint"
    assert "no other host offers 1 ib-vf" in made.reasons[0]


def test_a_device_that_came_to_a_guest_in_another_way_is_not_unplugged():
    facts = {"g2": GuestFacts(["pci 0000:3b:02.1", "usb 1 4"])}
    made = plan(facts=facts, guests=WITH_VF, others=[OFFERS], on_devices="unplug")
    assert made.decision == "checkpoint"
    assert "usb 1 4 not by its launch" in made.reasons[0]


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
    assert list(passed_through(xml)) == ["pci 0000:3b:02.1", "mdev c2177883", "pci 0000:5e:00.2"]
