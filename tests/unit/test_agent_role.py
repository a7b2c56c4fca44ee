"""What the role `agent` installs into a tree, and what a second run of it changes."""

import os
import subprocess
import sys
import tempfile
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


# The agent's part, with no other capabilities than its unit leaves it: it makes the page of a job, sees its ranks, and
# removes it all.
AGENT = """
import shutil, sys
from failavoid.shared.page import PageWriter, Posted, live_slots
folder = sys.argv[1]
PageWriter(folder, (1234, 2345)).post(Posted(1, 1, ("host5",), 0, 0, "checkpoint"))
print("made", flush=True)
for _ in sys.stdin:
    print(len(live_slots(folder)), flush=True)
shutil.rmtree(folder)
"""
RANK = """
import os, sys
from failavoid.shared.page import Page, Slot
os.setgroups([])
os.setgid(2345)
os.setuid(1234)
slot = Slot(sys.argv[1])
slot.checkpointed(Page(sys.argv[1]).epoch)
print("there", flush=True)
sys.stdin.read()
"""


def test_the_agents_unit_leaves_it_what_ranks_on_the_host_need():
    unit = (PROJECT / "roles/agent/templates/failavoid-agent.service.j2").read_text()
    (left,) = [line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet=")]
    names = left.partition("=")[2].lower().replace("cap_", "+").split()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shared:  # the job's user gets in there
        Path(shared).chmod(0o755)
        folder = Path(shared, "jobs", "bare-1")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": PROJECT}
        confined = ["setpriv", f"--bounding-set=-all,{','.join(names)}"]
        agent = subprocess.Popen([*confined, sys.executable, "-c", AGENT, folder], **pipes)
        assert agent.stdout.readline() == "made\n"
        rank = subprocess.Popen([sys.executable, "-c", RANK, folder], **pipes)
        assert rank.stdout.readline() == "there\n"

        def ranks_seen():
            agent.stdin.write("look\n")
            agent.stdin.flush()
            return agent.stdout.readline()

        assert ranks_seen() == "1\n"
        rank.kill()
        rank.communicate()
        assert ranks_seen() == "0\n"
        assert list((folder / "slots").iterdir()) == []
        agent.communicate()
        assert agent.returncode == 0
        assert not folder.exists()


def test_the_agents_unit_keeps_the_hosts_own_proc():
    """These make systemd mount /proc anew; a host in a container then reported its machine's memory."""
    unit = (PROJECT / "roles/agent/templates/failavoid-agent.service.j2").read_text()
    settings = {line.partition("=")[0] for line in unit.splitlines() if not line.startswith("#")}
    assert not settings & {"ProtectProc", "ProcSubset", "ProtectControlGroups", "PrivatePIDs"}
    assert {"ProtectSystem", "NoNewPrivileges", "MemoryMax"} <= settings
