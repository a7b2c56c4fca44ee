"""Which host an evacuation gets: never one that fails with the first, shared or packed only where nothing is free."""

import re

import pytest
from resource_manager_site import SERVICE, Site

from failavoid.resource_manager.settings import HostSettings
from failavoid.shared.names import InvalidNameError


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    for number, host in enumerate(site.settings.hosts):
        host.domains = {"rack": f"r{number % 2}", "psu": f"p{number}"}
    site.start()
    yield site
    site.hold.set()


def lease(site, evacuation="e-1", **wanted):
    return site.post("/leases", {"evacuation": evacuation, **wanted})


def give_back(site, held):
    return site.api.delete(f"/leases/{held['id']}", headers=SERVICE)


def test_a_hosts_failure_domains_are_in_the_membership(site):
    assert site.host("host2").domains == {"rack": "r1", "psu": "p1"}


def test_a_failure_domain_is_a_kind_and_a_name(site):
    with pytest.raises(InvalidNameError, match="write it as KIND=NAME"):
        HostSettings("host1", "10.0.0.1", 1, {}, domains={"rack": "Row 1"})


def test_a_spare_is_never_one_to_be_avoided(site):
    assert lease(site, avoid_hosts=["host1"], avoid_domains=["rack=r1"]).json()["host"] == "host3"
    refused = lease(site, "e-2", avoid_hosts=["host1"], avoid_domains=["rack=r1"])
    assert refused.status_code == 409
    assert "host2 free (to be avoided)" in refused.json()["detail"]


def test_who_avoids_its_own_spare_gets_another_and_both_can_be_given_back(site):
    first = lease(site).json()
    second = lease(site, avoid_hosts=[first["host"]]).json()
    assert first["host"] != second["host"]
    assert lease(site, avoid_hosts=[first["host"]]).json()["id"] == second["id"]
    for held in (first, second):
        assert give_back(site, held).status_code == 200
    assert set(site.pools().values()) == {"free"}


def test_one_host_alone_may_be_asked_for(site):
    assert lease(site, host="host4").json()["host"] == "host4"
    assert lease(site, "e-2", host="host4").status_code == 409


def leave_nothing_free(site):
    for number in range(4):
        lease(site, f"x-{number}")


def test_a_spare_is_shared_with_another_evacuation_of_the_host_when_none_is_free(site):
    leave_nothing_free(site)
    assert lease(site, "e-1").status_code == 409
    shared = lease(site, "e-1", beside=["x-2"]).json()
    assert shared["host"] == "host3"
    give_back(site, shared)
    assert site.host("host3").reason == "leased to x-2"


def test_a_spare_has_the_devices_and_hugepages_of_the_guests_that_come(site):
    with site.store.change() as state:
        for name in ("host1", "host4"):
            state.hosts[name].devices = {"ib-vf": ["0000:3b:00.1", "0000:3b:00.2"]}
        state.hosts["host4"].hugepages = {"0": {"2048": 256}}
    job = site.ready(hosts=1, guest_devices=["ib-vf"])
    coming = [guest.name for guest in site.guests(job.id).values()]
    assert {guest.host for guest in site.guests(job.id).values()} == {"host1"}
    held = lease(site, guests=coming, avoid_hosts=["host1"]).json()
    assert held["host"] == "host4"
    placed = site.post("/placements", {"guests": coming, "host": "host4"}).json()
    assert [one["devices"][0]["address"] for one in placed] == ["0000:3b:00.1", "0000:3b:00.2"]
    assert site.post(f"/leases/{held['id']}/commit", {"placements": placed}).status_code == 200
    assert [g.devices[0].address for g in site.guests(job.id).values()] == ["0000:3b:00.1", "0000:3b:00.2"]
    refused = lease(site, "e-2", guests=coming, avoid_hosts=["host4", "host1"])
    assert refused.status_code == 409
    assert "would need 2 ib-vf and it has 0" in refused.json()["detail"]


def test_guests_are_packed_onto_a_host_of_their_job_only_if_it_has_room(site):
    job = site.ready()
    leave_nothing_free(site)
    mine = [guest.name for guest in site.store.membership().guests if guest.host == "host1"]
    assert lease(site, guests=mine, avoid_hosts=["host1"]).status_code == 409
    packed = lease(site, guests=mine, avoid_hosts=["host1"], pack=True).json()
    assert packed["host"] == "host2"
    assert site.host("host2").reason == job.id
    give_back(site, packed)
    with site.store.change() as state:
        state.hosts["host2"].memory_kb = 1024 * 1024
    assert lease(site, guests=mine, avoid_hosts=["host1"], pack=True).status_code == 409


