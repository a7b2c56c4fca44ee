"""The resource manager: pools, jobs and their guests, leases; what it keeps through a crash. Playbooks are played."""

import asyncio
import json
import os
import pwd
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from resource_manager_site import KEY, OPERATOR, PATIENCE_S, SECRET, SERVICE, USER, Site, bearer

from failavoid.playbook_runner import PlaybookResult
from failavoid.resource_manager import background, guests, leases
from failavoid.resource_manager.requests import account_on_head
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.store import Store
from failavoid.resource_manager.watch import Watch
from failavoid.services import SettingsError, load_settings
from failavoid.shared.messages import Guest, Host, Job, JobRequest, from_dict
from failavoid.shared.tokens import verify


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    yield site
    site.hold.set()


# -- jobs --------------------------------------------------------------------------------------------------------


def test_a_job_gets_its_guests_on_hosts_of_its_own(site):
    job = site.ready()
    guests = site.guests(job.id)
    assert list(guests) == job.guests
    assert sorted(guest.host for guest in guests.values()) == ["host1", "host1", "host2", "host2"]
    assert {guest.state for guest in guests.values()} == {"ready"}
    assert len({guest.address for guest in guests.values()}) == 4
    assert site.pools() == {"host1": "allocated", "host2": "allocated", "host3": "free", "host4": "free"}
    assert {host.reason for host in site.picture().hosts if host.pool == "allocated"} == {job.id}


def test_guests_find_the_services_at_the_ports_where_the_site_has_them(tmp_path, monkeypatch):
    urls = {"monitor": "https://127.0.0.1:8411", "controller": "https://127.0.0.1:8413"}
    site = Site(tmp_path, monkeypatch, **urls)
    site.ready()
    for identity in site.played("launch.yml")[0]["launch_identities"].values():
        agent = identity["agent"]
        assert (agent["monitor"], agent["controller"]) == ("10.0.0.100:8411", "https://10.0.0.100:8413")


def test_guests_of_a_host_are_pinned_to_different_cores(site):
    guests = site.guests(site.ready().id).values()
    assert sorted((guest.host, guest.cores[0]) for guest in guests) == [
        ("host1", 0),
        ("host1", 1),
        ("host2", 0),
        ("host2", 1),
    ]


def test_a_guest_is_told_who_it_is_and_nobody_else_is(site):
    job = site.ready()
    variables = site.played("launch.yml")[0]
    name = job.guests[0]
    identity, spec = variables["launch_identities"][name], variables["launch_guests"][0]
    guest = site.guests()[name]
    token = verify(SECRET, identity["agent"]["token"])
    assert (token.role, token.subject, token.nonce) == ("guest", name, guest.uuid)
    assert (identity["address"], identity["prefix"]) == (guest.address, 16)
    assert identity["user"] == {"name": "ada", "uid": 1000, "gid": 1000}
    assert identity["authorized_keys"] == [KEY]
    assert identity["authority"] == "the site's authority\n"
    assert identity["agent"]["authority"] == "/run/failavoid/authority.pem"
    assert identity["agent"]["controller"] == "https://10.0.0.100:7413"
    assert identity["hosts"] == {
        **{other: site.guests()[other].address for other in job.guests},
        "head": "10.0.0.100",
    }
    assert "PRIVATE KEY" in identity["ssh_host_key"]
    assert "PRIVATE KEY" not in json.dumps(site.api.get("/membership", headers=USER).json())
    assert spec["kernel"] == "/var/lib/failavoid/boot/r1/vmlinuz"
    assert f"ip={guest.address}:::255.255.0.0:{name}:eth0:off" in spec["cmdline"]
    assert "failavoid.image=d1 failavoid.class=guest init=/init quiet" in spec["cmdline"]


def test_known_hosts_holds_the_key_each_guest_was_given(site, tmp_path):
    job = site.ready()
    identities = site.played("launch.yml")[0]["launch_identities"]
    assert len(job.known_hosts.splitlines()) == 4
    for line, name in zip(job.known_hosts.splitlines(), job.guests, strict=True):
        names, public = line.split(" ", 1)
        assert names == f"{site.guests()[name].address},{name}"
        private = tmp_path / name
        private.touch(mode=0o600)
        private.write_text(identities[name]["ssh_host_key"])
        derived = subprocess.run(["ssh-keygen", "-y", "-f", private], capture_output=True, text=True, check=True)
        assert derived.stdout.strip() == public


def test_hosts_are_free_again_when_a_job_has_ended_and_its_guests_stay(site):
    job = site.ready()
    assert site.post(f"/jobs/{job.id}/started", {"command": ["a.out"]}, USER).json()["state"] == "running"
    ended = from_dict(Job, site.end(job.id).json())
    assert (ended.state, ended.exit_status) == ("completed", 0)
    assert set(site.pools().values()) == {"free"}
    assert {guest.job for guest in site.guests().values()} == {None}
    assert sum(map(len, site.running.values())) == 4


