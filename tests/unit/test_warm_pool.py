"""Warm guests: booted before anybody asks, told their user when a job takes them; hosts without guests; silence."""

import contextlib
import threading

import pytest
from resource_manager_site import KEY, OPERATOR, SECRET, USER, Site, bearer

from failavoid.resource_manager.guests import GuestError
from failavoid.resource_manager.settings import WarmPool
from failavoid.shared.tokens import mint


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch, warm_pools=[WarmPool(2)])
    yield site
    site.hold.set()


def fill(site):
    site.manager.warm_pools.once()
    return {name: (guest.host, guest.state, guest.user) for name, guest in site.guests().items()}


def token(site, name):
    return {"Authorization": f"Bearer {mint(SECRET, 'guest', name, site.guests()[name].uuid)}"}


def agent(site, name, trouble=""):
    """Play a warm guest's agent: ask for its user, take it, say so; returns what it was told."""
    told = site.api.get(f"/guests/{name}/assignment?timeout=20", headers=token(site, name)).json()
    site.api.post(f"/guests/{name}/assigned", json={"error": trouble}, headers=token(site, name))
    return told


def test_warm_guests_boot_on_the_hosts_that_jobs_get_first(site):
    assert fill(site) == {"g0001": ("host1", "warm", ""), "g0002": ("host2", "warm", "")}
    identity = site.played("launch.yml")[0]["launch_identities"]["g0001"]
    assert "user" not in identity
    assert "authorized_keys" not in identity
    assert identity["agent"]["resource_manager"] == "https://10.0.0.100:7412"
    assert set(site.pools().values()) == {"free"}
    assert len(fill(site)) == 2


def test_warm_guests_that_a_job_on_their_host_does_not_take_are_removed_without_its_waiting(site):
    site.settings.warm_pools = [WarmPool(2, per_host=2)]
    fill(site)
    taker = threading.Thread(target=agent, args=(site, "g0001"))
    taker.start()
    job = site.ready(hosts=1, guests_per_host=1)
    taker.join()
    assert job.guests == ["g0001"]
    site.until(lambda: set(site.guests()) == {"g0001"}, "an idle guest stays on the job's host")


def test_a_job_takes_warm_guests_without_a_boot(site):
    fill(site)
    heard = {}
    agents = [
        threading.Thread(target=lambda name=name: heard.update({name: agent(site, name)}))
        for name in ("g0001", "g0002")
    ]
    for one in agents:
        one.start()
    job = site.ready(hosts=2, guests_per_host=1)
    for one in agents:
        one.join()
    assert job.guests == ["g0001", "g0002"]
    assert len(site.played("launch.yml")) == 1
    assert {guest.user for guest in site.guests(job.id).values()} == {"ada"}
    assert heard["g0001"] == {
        "job": job.id,
        "user": {"name": "ada", "uid": 1000, "gid": 1000},
        "authorized_keys": [KEY],
        "hosts": {"g0001": "10.0.2.1", "g0002": "10.0.2.2", "head": "10.0.0.100"},
    }
    assert len(job.known_hosts.splitlines()) == 2


def test_a_warm_guest_is_its_users_for_good_and_others_take_its_place(site):
    fill(site)
    thread = threading.Thread(target=agent, args=(site, "g0001"))
    thread.start()
    job = site.ready(hosts=1, guests_per_host=1)
    thread.join()
    site.end(job.id)
    assert fill(site)["g0001"] == ("host1", "ready", "ada")
    assert sum(state == "warm" for _, state, _ in fill(site).values()) == 2
    bob = site.ask(headers=bearer("user", "bob"), user="bob", uid=1001, hosts=1, guests_per_host=1).json()
    assert "g0001" not in bob["guests"]
    again = site.ready(hosts=1, guests_per_host=1)
    assert again.guests == ["g0001"]


def test_a_job_of_guests_that_were_its_users_is_ready_when_it_is_submitted(site):
    site.settings.warm_pools = []
    site.end(site.ready().id)
    assert site.ask().json()["state"] == "ready"


@pytest.mark.parametrize("trouble", ["OSError: no room", None])
def test_a_warm_guest_that_does_not_take_its_user_is_replaced(site, monkeypatch, trouble):
    monkeypatch.setattr("failavoid.resource_manager.jobs.ASSIGN_S", 5.0 if trouble else 0.05)
    fill(site)
    before = site.guests()["g0001"].uuid
    if trouble:
        thread = threading.Thread(target=agent, args=(site, "g0001", trouble))
        thread.start()
    job = site.ready(hosts=1, guests_per_host=1)
    if trouble:
        thread.join()
    (guest,) = site.guests(job.id).values()
    assert guest.uuid != before
    assert before not in site.running["10.0.0.1"]
    assert site.played("launch.yml")[-1]["launch_identities"][guest.name]["user"]["name"] == "ada"


