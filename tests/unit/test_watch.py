"""What libvirt says otherwise than the resource manager is reported, and nothing is put right behind anybody's back."""

import pytest
from resource_manager_site import OPERATOR, Site


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    yield site
    site.hold.set()


def words(site):
    return [difference.words for difference in site.picture().differences]


def look(site, times=3):
    for _ in range(times):
        site.watch.once()


def test_a_stranger_on_a_host_is_reported_and_keeps_it_from_new_work_until_it_is_gone(site):
    site.running["10.0.0.1"]["u-9"] = {"name": "win95"}
    look(site, 2)
    assert words(site) == []  # it may be on its way out
    look(site, 1)
    assert words(site) == ["host1 runs win95, which the resource manager does not know"]
    assert (site.host("host1").pool, site.host("host1").reason) == ("suspect", words(site)[0])
    assert [(mark.who, mark.by_program) for mark in site.host("host1").marks] == [("resource-manager", True)]
    site.running["10.0.0.1"].clear()
    look(site, 1)
    assert (words(site), site.host("host1").pool) == ([], "free")


def test_a_persons_mark_stays_when_the_programs_goes(site):
    site.post("/hosts/host1/drain", {"reason": "new fan"}, OPERATOR)
    site.silent.add("10.0.0.1")
    look(site)
    assert site.host("host1").reason == (
        "new fan; libvirt on host1 does not answer: whether its guests live is not known"
    )
    site.silent.clear()
    look(site)
    assert site.host("host1").reason == "new fan"


def test_when_most_hosts_fall_silent_the_head_is_cut_off_and_no_host_is_marked(site):
    site.ready(hosts=2)
    site.silent = {f"10.0.0.{n}" for n in (1, 2, 3)}
    for everywhere in (False, False, False, True):
        site.watch.once(everywhere)
    (said,) = words(site)
    assert "the head seems to be cut off" in said
    assert site.pools() == {"host1": "allocated", "host2": "allocated", "host3": "free", "host4": "free"}
    assert not any(host.marks for host in site.picture().hosts)
    site.silent.clear()
    look(site, 1)
    assert words(site) == []


def test_a_head_that_is_cut_off_still_sees_what_the_hosts_say_that_answer(site):
    site.silent = {f"10.0.0.{n}" for n in (1, 2, 3)}
    site.running["10.0.0.4"]["u-9"] = {"name": "win95"}
    look(site)
    assert len(words(site)) == 2
    assert site.host("host4").pool == "suspect"


def test_hosts_of_a_job_that_die_while_the_others_answer_are_marked(site):
    site.ready(hosts=2)
    site.silent = {"10.0.0.1", "10.0.0.2"}
    for _ in range(3):
        site.watch.once(everywhere=False)
    assert {host.name for host in site.picture().hosts if host.marks} == {"host1", "host2"}


def test_a_host_that_was_marked_before_the_head_was_cut_off_stays_marked(site):
    site.silent = {"10.0.0.1"}
    look(site)
    site.silent = {f"10.0.0.{n}" for n in range(1, 5)}
    look(site)
    assert {host.name for host in site.picture().hosts if host.marks} == {"host1"}


def test_a_guest_that_was_moved_by_hand_is_not_lost_and_is_reported_where_it_is(site):
    job = site.ready()
    (name, guest), *_ = site.guests(job.id).items()
    site.running["10.0.0.4"][guest.uuid] = site.running["10.0.0.1"].pop(guest.uuid)
    look(site)
    assert site.job(job.id).state == "ready"
    assert words(site) == [f"guest {name} runs on host4, but should be on host1"]
    assert site.host("host4").pool == "suspect"


def test_a_guest_that_was_given_up_and_still_runs_is_reported(site):
    site.end(site.ready(hosts=1, guests_per_host=1).id)
    site.fail["remove-guests.yml"] = "host1 is silent"
    site.api.delete("/guests/g0001", headers=OPERATOR)
    look(site)
    assert words(site) == ["guest g0001 still runs on host1, but was given up"]
    assert site.host("host1").pool == "free"


def test_differences_are_kept_through_a_restart_and_with_their_hosts_alone(site):
    site.running["10.0.0.4"]["u-9"] = {"name": "win95"}
    look(site)
    site.start()
    assert len(words(site)) == 1
    site.settings.hosts = site.settings.hosts[:3]
    site.start()
    assert words(site) == []


def test_idle_hosts_are_not_looked_at_every_time(site):
    asked = []
    site.watch._look = lambda address: asked.append(address) or site.look(address)
    site.ready(hosts=1)
    site.watch.once(everywhere=False)
    assert asked == ["10.0.0.1"]
