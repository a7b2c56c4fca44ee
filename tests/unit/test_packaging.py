"""The project away from its checkout: as an Ansible collection, and as an installed wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HERE = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
GROUPS = ("nfs_server", "monitor", "resource_manager", "controller")


def run(folder, *command, **environment):
    """Run a command in a folder where nothing of the checkout is found, and return what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(folder / "home"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with an inventory of this machine alone, in which the guests' network is missing."""
    inventory = {"head": {"hosts": {"head01": HERE}}, "hypervisor": {"hosts": {"host01": HERE}}}
    inventory |= {group: {"children": {"head": {}}} for group in GROUPS}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    return tmp_path


@pytest.fixture(scope="module")
def collections(tmp_path_factory):
    """The collection, built and installed."""
    built, installed = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("installed")
    code, said = run(built, sys.executable, str(PROJECT / "collection/build.py"), str(built / "collection"))
    assert code == 0, said
    (archive,) = (built / "collection").glob("*.tar.gz")
    code, said = run(built, BIN / "ansible-galaxy", "collection", "install", "--offline", "-p", installed, archive)
    assert code == 0, said
    return installed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    code, said = run(PROJECT, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    assert code == 0, said
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def share(wheel, tmp_path_factory):
    """What the wheel brings beside the package, installed."""
    prefix = tmp_path_factory.mktemp("prefix")
    uv = (BIN / "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--prefix", prefix, wheel)
    code, said = run(prefix, *uv)
    assert code == 0, said
    return prefix / "share/failavoid"


def test_the_collections_modules_are_documented_under_their_new_names(collections, elsewhere):
    listing = (BIN / "ansible-doc", "--list", "--json", "failavoid.failavoid")
    code, said = run(elsewhere, *listing, ANSIBLE_COLLECTIONS_PATH=str(collections))
    assert code == 0, said
    names = {path.stem.removeprefix("failavoid_") for path in (PROJECT / "library").glob("*.py")}
    assert set(json.loads(said)) == {f"failavoid.failavoid.{name}" for name in names - {"container", "preflight"}}


# `ansible-test sanity` knows these first lines, and of modules Python's
KNOWN = {"#!/bin/bash -eu", "#!/bin/bash -eux", "#!/bin/sh", "#!/usr/bin/env bash", "#!/usr/bin/env python"}


def test_the_collection_says_of_each_first_line_that_ansible_test_would_refuse_that_it_is_right(collections):
    root = collections / "ansible_collections/failavoid/failavoid"
    strange = set()
    for file in root.rglob("*"):
        name = str(file.relative_to(root))
        if file.is_file() and not name.startswith("plugins/modules/"):
            first = file.read_bytes().partition(b"\n")[0]
            if first.startswith(b"#!") and first.decode() not in KNOWN:
                strange.add(f"{name} shebang")
    ignored = (root / "tests/sanity/ignore-2.19.txt").read_text().splitlines()
    assert strange == {line for line in ignored if line.endswith(" shebang")}


@pytest.mark.parametrize("playbook", ["validate", "site"])
def test_the_collections_playbooks_run_on_its_own_modules(collections, elsewhere, playbook):
    command = (BIN / "ansible-playbook", "-i", "hosts.yml", f"failavoid.failavoid.{playbook}", "--check")
    code, said = run(elsewhere, *command, ANSIBLE_COLLECTIONS_PATH=str(collections))
    assert code != 0
    assert "resource_manager_guest_network is not set" in said
    assert "could not be looked at" not in said


AGENT = """
- hosts: head
  gather_facts: false
  tasks:
    - import_role: {{name: {role}}}
      vars: {{agent_root: {root}}}
"""


def installed_agent(folder, role, **environment):
    """What the role installs into a tree: path -> bytes."""
    root = folder / "root"
    (folder / "agent.yml").write_text(AGENT.format(role=role, root=root))
    code, said = run(folder, BIN / "ansible-playbook", "-i", "hosts.yml", "agent.yml", **environment)
    assert code == 0, said
    return {file.relative_to(root): file.read_bytes() for file in root.rglob("*.py")}


def test_a_role_of_the_collection_and_of_the_wheel_installs_what_the_checkout_installs(collections, share, elsewhere):
    expected = {path.name for path in (PROJECT / "failavoid/agent").glob("*.py")}
    of_collection = installed_agent(elsewhere, "failavoid.failavoid.agent", ANSIBLE_COLLECTIONS_PATH=str(collections))
    (elsewhere / "root").rename(elsewhere / "before")
    of_wheel = installed_agent(elsewhere, "agent", ANSIBLE_CONFIG=str(share / "ansible.cfg"))
    assert {path.name for path in of_collection if path.parts[-2] == "agent"} == expected
    assert of_collection == of_wheel


def test_the_wheel_checks_a_site_from_its_own_folder(share, elsewhere):
    command = (BIN / "ansible-playbook", "-i", "hosts.yml", share / "playbooks/validate.yml")
    code, said = run(elsewhere, *command, ANSIBLE_CONFIG=str(share / "ansible.cfg"))
    assert code != 0
    assert "resource_manager_guest_network is not set" in said


def test_what_the_wheel_brings_makes_the_same_wheel_again(wheel, share, tmp_path):
    """The role service_common packs the services for the head from there."""
    code, said = run(share, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    assert code == 0, said
    again = next(tmp_path.glob("*.whl"))
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())