def test_the_next_job_of_the_same_user_and_size_starts_in_the_same_guests_without_a_boot(site):
    first = site.ready()
    site.end(first.id)
    second = site.ready()
    assert second.guests == first.guests
    assert second.known_hosts == first.known_hosts
    assert len(site.played("launch.yml")) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"guest_memory_kb": 300000},
        {"public_key": "ssh-ed25519 BBBB other"},
        {"gid": 100},
        {"user": "bob", "uid": 1001, "headers": bearer("user", "bob")},
    ],
)
def test_guests_that_do_not_fit_the_next_job_make_room_for_it(site, other):
    first = site.ready(hosts=3)
    site.end(first.id)
    second = site.ready(hosts=3, **other)
    assert not set(second.guests) & set(first.guests)
    hosts = {guest.host for guest in site.guests(second.id).values()}
    assert {name for name, guest in site.guests().items() if guest.host in hosts} == set(second.guests)
    assert all(len(site.running[site.address(host)]) == 2 for host in hosts)


def test_guests_of_an_older_image_are_not_used_again(site, tmp_path):
    site.end(site.ready(hosts=1).id)
    manifest = tmp_path / "sysimage/current/manifest.json"
    manifest.write_text(manifest.read_text().replace("d1", "d2"))
    job = site.ready(hosts=1)
    assert len(site.played("launch.yml")) == 2
    assert {guest.image for guest in site.guests(job.id).values()} == {"d2"}


def test_a_smaller_job_takes_what_is_there_and_rids_its_host_of_the_rest(site):
    first = site.ready(hosts=1)
    site.end(first.id)
    second = site.ready(hosts=1, guests_per_host=1)
    assert second.guests == first.guests[:1]
    assert sum(map(len, site.running.values())) == 1


def test_a_job_without_room_is_refused_with_figures_and_takes_nothing(site):
    answer = site.ask(hosts=4)
    assert answer.status_code == 409
    assert "4 hosts are asked for, 4 are free and 1 must stay spare" in answer.json()["detail"]
    answer = site.ask(guest_memory_kb=2 * 1024 * 1024)
    assert answer.status_code == 409
    assert "0 of these have that much" in answer.json()["detail"]
    assert set(site.pools().values()) == {"free"}
    assert site.guests() == {}


def test_without_an_image_a_job_is_refused_with_the_way_out(site, tmp_path):
    (tmp_path / "sysimage/current/manifest.json").unlink()
    answer = site.ask()
    assert answer.status_code == 503
    assert "run playbooks/sysimage.yml" in answer.json()["detail"]


def test_guests_that_do_not_come_up_fail_the_job_and_leave_nothing_behind(site):
    site.fail["launch.yml"] = "host1: guest g0001: Kernel panic"
    ident = site.ask().json()["id"]
    site.until(lambda: set(site.pools().values()) == {"free"}, "hosts are not free")
    job = site.job(ident)
    assert (job.state, job.exit_status) == ("failed", 1)
    assert "Kernel panic" in job.message
    assert len(site.played("remove-guests.yml")[0]["remove_guests"]) == 4
    assert site.guests() == {}


def test_a_playbook_that_names_no_guest_has_started_none(site, monkeypatch):
    nothing = PlaybookResult(0, "successful", Path("/x.log"), {}, [])
    monkeypatch.setattr(guests, "run_playbook", lambda *words, **_: nothing)
    ident = site.ask().json()["id"]
    site.until(lambda: site.job(ident).state == "failed", "the job did not fail")
    assert "were not started" in site.job(ident).message


def test_a_guest_that_can_be_neither_started_nor_removed_keeps_its_address_from_others(site):
    site.fail.update({"launch.yml": "host1 is silent", "remove-guests.yml": "host1 is silent"})
    site.ask(hosts=1, guests_per_host=1)
    site.until(lambda: set(site.pools().values()) == {"free"}, "hosts are not free")
    (left,) = site.guests().values()
    assert (left.state, left.job) == ("lost", None)
    site.fail.clear()
    (new,) = site.guests(site.ready(hosts=1, guests_per_host=1).id).values()
    assert new.address != left.address
    assert left.name not in site.guests()


def test_guests_that_are_up_are_kept_when_others_of_the_job_fail(site, monkeypatch):
    def half(playbook, inventory, variables, ident, log_dir, timeout_s, on_event=None):
        if playbook == "launch.yml":
            good = [guest for guest in variables["launch_guests"] if guest["host"] == "host1"]
            site.play(playbook, inventory, {"launch_guests": good}, ident, log_dir, timeout_s, on_event)
            return PlaybookResult(2, "failed", Path("/x.log"), {}, ["host2: no memory"])
        return site.play(playbook, inventory, variables, ident, log_dir, timeout_s, on_event)

    monkeypatch.setattr(guests, "run_playbook", half)
    ident = site.ask().json()["id"]
    site.until(lambda: set(site.pools().values()) == {"free"}, "hosts are not free")
    assert "host2: no memory" in site.job(ident).message
    assert [(guest.host, guest.state) for guest in site.guests().values()] == [("host1", "ready")] * 2


