"""The modules on real hosts, checked, run, checked again: check mode says what is done then, and that all is done."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from failavoid.demo.site import Site
from tests.testbed.by_hand import DIRECTORIES, ByHand, adhoc, make

NAME = "check-1"
RECORDS = "/run/failavoid/migrations"


def three(site: Site, host: str, module: str, **arguments: Any) -> dict[str, Any]:
    """Check, run, check, as described above; what the run returned."""
    results = [adhoc(site, host, module, check=check, **arguments) for check in (True, False, True)]
    assert not [result["msg"] for result in results if result.get("failed")]
    assert [result["changed"] for result in results] == [True, True, False]
    return results[1]


@pytest.fixture(scope="module")
def hand(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByHand]:
    """Keys for a guest, which is gone afterwards."""
    hand = make(site, tmp_path_factory.mktemp("by-hand"))
    hand.clear(NAME)
    yield hand
    hand.clear(NAME)


def test_a_guest_is_started_moved_and_removed(hand: ByHand, empty_hosts: list[str], site: Site) -> None:
    here, there = empty_hosts
    guest, evacuation = hand.describe(NAME, 251), f"check-{int(time.time())}"
    move = {
        **{key: guest[key] for key in ("name", "address", "cores", "numa_node")},
        "destination": there,
        "destination_address": site.hosts[there]["ansible_host"],
    }
    identities = json.dumps({NAME: hand.identity(guest)})
    three(site, here, "failavoid_guest", guests=[guest], identities=identities)
    assert hand.domains(here) == {NAME: "running"}
    three(site, there, "failavoid_guest", state="expected", guests=[move], evacuation=evacuation)
    assert NAME not in hand.domains(there)
    (moved,) = three(site, here, "failavoid_migrate", guests=[move], evacuation=evacuation)["migrations"]
    assert (moved["guest"], moved["state"]) == (NAME, "moved")
    three(site, there, "failavoid_guest", state="arrived", guests=[move])
    assert (hand.domains(here), hand.domains(there)) == ({}, {NAME: "running"})
    three(site, there, "failavoid_guest", state="absent", guests=[move])
    assert hand.domains(there) == {}
    assert site.run(there, "ls", DIRECTORIES) == ""


def test_a_guest_that_does_not_come_is_forgotten(hand: ByHand, empty_hosts: list[str], site: Site) -> None:
    guest = {key: hand.describe(NAME, 251)[key] for key in ("name", "address")}
    three(site, empty_hosts[0], "failavoid_guest", state="expected", guests=[guest], evacuation="check-none")
    three(site, empty_hosts[0], "failavoid_guest", state="unexpected", guests=[guest])
    assert guest["address"] not in hand.filter(empty_hosts[0])


def test_moves_are_given_up(empty_hosts: list[str], site: Site) -> None:
    evacuation = f"check-aborted-{int(time.time())}"
    try:
        three(site, empty_hosts[0], "failavoid_migrate", state="aborted", evacuation=evacuation)
    finally:
        site.run(empty_hosts[0], "sh", "-c", f"rm -f {RECORDS}/{evacuation}.*")


def test_what_a_host_offers_is_noted(empty_hosts: list[str], site: Site) -> None:
    path = "/run/check-host.json"
    try:
        found = three(site, empty_hosts[0], "failavoid_numa_info", path=path)["host"]
        assert json.loads(site.run(empty_hosts[0], "cat", path)) == found
    finally:
        site.run(empty_hosts[0], "rm", "-f", path)


def test_a_certificate_is_installed(empty_hosts: list[str], site: Site) -> None:
    """Where it is not as it should be: the host has its own already."""
    host = empty_hosts[0]
    own = {"name": host, "address": site.hosts[host]["ansible_host"]}
    issued = adhoc(site, site.head, "failavoid_certificates", state="issued", hosts=[own])
    assert issued["changed"] is False
    site.run(host, "chmod", "0600", "/etc/failavoid/authority.pem")
    three(site, host, "failavoid_certificates", state="installed", certificate=issued["certificates"][host])
    assert site.run(host, "stat", "-c", "%a", "/etc/failavoid/authority.pem").strip() == "644"


def test_certificates_are_issued(site: Site) -> None:
    folder, hosts = "/run/check-ca", [{"name": "host01", "address": "192.0.2.1"}]
    try:
        three(site, site.head, "failavoid_certificates", state="issued", authority=folder, hosts=hosts)
        # what is not right for it any more is told too
        hosts[0]["address"] = "192.0.2.2"
        three(site, site.head, "failavoid_certificates", state="issued", authority=folder, hosts=hosts)
    finally:
        site.run(site.head, "rm", "-rf", folder)
