"""What the role `agent` installs into a tree, and what a second run of it changes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PLAYBOOK = """
- hosts: localhost
  gather_facts: false
  vars:
    agent_root: {root}
    agent_project: {project}
  tasks:
    - import_role: {{name: agent, tasks_from: {entry}.yml}}
"""
INVENTORY = """
head: {hosts: {localhost: {ansible_connection: local}}}
monitor: {children: {head: }}
controller: {children: {head: }}
"""


@pytest.fixture(scope="module")
def install(tmp_path_factory):
    folder = tmp_path_factory.mktemp("role")
    (folder / "inventory.yml").write_text(INVENTORY)

    def run(root, project=PROJECT, entry="main"):
        (folder / "playbook.yml").write_text(PLAYBOOK.format(root=root, project=project, entry=entry))
        return subprocess.run(
            [
                Path(sys.executable).parent / "ansible-playbook",
                "-i",
                folder / "inventory.yml",
                folder / "playbook.yml",
            ],
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def tree(install, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    wrapper = root / "opt/failavoid/lib/failavoid/mpi"
    wrapper.mkdir(parents=True)
    (wrapper / "__init__.py").write_text("another role's\n")
    first, second = install(root), install(root)
    assert first.returncode == 0, first.stdout
    return root, first.stdout, second.stdout


def test_the_second_run_changes_nothing(tree):
    _, first, second = tree
    assert "changed=1" in first
    assert "changed=0" in second


def test_the_tree_holds_an_agent_that_runs_from_it_and_no_token(tree):
    root, _, _ = tree
    done = subprocess.run(
        ["/usr/bin/python3", "-S", "-s", "-m", "failavoid.agent", "--settings", "none.json"],
        cwd=root / "opt/failavoid/lib",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        1,
        "failavoid agent: none.json: cannot be read: No such file or directory\n",
    )
    assert not (root / "etc").exists()


def test_the_files_are_compiled_without_regard_to_times(tree):
    root, _, _ = tree
    compiled = list((root / "opt/failavoid/lib/failavoid/agent/__pycache__").glob("*.pyc"))
    assert compiled
    for file in compiled:
        assert file.read_bytes()[4:8] == b"\x01\x00\x00\x00"  # PEP 552: hash-based, not checked


def test_what_other_roles_installed_beside_it_stays(tree):
    root, _, _ = tree
    assert (root / "opt/failavoid/lib/failavoid/mpi/__init__.py").read_text() == "another role's\n"


def test_a_project_that_is_none_is_refused_and_leaves_nothing(install, tmp_path):
    (tmp_path / "not-a-checkout").mkdir()
    done = install(tmp_path / "root", tmp_path / "not-a-checkout")
    assert done.returncode != 0
    assert "agent_project" in done.stdout
    assert not (tmp_path / "root/opt/failavoid/lib/failavoid/agent").exists()


def test_what_is_removed_is_all_that_was_installed(install, tmp_path):
    assert install(tmp_path).returncode == 0
    first, second = install(tmp_path, entry="absent"), install(tmp_path, entry="absent")
    assert "failed=0" in first.stdout
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert "changed=0" in second.stdout


def test_the_agents_unit_keeps_the_hosts_own_proc():
    """These make systemd mount /proc anew; a host in a container then reported its machine's memory."""
    unit = (PROJECT / "roles/agent/templates/failavoid-agent.service.j2").read_text()
    settings = {line.partition("=")[0] for line in unit.splitlines() if not line.startswith("#")}
    assert not settings & {"ProtectProc", "ProcSubset", "ProtectControlGroups", "PrivatePIDs"}
    assert {"ProtectSystem", "NoNewPrivileges", "MemoryMax"} <= settings