def test_a_job_ended_while_its_guests_boot_frees_its_hosts_when_they_are_up(site):
    site.hold.clear()
    ident = site.ask().json()["id"]
    site.until(lambda: site.played("launch.yml"), "no launch")
    assert site.end(ident, 130, "ended by its user").json()["state"] == "failed"
    assert site.pools()["host1"] == "allocated"
    site.hold.set()
    site.until(lambda: set(site.pools().values()) == {"free"}, "hosts are not free")
    assert site.job(ident).message == "ended by its user"
    assert {guest.state for guest in site.guests().values()} == {"ready"}
    again = site.ready()
    assert len(site.played("launch.yml")) == 1
    assert len(again.guests) == 4


def test_an_ended_job_stays_as_it_ended(site):
    job = site.ready()
    site.end(job.id, 3, "first")
    assert site.end(job.id, 0).json()["message"] == "first"
    late = site.post(f"/jobs/{job.id}/started", {}, USER)
    assert late.status_code == 409
    assert "failed first" in late.json()["detail"]


@pytest.mark.parametrize(
    ("wrong", "status", "word"),
    [
        ({"user": "eve"}, 403, "your token is ada's"),
        ({"uid": 0}, 422, "not run as root"),
        ({"gid": 0}, 422, "not run as root"),
        ({"uid": 1001}, 422, "uid 1001 is not ada's, which is 1000 on the head"),
        ({"gid": 1001}, 422, "gid 1001 is of no group that ada is in on the head"),
        ({"user": "eve", "headers": bearer("user", "eve")}, 422, "user eve has no account on the head"),
        ({"name": "{{ x }}"}, 422, "not allowed"),
        ({"public_key": "ssh-ed25519 AAAA {{lookup('pipe','id')}}"}, 422, "SSH public key"),
        ({"public_key": KEY + "\n" + KEY}, 422, "SSH public key"),
        ({"public_key": "ssh-ed25519 " + "A" * 2**20}, 422, "SSH public key"),
        ({"resource": "hosts", "guest_devices": ["gpu"] * 2**16}, 422, "use 256 or fewer"),
        ({"policy": "maybe"}, 422, "migrate, checkpoint, off"),
        ({"hosts": 0}, 422, "hosts is 0"),
        ({"every": 0}, 422, "every is 0"),
        ({"guest_memory_kb": 1024}, 422, "128 MiB or more"),
        ({"hosts": "many"}, 422, "int is needed"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(site, wrong, status, word):
    answer = site.ask(**wrong)
    assert answer.status_code == status
    assert word in answer.json()["detail"]
    assert site.calls == []


def test_a_job_may_have_any_of_its_users_groups_and_an_operators_any_numbers(site):
    assert site.ask(hosts=1, gid=100).status_code == 200
    assert site.ask(hosts=1, user="guest1", uid=4242, gid=4242, headers=OPERATOR).status_code == 200


def test_an_account_is_what_the_heads_name_service_has():
    who = pwd.getpwuid(os.getuid())
    account = account_on_head(who.pw_name)
    assert account.uid == os.getuid()
    assert who.pw_gid in account.gids
    assert account_on_head("nobody-has-this-name") is None


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (["python3", "app.py"], ["python3", "app.py"]),
        (["python3", "app.py", *["x" * 99] * 1000], ["python3", "app.py", *["x" * 99] * 40, "..."]),
        (["./app", "x" * 2**20, "y"], ["./app", "..."]),
        (["x" * 2**20], ["x" * 4093 + "...", "..."]),
    ],
)
def test_of_a_long_command_the_start_is_kept(site, command, kept):
    job = site.ready()
    assert site.post(f"/jobs/{job.id}/started", {"command": command}, USER).json()["command"] == kept


def test_a_long_message_is_cut(site):
    job = site.ready()
    site.end(job.id, 1, "no room " * 2**17)
    assert site.job(job.id).message == ("no room " * 63)[:497] + "..."


def test_an_exit_status_is_a_number(site):
    job = site.ready()
    for wrong in ("none", 1.5, True, [1]):
        assert site.end(job.id, wrong).status_code == 422
    assert site.job(job.id).state == "ready"


def test_a_user_changes_his_own_jobs_alone_and_an_operator_all(site):
    job = site.ready()
    eve = bearer("user", "eve")
    assert site.end(job.id, headers=eve).status_code == 403
    assert site.post(f"/jobs/{job.id}/started", {}, eve).status_code == 403
    assert site.end(job.id, headers=OPERATOR).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("POST", "/jobs", "guest"),
        ("POST", "/jobs", "host"),
        ("POST", "/jobs/j/ended", "reader"),
        ("POST", "/leases", "user"),
        ("POST", "/leases", "operator"),
        ("DELETE", "/leases/l", "user"),
        ("POST", "/leases/l/commit", "operator"),
        ("POST", "/placements", "user"),
        ("POST", "/hosts/host1/retire", "user"),
        ("POST", "/hosts/host1/restore", "service"),
        ("DELETE", "/guests/g0001", "user"),
    ],
)
def test_a_stranger_to_an_act_is_refused(site, method, path, role):
    assert site.api.request(method, path, json={}, headers=bearer(role)).status_code == 403
    assert site.api.request(method, path, json={}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("GET", "/jobs/none", None, USER),
        ("POST", "/jobs/none/ended", {}, USER),
        ("DELETE", "/leases/none", None, SERVICE),
        ("POST", "/leases/none/commit", {"placements": []}, SERVICE),
        ("POST", "/hosts/none/retire", {}, SERVICE),
        ("POST", "/hosts/none/restore", None, OPERATOR),
        ("DELETE", "/guests/none", None, OPERATOR),
    ],
)
def test_what_is_not_there_is_not_found(site, method, path, body, headers):
    answer = site.api.request(method, path, json=body, headers=headers)
    assert answer.status_code == 404
    assert "there is no" in answer.json()["detail"]