def test_a_guest_asks_for_itself_alone(site):
    fill(site)
    assert site.api.get("/guests/g0002/assignment?timeout=0", headers=token(site, "g0001")).status_code == 403
    forged = {"Authorization": f"Bearer {mint(SECRET, 'guest', 'g0001', 'an-earlier-uuid')}"}
    assert site.api.get("/guests/g0001/assignment?timeout=0", headers=forged).status_code == 403
    assert site.api.get("/guests/g0001/assignment?timeout=0", headers=USER).status_code == 403
    assert site.api.get("/guests/g0001/assignment?timeout=0", headers=token(site, "g0001")).json() == {}


def test_a_users_pool_is_for_that_user(site):
    site.settings.warm_pools = [WarmPool(1, user="bob")]
    assert fill(site) == {"g0001": ("host1", "warm", "bob")}
    assert "g0001" not in site.ready(hosts=1, guests_per_host=1).guests


def test_warm_guests_of_an_older_image_or_that_nobody_wants_any_more_go(site, tmp_path):
    fill(site)
    manifest = tmp_path / "sysimage/current/manifest.json"
    manifest.write_text(manifest.read_text().replace("d1", "d2"))
    assert set(fill(site)) == {"g0003", "g0004"}
    site.settings.warm_pools = []
    assert fill(site) == {}
    assert not any(site.running.values())


def test_warm_guests_that_do_not_boot_leave_nothing_behind(site):
    site.fail["launch.yml"] = "host1: Kernel panic"
    with pytest.raises(Exception, match="Kernel panic"):
        fill(site)
    assert site.guests() == {}


def test_a_spare_has_no_warm_guests(site):
    site.settings.warm_pools = [WarmPool(9)]
    assert {host for host, _, _ in fill(site).values()} == {"host1", "host2", "host3"}


def test_no_warm_guest_boots_where_one_that_was_given_up_may_still_run(site):
    fill(site)
    site.fail["remove-guests.yml"] = "host1 does not answer"
    with contextlib.suppress(GuestError):
        site.manager.guests.remove(["g0001"])
    assert [(host, state) for host, state, _ in fill(site).values()] == [
        ("host1", "lost"),
        ("host2", "warm"),
        ("host3", "warm"),
    ]


def test_a_host_that_does_not_answer_keeps_no_other_from_its_warm_guests(site, tmp_path):
    fill(site)
    manifest = tmp_path / "sysimage/current/manifest.json"
    manifest.write_text(manifest.read_text().replace("d1", "d2"))
    site.dead = {"host1"}
    assert fill(site) == {
        "g0001": ("host1", "lost", ""),
        "g0003": ("host2", "warm", ""),
        "g0004": ("host3", "warm", ""),
    }


def test_guests_that_were_given_up_are_tried_again_until_their_host_is_rid_of_them(site, monkeypatch):
    fill(site)
    site.dead = {"host1"}
    site.manager.guests.remove_as_far_as_possible(["g0001"])
    fill(site)
    tried = len(site.played("remove-guests.yml"))
    fill(site)
    assert len(site.played("remove-guests.yml")) == tried, "whoever gave it up may still be at it"
    monkeypatch.setattr("failavoid.resource_manager.warm_pool.RETRY_S", 0.0)
    assert fill(site)["g0001"] == ("host1", "lost", "")
    site.dead.clear()
    assert "g0001" not in fill(site)
    assert site.running["10.0.0.1"] == {}


@pytest.mark.parametrize("out_of_reach", ["silent", "defunct"])
def test_guests_are_not_removed_from_a_host_that_is_silent_or_out_of_service(site, monkeypatch, out_of_reach):
    monkeypatch.setattr("failavoid.resource_manager.warm_pool.RETRY_S", 0.0)
    fill(site)
    site.dead = {"host1"}
    if out_of_reach == "silent":
        site.silent = {"10.0.0.1"}
        for _ in range(3):
            site.watch.once()
    else:
        site.post("/hosts/host1/retire", headers=OPERATOR)
        site.until(lambda: site.played("retire.yml"), "the host was not marked")
    tried = len(site.played("remove-guests.yml"))
    site.settings.warm_pools = []
    site.settings.idle_guest_s = -1.0
    assert list(fill(site)) == ["g0001"]
    assert all(
        guest["host"] != "host1" for run in site.played("remove-guests.yml")[tried:] for guest in run["remove_guests"]
    )


