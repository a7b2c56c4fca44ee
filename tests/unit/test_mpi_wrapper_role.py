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


def test_the_library_is_there_to_be_preloaded_and_linked(tree):
    root, _, _ = tree
    done = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "failavoid-mpi"],
        env={"PKG_CONFIG_PATH": str(root / "opt/failavoid/lib/pkgconfig"), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["-I/opt/failavoid/include", "-L/opt/failavoid/lib", "-lfailavoid-mpi"], done.stderr
    found = {path.name for path in (root / "opt/failavoid").rglob("*failavoid*") if path.is_file()}
    assert {"libfailavoid-mpi.so", "libfailavoid-mpi.a", "failavoid.h", "failavoid-mpirun"} <= found
    assert not (root / "opt/failavoid/lib/failavoid/mpi/shim").exists(), "sources are not for guests"


LAUNCHERS = {
    "mpirun (Open MPI) 4.1.4": ["-x", "LD_PRELOAD={library}", "-x", "FAILAVOID_JOB", "-n", "2", "./program"],
    "HYDRA build details": ["-genv", "LD_PRELOAD", "{library}", "-n", "2", "./program"],
}


@pytest.mark.parametrize("version", LAUNCHERS)
def test_failavoid_mpirun_preloads_the_library_in_ranks_by_the_launchers_own_options(tree, tmp_path, version):
    root, _, _ = tree
    launcher = tmp_path / "launcher"
    launcher.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo '{version}' || printf '%s\\n' \"$@\"\n")
    launcher.chmod(0o755)
    library = root / "opt/failavoid/lib/libfailavoid-mpi.so"
    variables = {"FAILAVOID_MPIRUN": str(launcher), "FAILAVOID_LIBRARY": str(library), "FAILAVOID_JOB": "job-1"}
    command = [root / "opt/failavoid/bin/failavoid-mpirun", "-n", "2", "./program"]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin", **variables}, capture_output=True, text=True)
    assert done.stdout.split() == [word.format(library=library) for word in LAUNCHERS[version]], done.stderr
    launcher.write_text("#!/bin/sh\necho srun 23.02\n")
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin", **variables}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no launcher of Open MPI" in done.stderr


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