# -- membership --------------------------------------------------------------------------------------------------


def test_a_poll_waits_for_a_change_and_shows_it(site):
    version = site.picture().version
    threading.Timer(0.1, site.ask).start()
    news = site.api.get(f"/membership?after={version}&timeout=20", headers=USER).json()
    assert news["version"] > version
    assert [job["id"] for job in news["jobs"]] == ["job-1"]


def test_a_poll_without_news_ends_after_its_time(site):
    version = site.picture().version
    assert site.api.get(f"/membership?after={version}&timeout=0.05", headers=USER).json()["version"] == version


def test_a_poll_with_a_number_of_another_life_is_answered_at_once(site):
    version = site.picture().version
    assert site.api.get("/membership?after=99999&timeout=60", headers=USER).json()["version"] == version


def test_an_audit_log_longer_than_one_answer_is_read_to_its_end(site):
    with site.store.change() as state:
        for number in range(1500):
            state.note("ada", "noted", number=number)
    read, after = [], 0
    while (said := site.api.get(f"/events?after={after}", headers=OPERATOR).json())["events"]:
        read += [event["number"] for event in said["events"]]
        after = said["last"]
    assert len(read) >= 1500
    assert read == sorted(set(read))
    assert after == read[-1]


def test_the_picture_is_made_once_for_each_version_and_not_by_the_event_loop(site, monkeypatch):
    made, picture = [], site.store.picture

    def counted():
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        made.append(picture()["version"])
        return picture()

    monkeypatch.setattr(site.store, "picture", counted)
    first, same = site.picture(), site.picture()
    site.ready(hosts=1)
    later = site.picture()
    assert first == same
    assert [job.id for job in later.jobs] == ["job-1"]
    assert made == [first.version, later.version]


def test_guests_that_share_a_core_are_a_warning_of_their_host(site):
    site.ready(hosts=1, guests_per_host=4)
    assert site.host("host1").warnings == ["host1: more than one guest is pinned to core 0, 1"]
    assert site.host("host2").warnings == []


# -- leases ------------------------------------------------------------------------------------------------------


def lease(site, evacuation="e-1", host=""):
    answer = site.post("/leases", {"evacuation": evacuation, "host": host})
    assert answer.status_code == 200, answer.text
    return answer.json()


def evacuate(site, job, host="host1"):
    """Move the guests of a job from ``host`` as the controller does; returns the lease."""
    held = lease(site)
    guests = [guest.name for guest in site.guests(job.id).values() if guest.host == host]
    placements = site.post("/placements", {"guests": guests, "host": held["host"]}).json()
    for guest in guests:
        uuid = site.guests()[guest].uuid
        site.running[site.address(held["host"])][uuid] = site.running[site.address(host)].pop(uuid)
    answer = site.post(f"/leases/{held['id']}/commit", {"placements": placements})
    assert answer.status_code == 200, answer.text
    return held


def test_a_spare_is_leased_once_and_to_the_same_evacuation_again(site):
    site.ready()
    first = lease(site)
    assert first["host"] == "host3"
    again = lease(site)
    assert (again["id"], again["host"]) == (first["id"], "host3")
    assert again["expires"] >= first["expires"]
    assert lease(site, "e-2")["host"] == "host4"
    refused = site.post("/leases", {"evacuation": "e-3"})
    assert refused.status_code == 409
    assert "host3 leased, host4 leased" in refused.json()["detail"]


def test_a_leased_spare_is_shown_as_such_and_no_job_gets_it(site):
    assert lease(site)["host"] == "host1"
    assert (site.host("host1").pool, site.host("host1").reason) == ("free", "leased to e-1")
    assert site.ready(hosts=1).guests
    assert site.pools()["host1"] == "free"


