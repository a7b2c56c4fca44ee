"""What services log of an evacuation or a job carries its id: `journalctl -g ID` on the head tells the whole of it."""

import logging

import pytest
from evacuation_world import World
from resource_manager_site import Site

STATES = ["LEASED", "NOTICED", "GATHERED", "MIGRATING", "VERIFIED", "RELEASED", "RETIRED"]


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.alive.clear()


@pytest.fixture
def said(caplog):
    """What parts of the project have logged so far."""
    caplog.set_level(logging.INFO, "failavoid")
    return lambda part: [
        record.getMessage() for record in caplog.records if record.name.startswith(f"failavoid.{part}.")
    ]


def test_each_state_of_an_evacuation_is_logged_with_its_id(world, said):
    world.ranks_behave()
    evacuation = world.until_state(world.alarm(), "RETIRED")
    lines = said("controller")
    assert all(evacuation.id in line for line in lines), lines
    assert [state for state in STATES if any(line.startswith(f"{evacuation.id}: {state} ") for line in lines)] == STATES


def test_what_goes_wrong_with_an_evacuation_is_logged_with_its_id(world, said):
    world.manager.spares = []
    evacuation = world.until_state(world.alarm(), "CANCELLED")
    lines = said("controller")
    assert all(evacuation.id in line for line in lines), lines
    assert any("NO SPARE for host1" in line for line in lines)


def test_what_is_done_with_a_job_is_logged_with_its_id(tmp_path, monkeypatch, said):
    site = Site(tmp_path, monkeypatch)
    job = site.ready()
    assert site.end(job.id).status_code == 200
    lines = said("resource_manager")
    assert len(lines) >= 2
    assert all(job.id in line for line in lines), lines