@pytest.fixture
def tight(site):
    """A job with two guests on each of hosts 1 to 3, where hosts 2 and 3 have room for one more; nothing is free."""
    site.ready(hosts=3)
    leave_nothing_free(site)
    with site.store.change() as state:
        for name in ("host2", "host3"):
            state.hosts[name].memory_kb = site.settings.reserve_kb + 3 * 262144
    return site


def guests_on(site, host):
    return sorted(guest.name for guest in site.guests().values() if guest.host == host and guest.job)


def test_guests_are_spread_over_hosts_of_their_job_where_no_single_one_has_room_for_all(tight):
    mine = guests_on(tight, "host1")
    packed = lease(tight, guests=mine, avoid_hosts=["host1"], pack=True).json()
    assert packed["packed_onto"] == ["host2", "host3"]
    placed = tight.post("/placements", {"guests": mine, "host": packed["host"]}).json()
    assert sorted(one["host"] for one in placed) == ["host2", "host3"]
    assert tight.post("/placements", {"guests": mine, "host": packed["host"]}).json() == placed
    assert tight.post(f"/leases/{packed['id']}/commit", {"placements": placed}).status_code == 200
    assert [len(guests_on(tight, host)) for host in ("host1", "host2", "host3")] == [0, 3, 3]
    assert tight.pools()["host1"] == "defunct"
    with tight.store.view() as state:
        assert state.reserved == {}


def test_places_on_all_hosts_are_given_up_with_their_lease(tight):
    mine = guests_on(tight, "host1")
    give_back(tight, lease(tight, guests=mine, avoid_hosts=["host1"], pack=True).json())
    with tight.store.view() as state:
        assert state.reserved == {}


def test_the_same_hosts_are_leased_again_for_guests_that_are_on_their_way_to_them(tight):
    mine = guests_on(tight, "host1")
    wanted = {"guests": mine, "avoid_hosts": ["host1"], "pack": True}
    first = lease(tight, **wanted).json()
    give_back(tight, first)
    again = {"guests": mine, "pack": True, "host": first["host"], "packed_onto": first["packed_onto"]}
    second = lease(tight, **again).json()
    assert (second["host"], second["packed_onto"]) == (first["host"], first["packed_onto"])
    give_back(tight, second)
    tight.post("/hosts/host3/drain", {"reason": "new fan"})
    assert lease(tight, **again).status_code == 409


def test_guests_are_not_spread_onto_hosts_that_are_to_be_avoided_or_marked(tight):
    wanted = {"guests": guests_on(tight, "host1"), "pack": True}
    assert lease(tight, avoid_hosts=["host1", "host3"], **wanted).status_code == 409
    tight.post("/hosts/host3/drain", {"reason": "new fan"})
    assert lease(tight, avoid_hosts=["host1"], **wanted).status_code == 409


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"on_devices": "pray"}, "use refuse or unplug"),
        ({"guest_hugepage_kb": -1}, "it must be 0 or more"),
        ({"guest_devices": ["{{ x }}"]}, "device kind name .* is not allowed"),
    ],
)
def test_a_job_that_asks_for_pages_or_devices_in_a_way_that_makes_no_sense_is_refused(site, asked, words):
    refused = site.ask(**asked)
    assert refused.status_code == 422
    assert re.search(words, refused.json()["detail"])


def test_the_sites_hugepages_are_for_jobs_that_do_not_say(site):
    with site.store.change() as state:
        for host in state.hosts.values():
            host.hugepages = {"0": {"2048": 512}}
    site.settings.guest_hugepage_kb = 2048
    assert {guest.hugepage_kb for guest in site.guests(site.ready(hosts=1).id).values()} == {2048}
    assert {guest.hugepage_kb for guest in site.guests(site.ready(hosts=1, guest_hugepage_kb=0).id).values()} == {0}
    launched = site.played("launch.yml")[0]["launch_guests"][0]
    assert (launched["hugepage_kb"], launched["devices"]) == (2048, [])