def test_a_spare_with_idle_guests_is_cleared_for_the_evacuation(site):
    site.end(site.ready(hosts=3).id)
    site.ready(hosts=2)
    site.post("/hosts/host4/retire", headers=OPERATOR)
    assert lease(site)["host"] == "host3"
    site.until(lambda: not site.running["10.0.0.3"], "idle guests still run on the spare")
    site.until(lambda: all(g.host != "host3" for g in site.guests().values()), "idle guests are still known")


def test_a_lease_that_is_not_renewed_ends(site):
    held = lease(site)
    site.post("/leases", {"evacuation": "e-1"})
    with site.store.change() as state:
        assert leases.expire(state, time.time()) == []
        assert [one.id for one in leases.expire(state, time.time() + 301)] == [held["id"]]
    assert site.host("host1").reason == ""
    assert site.post(f"/leases/{held['id']}/commit", {"placements": []}).status_code == 404


def test_a_lease_that_is_given_back_leaves_no_trace(site):
    job = site.ready()
    held = lease(site)
    site.post("/placements", {"guests": job.guests[:2], "host": held["host"]})
    assert site.api.delete(f"/leases/{held['id']}", headers=SERVICE).status_code == 200
    with site.store.change() as state:
        assert (state.leases, state.reserved) == ({}, {})
    assert (site.host("host3").pool, site.host("host3").reason) == ("free", "")


def test_places_on_the_spare_are_reserved_and_the_same_when_asked_again(site):
    job = site.ready()
    held = lease(site)
    asked = {"guests": job.guests[:2], "host": held["host"]}
    placements = site.post("/placements", asked).json()
    assert sorted(one["cores"][0] for one in placements) == [0, 1]
    assert site.post("/placements", asked).json() == placements


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"guests": ["none"], "host": "host3"}, 409, "there is no guest none"),
        ({"guests": [], "host": "none"}, 409, "there is no host none"),
        ({"guests": "g0001", "host": "host3"}, 422, "guests: a list is needed"),
        ({"guests": [{}], "host": "host3"}, 422, "guests[0]: str is needed"),
        ({}, 422, "'guests' is missing"),
    ],
)
def test_places_that_cannot_be_given_are_refused(site, body, status, word):
    answer = site.post("/placements", body)
    assert answer.status_code == status
    assert word in answer.json()["detail"]


def test_guests_are_not_placed_where_memory_is_too_small(site):
    job = site.ready(guests_per_host=2, guest_memory_kb=786432)
    with site.store.change() as state:
        state.hosts["host3"].memory_kb = 1024 * 1024
    answer = site.post("/placements", {"guests": job.guests[:2], "host": "host3"})
    assert answer.status_code == 409
    assert "host3 has 1024 MiB, 256 of them its own" in answer.json()["detail"]


def test_after_a_commit_the_guests_are_on_the_spare_and_the_host_they_left_takes_no_others(site):
    job = site.ready()
    held = evacuate(site, job)
    assert sorted({guest.host for guest in site.guests(job.id).values()}) == ["host2", "host3"]
    assert site.host(held["host"]).pool == "allocated"
    assert site.host(held["host"]).reason == job.id
    assert (site.host("host1").pool, site.host("host1").reason) == ("defunct", "evacuated as e-1")
    assert site.post(f"/leases/{held['id']}/commit", {"placements": []}).status_code == 404


def test_a_host_that_some_guests_did_not_leave_stays_with_its_job(site):
    job = site.ready()
    held = lease(site)
    placements = site.post("/placements", {"guests": job.guests[:1], "host": held["host"]}).json()
    site.post(f"/leases/{held['id']}/commit", {"placements": placements})
    assert site.pools() == {"host1": "allocated", "host2": "allocated", "host3": "allocated", "host4": "free"}


def test_the_spare_is_free_again_if_the_job_ended_during_the_move(site):
    job = site.ready()
    held = lease(site)
    placements = site.post("/placements", {"guests": job.guests[:2], "host": held["host"]}).json()
    site.end(job.id)
    site.post(f"/leases/{held['id']}/commit", {"placements": placements})
    assert site.pools() == {"host1": "defunct", "host2": "free", "host3": "free", "host4": "free"}


def test_a_commit_to_another_host_than_the_leased_one_is_refused(site):
    job = site.ready()
    held = lease(site)
    wrong = [{"guest": job.guests[0], "host": "host4", "cores": [0], "numa_node": 0}]
    assert site.post(f"/leases/{held['id']}/commit", {"placements": wrong}).status_code == 409
    assert site.guests()[job.guests[0]].host == "host1"


def test_the_spare_of_a_failed_move_is_set_aside_and_looked_at_until_it_is_restored(site):
    job = site.ready()
    held = lease(site)
    site.post("/placements", {"guests": job.guests[:2], "host": held["host"]})
    assert site.post(f"/hosts/{held['host']}/retire", {"reason": "look"}).status_code == 200
    for guest in job.guests[:2]:
        uuid = site.guests()[guest].uuid
        site.running["10.0.0.3"][uuid] = site.running["10.0.0.1"].pop(uuid)
    with site.store.change() as state:
        assert leases.expire(state, time.time() + 1e6) == []
    for _ in range(3):
        site.watch.once()
    assert site.job(job.id).state == "ready"
    assert site.post(f"/hosts/{held['host']}/restore", headers=OPERATOR).status_code == 200
    with site.store.change() as state:
        assert (state.leases, state.reserved) == ({}, {})