def test_guests_that_a_kill_cut_short_at_their_boot_are_removed(site):
    site.hold.clear()

    def killed():
        with contextlib.suppress(TypeError):
            fill(site)

    threading.Thread(target=killed).start()
    site.until(lambda: site.guests(), "no guest")
    old = site.manager
    site.start()
    old.store.change = None  # it has no word any more
    site.hold.set()
    site.manager.recover()
    site.until(lambda: not site.guests(), "guests whose boot nobody watched are still there")


def test_guests_that_nobody_has_used_for_long_go(site):
    site.settings.warm_pools = []
    job = site.ready(hosts=1)
    site.end(job.id)
    assert len(fill(site)) == 2
    site.settings.idle_guest_s = -1.0
    assert fill(site) == {}


# -- hosts without guests ----------------------------------------------------------------------------------------


def test_a_job_may_have_hosts_without_guests(site):
    fill(site)
    job = site.ready(hosts=3, resource="hosts")
    assert (job.resource, job.hosts, job.guests) == ("hosts", ["host1", "host3", "host4"], [])
    assert site.pools() == {"host1": "allocated", "host2": "free", "host3": "allocated", "host4": "allocated"}
    site.until(lambda: not site.running["10.0.0.1"], "a warm guest holds memory of the job's host")
    refused = site.post("/hosts/host1/retire", headers=OPERATOR)
    assert refused.status_code == 409
    assert f"{job.id} runs on host1 without guests" in refused.json()["detail"]
    site.end(job.id)
    assert site.host("host1").pool == "free"


def test_the_site_gives_short_jobs_hosts_without_guests(site):
    site.settings.on_hosts_below_s = 600.0
    assert site.ready(hosts=1, expected_s=300.0).resource == "hosts"
    assert site.ready(hosts=1, expected_s=300.0, resource="guests").resource == "guests"
    assert site.ask(hosts=1, expected_s=3600.0).json()["resource"] == "guests"


@pytest.mark.parametrize("wrong", [{"resource": "clouds"}, {"expected_s": 0.0}, {"guest_vcpus": 0}])
def test_a_request_that_makes_no_sense_is_refused(site, wrong):
    assert site.ask(**wrong).status_code == 422


# -- silence -----------------------------------------------------------------------------------------------------


def test_a_job_whose_client_is_heard_goes_on_and_a_silent_one_ends(site, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("failavoid.resource_manager.heartbeats.time.monotonic", lambda: clock[0])
    heard, silent = site.ready(hosts=1, resource="hosts"), site.ready(hosts=1)
    clock[0] += 40
    alive = site.post(f"/jobs/{heard.id}/alive", {"state": "running"}, USER)
    assert alive.json()["state"] == "ready"
    clock[0] += 40
    site.manager.end_silent_jobs()
    assert site.job(heard.id).state == "ready"
    assert site.job(silent.id).state == "failed"
    assert "was not heard for 60 s" in site.job(silent.id).message
    site.until(lambda: not site.guests(), "where its ranks may still run others could")


def test_of_a_silent_jobs_guests_those_alone_stay_whose_host_does_not_answer(site):
    job = site.ready(hosts=2, guests_per_host=1)
    site.manager.heartbeats._heard[job.id] = -1e9
    site.dead = {"host1"}
    site.manager.end_silent_jobs()
    site.until(lambda: len(site.guests()) == 1, "where its ranks may still run others could")
    assert [(guest.host, guest.state) for guest in site.guests().values()] == [("host1", "lost")]


def test_a_restart_hears_all_clients_anew(site):
    job = site.ready(hosts=1)
    site.manager.heartbeats._heard[job.id] = -1e9
    site.start()
    site.manager.end_silent_jobs()
    assert site.job(job.id).state == "ready"


def test_a_client_hears_of_its_jobs_end_at_once(site):
    job = site.ready(hosts=1)
    threading.Timer(0.1, site.end, (job.id, 3, "by hand")).start()
    told = site.post(f"/jobs/{job.id}/alive", {"state": "ready", "timeout": 20}, USER).json()
    assert (told["state"], told["message"]) == ("failed", "by hand")


@pytest.mark.parametrize("timeout", ["long", True, [1]])
def test_a_poll_has_a_time_that_is_a_number(site, timeout):
    job = site.ready(hosts=1)
    assert site.post(f"/jobs/{job.id}/alive", {"state": "ready", "timeout": timeout}, USER).status_code == 422
    assert site.post(f"/jobs/{job.id}/alive", {}, bearer("user", "eve")).status_code == 403
