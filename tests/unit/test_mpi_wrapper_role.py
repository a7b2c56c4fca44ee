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


MODULE_SYSTEMS = {
    "Environment Modules": ("tclsh", PROJECT / "build/environment-modules/usr/lib/modulecmd.tcl"),
    "Lmod": ("", Path("/usr/share/lmod/lmod/libexec/lmod")),
}
# the module's files are where they are on a guest, seen by this shell alone
IN_PLACE = """
set -e
mount -t tmpfs tmpfs /opt && mkdir /opt/failavoid && mount --bind "$ROOT/opt/failavoid" /opt/failavoid
module() { eval "$($MODULE bash "$@")"; }
"""


@pytest.fixture(params=MODULE_SYSTEMS)
def in_shell(request, tree):
    """Run lines of bash that use `module`, under one module system; returns what they print."""
    interpreter, command = MODULE_SYSTEMS[request.param]
    if not command.exists():
        pytest.skip(f"no {command}: make test-tools")
    root, _, _ = tree
    variables = {
        "PATH": "/usr/bin:/bin:/usr/sbin",
        "HOME": "/nonexistent",
        "ROOT": str(root),
        "MODULE": f"{interpreter} {command}",
        "MODULEPATH": str(root / "usr/share/modules/modulefiles"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    }

    def shell(lines):
        words = ["unshare", "--mount", "bash", "-c", IN_PLACE + lines]
        done = subprocess.run(words, env=variables, cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return shell


CHANGED = "env | grep -E '^(PATH|PYTHONPATH|PKG_CONFIG_PATH|LD_PRELOAD|FAILAVOID_[A-Z_]*)=' | sort"


def test_module_load_sets_what_the_wrapper_needs_and_unload_takes_it_back(in_shell):
    loaded = in_shell(f"module load failavoid; {CHANGED}").splitlines()
    assert loaded == [
        "FAILAVOID_EVERY=1",
        "FAILAVOID_LIMIT_S=77",
        "PATH=/opt/failavoid/bin:/usr/bin:/bin:/usr/sbin",
        "PKG_CONFIG_PATH=/opt/failavoid/lib/pkgconfig",
        "PYTHONPATH=/opt/failavoid/lib",
    ]
    assert in_shell(f"module load failavoid; module unload failavoid; {CHANGED}") == in_shell(CHANGED)


def test_the_library_is_preloaded_only_where_it_is_asked_for(in_shell):
    asked = "export FAILAVOID_PRELOAD=1; module load failavoid"
    assert "LD_PRELOAD=/opt/failavoid/lib/libfailavoid-mpi.so\n" in in_shell(f"{asked}; {CHANGED}")
    assert "LD_PRELOAD" not in in_shell(f"{asked}; module unload failavoid; {CHANGED}")


@pytest.mark.parametrize(
    ("asked", "launch"),
    [
        ("", "failavoid-mpirun -n 2 python3"),
        ("", "mpirun.openmpi -n 2 -x FAILAVOID_JOB failavoid-mpi"),
        ("export FAILAVOID_PRELOAD=1;", "mpirun.openmpi -n 2 -x FAILAVOID_JOB -x LD_PRELOAD python3"),
    ],
    ids=["failavoid-mpirun", "failavoid-mpi", "preloaded"],
)
def test_a_program_that_is_started_with_the_module_takes_part(in_shell, asked, launch):
    if not Path("/usr/bin/mpirun.openmpi").exists():
        pytest.skip("no /usr/bin/mpirun.openmpi: make venv")
    said = in_shell(
        f"{asked} module load failavoid; export FAILAVOID_JOB=job-1 FAILAVOID_MPIRUN=mpirun.openmpi;"
        f"{launch} -c 'from mpi4py import MPI; MPI.COMM_WORLD.Barrier(); print(\"passed\")'"
    )
    assert said.count("passed") == 2
    assert said.count("no page in /run/failavoid/jobs/job-1") == 1, "the barrier was MPI's own"