# -- hosts -------------------------------------------------------------------------------------------------------


def test_a_retired_host_is_defunct_rid_of_idle_guests_and_marked(site):
    site.end(site.ready(hosts=1).id)
    assert site.post("/hosts/host1/retire", {"reason": "rule robust {{ x }}"}).status_code == 200
    assert site.host("host1").pool == "defunct"
    site.until(lambda: site.played("retire.yml"), "the host was not marked")
    assert site.played("retire.yml") == [{"retire_host": "host1", "retire_reason": "rule robust  x "}]
    assert site.running["10.0.0.1"] == {}
    assert site.guests() == {}


def test_a_host_that_takes_no_mark_is_defunct_all_the_same(site):
    site.fail["retire.yml"] = "host1 is silent"
    site.post("/hosts/host1/retire", {"reason": "it smokes"})
    site.until(lambda: "not marked on the host: host1 is silent" in site.host("host1").reason, "not noted")
    assert site.host("host1").pool == "defunct"


def test_a_host_with_a_jobs_guests_or_that_is_somebodys_spare_is_not_retired(site):
    job = site.ready()
    answer = site.post("/hosts/host1/retire", headers=OPERATOR)
    assert answer.status_code == 409
    assert job.guests[0] in answer.json()["detail"]
    lease(site)
    answer = site.post("/hosts/host3/retire", headers=OPERATOR)
    assert answer.status_code == 409
    assert "spare of e-1" in answer.json()["detail"]


def test_a_restored_host_is_free_and_one_that_fails_its_checks_is_not(site):
    assert site.post("/hosts/host1/restore", headers=OPERATOR).status_code == 409
    site.post("/hosts/host1/retire", {"reason": "x"})
    site.until(lambda: site.played("retire.yml"), "the host was not marked")
    site.fail["restore.yml"] = "host1 runs g9"
    answer = site.post("/hosts/host1/restore", headers=OPERATOR)
    assert answer.status_code == 409
    assert "host1 is not restored: host1 runs g9" in answer.json()["detail"]
    assert site.pools()["host1"] == "defunct"
    site.fail.clear()
    assert site.post("/hosts/host1/restore", headers=OPERATOR).status_code == 200
    assert site.pools()["host1"] == "free"


def test_a_guest_that_no_job_uses_can_be_removed(site):
    job = site.ready(hosts=1)
    assert site.api.delete(f"/guests/{job.guests[0]}", headers=OPERATOR).status_code == 409
    site.end(job.id)
    site.fail["remove-guests.yml"] = "host1 is silent"
    assert site.api.delete(f"/guests/{job.guests[0]}", headers=OPERATOR).status_code == 502
    assert site.guests()[job.guests[0]].state == "lost"
    site.fail.clear()
    assert site.api.delete(f"/guests/{job.guests[0]}", headers=OPERATOR).status_code == 200
    assert list(site.guests()) == job.guests[1:]


def test_a_guest_that_its_host_still_acts_on_is_waited_for(site, monkeypatch):
    monkeypatch.setattr(guests, "LOCKED_LOOK_S", 0.01)
    job = site.ready(hosts=1)
    site.end(job.id)
    site.fail["remove-guests.yml"] = ["host1: guest g0001 on host1 is locked by: start, process 7"]
    site.manager.guests.remove(job.guests)
    assert site.guests() == {}
    assert len(site.played("remove-guests.yml")) == 2


# -- guests that are gone ----------------------------------------------------------------------------------------


def test_a_guest_missed_twice_is_lost_and_with_it_its_job(site):
    job = site.ready()
    site.running["10.0.0.1"].clear()
    site.watch.once()
    assert site.job(job.id).state == "ready"
    site.watch.once()
    lost = site.job(job.id)
    assert lost.state == "failed"
    assert lost.message == "; ".join(f"guest {name} was lost on host host1" for name in job.guests[:2])
    assert site.guests()[job.guests[0]].state == "lost"
    assert set(site.pools().values()) == {"free"}


def test_a_host_that_does_not_answer_may_still_have_its_guests(site):
    job = site.ready()
    site.silent.add("10.0.0.1")
    for _ in range(3):
        site.watch.once()
    assert site.job(job.id).state == "ready"


def test_a_guest_on_its_way_is_looked_for_at_both_ends(site):
    job = site.ready()
    held = lease(site)
    site.post("/placements", {"guests": job.guests[:2], "host": held["host"]})
    for guest in job.guests[:2]:
        uuid = site.guests()[guest].uuid
        site.running["10.0.0.3"][uuid] = site.running["10.0.0.1"].pop(uuid)
    for _ in range(3):
        site.watch.once()
    assert site.job(job.id).state == "ready"


