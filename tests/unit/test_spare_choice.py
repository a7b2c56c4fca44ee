"""Which host an evacuation gets: never one that fails with the first, shared or packed only where nothing is free."""

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
