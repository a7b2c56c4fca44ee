"""What the role `mpi_wrapper` installs into a tree, and what a second run of it changes."""

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
    mpi_wrapper_root: {root}
    mpi_wrapper_project: {project}
    mpi_wrapper_limit_s: 77
  roles: [mpi_wrapper]
"""


def install(folder, root, project=PROJECT):
    (folder / "playbook.yml").write_text(PLAYBOOK.format(root=root, project=project))
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "-c", "local"]
    return subprocess.run(
        [*command, folder / "playbook.yml"],
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder, root = tmp_path_factory.mktemp("role"), tmp_path_factory.mktemp("root")
    beside = root / "opt/failavoid/lib/failavoid/agent/__init__.py"
    beside.parent.mkdir(parents=True)
    beside.write_text("another role's\n")
    first, second = install(folder, root), install(folder, root)
    assert first.returncode == 0, first.stdout
    assert beside.read_text() == "another role's\n"
    return root, first.stdout, second.stdout


def test_the_second_run_changes_nothing(tree):
    _, first, second = tree
    assert "changed=2" in first
    assert "changed=0" in second


def test_a_program_runs_from_the_tree(tree):
    root, _, _ = tree
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "failavoid.mpi", "-c", "import failavoid.mpi; print(failavoid.mpi.__file__)"],
        env={"PYTHONPATH": str(root / "opt/failavoid/lib")},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(root / "opt/failavoid/lib/failavoid/mpi/__init__.py"), done.stderr
    assert os.access(root / "opt/failavoid/bin/failavoid-mpi", os.X_OK)


def test_the_environment_module_leads_to_the_tree(tree):
    root, _, _ = tree
    text = (root / "usr/share/modules/modulefiles/failavoid").read_text()
    assert text.startswith("#%Module")
    assert "prepend-path PYTHONPATH /opt/failavoid/lib" in text
    assert "setenv FAILAVOID_LIMIT_S 77" in text


def test_a_project_that_is_none_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "not-a-checkout").mkdir()
    done = install(tmp_path, tmp_path / "root", tmp_path / "not-a-checkout")
    assert done.returncode != 0
    assert "mpi_wrapper_project" in done.stdout
    assert not (tmp_path / "root/opt/failavoid/lib/failavoid/mpi").exists()