def test_a_program_that_failed_because_a_guest_is_gone_is_told_so(site):
    job = site.ready()
    site.running["10.0.0.2"].clear()
    said = site.end(job.id, 1).json()["message"]
    assert said == "; ".join(f"guest {name} was lost on host host2" for name in job.guests[2:])


def test_a_program_that_failed_by_itself_is_not_explained(site):
    job = site.ready()
    assert site.end(job.id, 1).json()["message"] == ""
    assert {guest.state for guest in site.guests().values()} == {"ready"}


def test_a_host_whose_libvirt_hangs_keeps_nobody_from_the_others(site, monkeypatch):
    monkeypatch.setattr("failavoid.resource_manager.watch.ANSWER_S", 0.2)
    hang = threading.Event()

    def look(address):
        if address == "10.0.0.1":
            hang.wait(PATIENCE_S)
        return site.look(address)

    job = site.ready()
    watch = Watch(site.settings, site.store, site.manager.jobs, look)
    site.running["10.0.0.2"].clear()
    watch.once()
    watch.once()
    hang.set()
    assert site.job(job.id).message.startswith(f"guest {job.guests[2]} was lost on host host2")


def test_the_next_job_replaces_lost_guests(site):
    first = site.ready()
    site.running["10.0.0.1"].clear()
    site.watch.once()
    site.watch.once()
    second = site.ready()
    assert set(second.guests) & set(first.guests) == set(first.guests[2:])
    assert not set(site.guests()) & set(first.guests[:2])


# -- through a crash ---------------------------------------------------------------------------------------------


def test_a_restart_finds_everything_as_it_was(site):
    job = site.ready()
    lease(site)
    before = site.picture()
    site.start()
    after = site.picture()
    assert after == before
    assert lease(site)["id"] == "lease-1"
    site.end(job.id)
    assert site.ready().guests == job.guests
    assert site.ask(hosts=4).status_code == 409
    assert site.end("job-2").json()["state"] == "completed"
    assert site.ready(hosts=1).id == "job-4"


def test_versions_go_on_after_a_restart(site):
    version = site.picture().version
    site.start()
    site.ready()
    assert site.picture().version > version


def test_a_launch_that_a_crash_cut_short_is_done_anew(site):
    site.hold.clear()
    ident = site.ask().json()["id"]
    site.until(lambda: site.played("launch.yml"), "no launch")
    old = site.manager.jobs
    site.start()
    old.launch = old.clear = old.end = lambda *words: None
    site.hold.set()
    site.manager.recover()
    site.until(lambda: site.job(ident).state == "ready", "the job is not ready")
    acts = [playbook for playbook, _ in site.calls]
    assert acts == ["launch.yml", "remove-guests.yml", "launch.yml"]
    keys = site.played("launch.yml")[1]["launch_identities"]
    assert len(keys) == 4
    assert len(site.job(ident).known_hosts.splitlines()) == 4


def test_a_job_that_ended_while_launching_is_cleared_after_a_crash(site):
    with site.store.change() as state:
        request = JobRequest("ada", 1000, 1000, KEY, 1)
        state.jobs["job-7"] = Job("job-7", request, "failed", ["g0009"], ended=1.0)
        state.guests["g0009"] = Guest("g0009", "u9", "host1", "10.0.2.9", 262144, [0], 0, "ada", "booting", "job-7")
    site.start()
    site.manager.recover()
    site.until(lambda: site.pools()["host1"] == "free", "the host is not free")
    assert site.guests() == {}


def test_a_removal_that_a_crash_cut_short_is_done_after_it_on_each_host_that_answers(site, monkeypatch):
    site.end(site.ready(hosts=2, guests_per_host=1).id)
    monkeypatch.setattr(background, "start", lambda *_words: None)  # killed before it came to that
    lease(site, "e-1", "host1")
    lease(site, "e-2", "host2")
    monkeypatch.undo()
    play = site.play

    def without_host1(playbook, inventory, variables, *words, **named):
        if any(guest["host"] == "host1" for guest in variables.get("remove_guests", [])):
            return PlaybookResult(2, "failed", Path(), {}, ["host1 does not answer"])
        return play(playbook, inventory, variables, *words, **named)

    monkeypatch.setattr(guests, "run_playbook", without_host1)
    site.start()
    site.manager.recover()
    site.until(lambda: not site.running["10.0.0.2"], "a guest that was given up still runs on the spare")
    site.until(lambda: [guest.host for guest in site.guests().values()] == ["host1"], "it is still known")
    assert {guest.state for guest in site.guests().values()} == {"lost"}


CHANGES_FOR_EVER = """
import sys
from pathlib import Path
from failavoid.resource_manager.store import Store
from failavoid.shared.messages import Host
store = Store(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    with store.change() as state:
        state.hosts["a"] = Host("a", str(number))
        state.hosts["b"] = Host("b", str(number))
    print(number, flush=True)
"""


def test_what_was_told_before_a_kill_is_there_after_it(tmp_path):
    command = [sys.executable, "-c", CHANGES_FOR_EVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()
        told += [int(line) for line in process.stdout.read().split()]
    with Store(tmp_path).change() as state:
        assert state.hosts["a"].address == state.hosts["b"].address
        assert int(state.hosts["a"].address) >= told[-1]


def test_a_change_that_fails_half_way_has_not_happened(tmp_path):
    store = Store(tmp_path)
    with store.change() as state:
        state.hosts["a"] = Host("a", "1")
    version = store.changes.version

    def half_done():
        with store.change() as state:
            state.hosts["b"] = Host("b", state.hosts.pop("a").address)
            del state.hosts["none"]

    with pytest.raises(KeyError):
        half_done()
    assert store.changes.version == version
    assert store.membership().hosts == [Host("a", "1")]


def test_a_change_writes_what_it_has_altered_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    with store.change() as state:
        state.hosts |= {name: Host(name, "1") for name in ("a", "b", "c")}
        state.terms["g0001"] = "told"
    written = []
    store._database.set_trace_callback(written.append)
    with store.change() as state:
        state.hosts["b"].numa["0"] = [1]  # deep within it
        del state.hosts["c"]
    store._database.set_trace_callback(None)
    documents = [line for line in written if "documents" in line and "numbers" not in line]
    assert [line.split()[0] for line in documents] == ["DELETE", "INSERT"]
    assert "'c'" in documents[0]
    assert "'b'" in documents[1]
    again = Store(tmp_path).membership()
    assert [(host.name, host.numa) for host in again.hosts] == [("a", {}), ("b", {"0": [1]})]


def test_a_change_that_could_not_be_written_has_not_happened(tmp_path):
    store = Store(tmp_path)
    with store.change() as state:
        state.hosts["a"] = Host("a", "1")
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    store._database.execute("PRAGMA busy_timeout=0")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError), store.change() as state:
        state.hosts["a"].address = "2"
    assert store.membership().hosts[0].address == "1"
    other.execute("ROLLBACK")
    with store.change() as state:
        state.hosts["a"].address = "3"
    assert Store(tmp_path).membership().hosts[0].address == "3"


def test_of_jobs_that_ended_long_ago_the_last_are_remembered(site):
    site.settings.ended_jobs = 2
    for _ in range(4):
        ended_an_hour_ago(site, site.ready(hosts=1).id)
    site.end(site.ready(hosts=1).id)
    assert [job.id for job in site.picture().jobs] == ["job-3", "job-4", "job-5"]


def test_a_job_that_ended_just_now_is_remembered_however_many_there_are(site):
    site.settings.ended_jobs = 1
    for _ in range(4):
        site.end(site.ready(hosts=1).id)
    assert [job.id for job in site.picture().jobs] == ["job-1", "job-2", "job-3", "job-4"]


def test_a_job_that_still_has_a_guest_is_remembered(site):
    site.settings.ended_jobs = 1
    for _ in range(3):
        ended_an_hour_ago(site, site.ready(hosts=1).id)
    with site.store.change() as state:
        next(iter(state.guests.values())).job = "job-2"
        state.forget_old_jobs(1, time.time())
    assert [job.id for job in site.picture().jobs] == ["job-2", "job-3"]


def ended_an_hour_ago(site, ident):
    site.end(ident)
    with site.store.change() as state:
        state.jobs[ident].ended -= 3600.0


def test_the_keys_of_what_an_ended_job_ran_on_are_no_part_of_the_picture(site):
    job = site.ready()
    assert job.known_hosts
    site.end(job.id)
    assert site.job(job.id).known_hosts == ""


# -- settings ----------------------------------------------------------------------------------------------------


def test_hosts_follow_the_settings_and_keep_their_pools(site):
    job = site.ready(hosts=1)
    site.post("/hosts/host3/retire", {"reason": "x"})
    site.settings.hosts = [host for host in site.settings.hosts if host.name not in ("host1", "host4")]
    site.settings.hosts[0].memory_kb = 4096 * 1024
    site.start()
    assert site.pools() == {"host1": "defunct", "host2": "free", "host3": "defunct"}
    assert site.host("host1").reason == "not in the settings any more"
    assert site.host("host2").memory_kb == 4096 * 1024
    site.end(job.id)
    site.start()
    assert sorted(site.pools()) == ["host2", "host3"]
    assert site.guests() == {}


@pytest.mark.parametrize(
    ("line", "word"),
    [("spares: 0", "use 1 or more"), ("look_s: 0.1", "0.2 or more"), ("ended_jobs: 0", "1 or more")],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, line, word):
    text = "hosts: []\nhead_address: 10.0.0.1\nguest_network: 10.0.2.0/24\nprefix: 16\n"
    (tmp_path / "s.yml").write_text(text + line + "\n")
    with pytest.raises(SettingsError, match=word):
        load_settings(Settings, tmp_path / "s.yml")
