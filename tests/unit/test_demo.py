"""What the demonstration prints while it goes on, and what it says where it can't."""

import io
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import yaml

from failavoid.demo import __main__ as demo
from failavoid.demo import demonstration, observe, runs, site
from failavoid.demo.deploy import PlaybookError, failures, run_playbook
from failavoid.demo.observe import OomWatch, Services, kernel_log
from failavoid.demo.progress import Progress
from failavoid.demo.report import build_report
from failavoid.demo.scale import SCALES
from failavoid.demo.site import CommandError, Site, read_inventory
from failavoid.shared.messages import Guest, Host, Membership, Sample
from tests.unit.report_records import make_record

PROJECT = Path(__file__).resolve().parents[2]
KILL = (
    "[28123.097226] oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
    "oom_memcg=/failavoid/{host},task_memcg=/failavoid/{host},task={task},pid=23422,uid=64055"
)


# -- progress ----------------------------------------------------------------------------------------------


def test_each_step_says_where_it_is_in_the_plan_what_is_next_and_how_long_it_took():
    out = io.StringIO()
    progress = Progress(["hosts", "runs"], out)
    with progress.step("hosts"):
        progress.note("host01 boots")
    with progress.step("runs"):
        pass
    lines = out.getvalue().splitlines()
    assert all(re.match(r"\[ +\d+\.\d s\] ", line) for line in lines)
    assert [line.split("] ", 1)[1] for line in lines[:2]] == ["1/2 hosts (next: runs)", "  host01 boots"]
    assert "done in" in lines[2]
    assert lines[3].endswith("2/2 runs (next: nothing)")
    assert set(progress.seconds) == {"hosts", "runs"}


def test_a_step_of_which_nothing_is_heard_says_that_it_goes_on():
    out = io.StringIO()
    progress = Progress(["image"], out, silence_s=0.05)
    with progress.step("image"):
        deadline = time.monotonic() + 30
        while "image goes on; nothing new for" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "image goes on; nothing new for" in out.getvalue()


def test_a_step_that_fails_is_not_said_to_be_done():
    out = io.StringIO()
    progress = Progress(["hosts"], out)
    with pytest.raises(CommandError), progress.step("hosts"):
        raise CommandError("host01 does not answer")
    assert "done" not in out.getvalue()
    assert progress.seconds == {}


# -- playbooks that fail -----------------------------------------------------------------------------------


def play(folder, tasks):
    """Run these tasks on this machine as a playbook of a project in ``folder``."""
    (folder / "playbooks").mkdir()
    content = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
    (folder / "playbooks/p.yml").write_text(yaml.safe_dump(content))
    (folder / "ansible.cfg").write_text((PROJECT / "ansible.cfg").read_text())
    (folder / "hosts").write_text("one ansible_connection=local\ntwo ansible_connection=local\n")
    out = io.StringIO()
    progress = Progress(["p"], out)
    with pytest.raises(PlaybookError) as failed, progress.step("p"):
        run_playbook(progress, folder, folder / "hosts", "p.yml", folder / "logs/p.log")
    return str(failed.value), out.getvalue()


def test_a_playbook_that_fails_gives_the_words_of_its_failed_tasks_and_no_more(tmp_path):
    said, progress = play(
        tmp_path,
        [
            {"name": "Ignored", "ansible.builtin.fail": {"msg": "nobody minds"}, "ignore_errors": True},
            {"name": "Refuse", "ansible.builtin.fail": {"msg": "Nothing was changed:\n- no memory\n\n- no disk"}},
        ],
    )
    assert said == (
        "playbooks/p.yml failed.\n"
        "one, two: Nothing was changed:\n- no memory\n\n- no disk\n"
        f"The whole log: {tmp_path}/logs/p.log"
    )
    assert "Refuse" in progress


def test_a_playbook_that_names_no_failed_task_gives_its_last_lines(tmp_path):
    said, _ = play(tmp_path, [{"no.such.module": {}}])
    assert "no.such.module" in said


def test_hosts_that_are_not_reached_are_named_with_the_reason():
    output = """
TASK [Look] ********
fatal: [host02]: UNREACHABLE! =>
    changed: false
    msg: 'Failed to connect to the host via ssh: Connection refused'
    unreachable: true
failed: [host03] (item=a) =>
    item: a
    msg: no a here

PLAY RECAP ****
host02 : ok=0
"""
    assert failures(output) == [
        "host02: Failed to connect to the host via ssh: Connection refused",
        "host03: no a here",
    ]


def test_a_log_that_can_not_be_written_is_named_with_the_way_out(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(PlaybookError, match=r"logs/p\.log can't be written .* run this as root"):
        run_playbook(Progress(["p"]), tmp_path, tmp_path / "hosts", "p.yml", tmp_path / "logs/p.log")


# -- questions without an answer ---------------------------------------------------------------------------


def services(answer):
    client = httpx.Client(base_url="https://head01:7412", transport=httpx.MockTransport(answer))
    return Services(client, client, client)


def test_a_service_that_does_not_answer_is_named():
    def refuse(request):
        raise httpx.ConnectError("Connection refused", request=request)

    with pytest.raises(CommandError, match="https://head01:7412: no answer to GET /membership: Connection refused"):
        services(refuse).membership()


def test_a_service_that_refuses_is_told_with_its_own_words():
    with pytest.raises(CommandError, match="/hosts/host02/restore answered 409: host02 still has g1"):
        services(lambda request: httpx.Response(409, text="host02 still has g1")).restore("host02")


def test_a_command_that_does_not_end_is_named(monkeypatch):
    monkeypatch.setattr(site, "COMMAND_S", 0.1)
    monkeypatch.setattr(Site, "ssh", lambda self, host, *argv: ["sleep", "60"])
    with pytest.raises(CommandError, match=r"host02: dmesg -T did not end within 0\.1 s"):
        Site(Path("hosts"), {}, {}).run("host02", "dmesg", "-T")


def test_an_inventory_that_can_not_be_read_is_named(tmp_path):
    (tmp_path / "hosts.yml").write_text("all: [unclosed")
    with pytest.raises(CommandError, match=f"the inventory {tmp_path}/hosts.yml can't be read"):
        read_inventory(tmp_path / "hosts.yml")


def dmesg(monkeypatch, *lines, status=0):
    done = subprocess.CompletedProcess(["dmesg"], status, "\n".join(lines), "dmesg: Operation not permitted\n")
    monkeypatch.setattr(observe, "subprocess", SimpleNamespace(run=lambda *_, **__: done))


def test_a_kernel_log_that_can_not_be_read_is_said_and_not_taken_for_an_empty_one(monkeypatch):
    dmesg(monkeypatch, status=1)
    with pytest.raises(CommandError, match=r"Operation not permitted.*where root may read it"):
        kernel_log()


def test_only_guests_of_the_host_that_were_killed_since_are_counted(monkeypatch):
    guest = KILL.format(host="host02", task="qemu-system-x86")
    dmesg(monkeypatch, guest, KILL.format(host="host02", task="python3"), KILL.format(host="host03", task="qemu"))
    assert OomWatch("host02", since=28000.0).killed() == [guest]
    assert OomWatch("host02", since=28200.0).killed() == []


@pytest.fixture(autouse=True)
def own_lock(monkeypatch, tmp_path):
    """A lock that a demonstration on this machine does not hold."""
    monkeypatch.setattr(demonstration, "LOCK", tmp_path / "lock")


def test_a_second_demonstration_is_told_who_uses_the_testbed():
    refused = pytest.raises(CommandError, match=rf"in use by process {os.getpid()}, .* wait for its end")
    with demonstration.alone(), refused, demonstration.alone():
        pytest.fail("two at once")
    with demonstration.alone():
        pass
    assert not demonstration.LOCK.exists()


def test_who_may_not_lock_is_told_to_be_root(monkeypatch, tmp_path):
    monkeypatch.setattr(demonstration, "LOCK", tmp_path / "no folder" / "lock")
    with pytest.raises(CommandError, match=r"lock can't be opened .*: run this as root"), demonstration.alone():
        pytest.fail("without a lock")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (CommandError("host01: no answer"), 1, "The demonstration stopped: host01: no answer"),
        (KeyboardInterrupt(), 130, "'make clean-testbed' removes it"),
    ],
)
def test_what_ends_the_demonstration_is_one_sentence(monkeypatch, capsys, error, status, said):
    def end(*_):
        raise error

    monkeypatch.setattr(demo, "run_demonstration", end)
    monkeypatch.setattr(sys, "argv", ["demo"])
    assert demo.main() == status
    assert said in capsys.readouterr().err


# -- runs, one after the other ----------------------------------------------------------------------------


class Hosts:
    """Hosts as the services tell of them; a guest that is removed gives its memory back."""

    def __init__(self, gives_back=True):
        self.removed, self.gives_back = [], gives_back

    def membership(self):
        guests = [Guest(f"g{n}", f"u{n}", f"host0{n}", "10.0.2.1", 1, [0], 0, "demo") for n in (1, 2)]
        return Membership(1, [Host(name, "10.0.1.1") for name in ("host01", "host02")], guests, [])

    def latest(self):
        full = {"host01": 0.5, "host02": 0.5 if self.removed and self.gives_back else 0.78, "g2": 0.9}
        return {
            node: Sample(node, "host", 0.0, {"mem_total_kb": 100.0, "mem_available_kb": 100 - 100 * share}, [])
            for node, share in full.items()
        }

    def remove_guest(self, name):
        self.removed.append(name)


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setattr(runs, "wait_until", lambda condition, timeout: condition())
    monkeypatch.setattr(Site, "run", lambda *_, **__: "")
    return Site(Path("hosts"), {}, {"hypervisor": ["host01", "host02"]})


def test_a_host_that_keeps_its_memory_loses_the_guests_that_wait_on_it(cluster):
    hosts = Hosts()
    runs.calm_down(cluster, hosts, Progress([], io.StringIO()))
    assert hosts.removed == ["g2"]


def test_a_host_that_keeps_its_memory_all_the_same_is_named_with_the_way_out(cluster):
    with pytest.raises(runs.DemonstrationError, match=r"in use on host02 78%: 'make clean-testbed'"):
        runs.calm_down(cluster, Hosts(gives_back=False), Progress([], io.StringIO()))


def test_what_runs_have_shown_is_reported_also_where_a_later_one_can_not_begin(monkeypatch, tmp_path):
    whole = make_record()

    def perform(site, services, progress, scale, name, *_):
        if name == "memory_hog_application":
            raise runs.DemonstrationError("memory stayed in use on host10 78%")
        return whole.runs[name]

    def record(site, scale, done, wall_s):
        return replace(whole, runs={run.name: run for run in done}, wall_s=wall_s)

    for name, played in {
        "kernel_log": list,
        "run_playbook": lambda *_: None,
        "read_inventory": lambda _: None,
        "connect": lambda _: None,
        "perform": perform,
        "make_record": record,
    }.items():
        monkeypatch.setattr(demonstration, name, played)
    with pytest.raises(runs.DemonstrationError, match="host10"):
        demonstration.run_demonstration(tmp_path, SCALES["default"], testbed_only=False)
    report = json.loads((tmp_path / "build/demo/report.json").read_text())
    assert report["protected"]["job_completed"] is True
    assert report["memory_hog_application"] is None
    assert set(report["wall_s"]) == {"testbed", "control", "protected"}


def test_the_outcome_is_told_as_it_was_seen(capsys):
    record = make_record()
    assert demonstration.tell(build_report(record), Path("build/demo")) == 0
    told = capsys.readouterr().out
    assert "1  Avoidance off: the job died; 2 guests lost   (as it should be)" in told
    assert (
        "2  Avoidance on: the job completed; 7.3 s from the alarm until all ranks ran again   (as it should be)" in told
    )
    assert "2 guests moved from host02 to host05." in told
    record.runs["protected"].evacuations, record.runs["protected"].exit_status = [], 1
    assert demonstration.tell(build_report(record), Path("build/demo")) == 1
    told = capsys.readouterr().out
    assert "2  Avoidance on: the job died;" in told
    assert "(NOT as it should be)" in told
    assert "No evacuation took place." in told
    assert "None" not in told


# -- scales ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES.values(), ids=str)
def test_each_scale_has_the_hosts_it_names_and_their_guests_fit(scale):
    listed = read_inventory(PROJECT / "inventories" / scale.inventory)
    hosts = listed.groups["hypervisor"]
    assert len(hosts) == scale.hosts_in_use + scale.hosts_idle
    for host in hosts:
        assert listed.hosts[host]["testbed_host_memory_mib"] >= scale.guests_per_host * scale.guest_memory_mb


def test_the_papers_scale_is_as_published():
    paper = SCALES["paper"]
    assert (paper.hosts_in_use, paper.hosts_idle, paper.guests_per_host, paper.guests) == (8, 2, 8, 64)


def test_the_papers_cluster_has_ten_nodes_of_four_cpus_with_six_cores():
    listed = read_inventory(PROJECT / "inventories/wtb")
    assert len(listed.groups["hypervisor"]) == 10
    for host in listed.groups["hypervisor"]:
        left_to_the_host = set(range(24)) - set(listed.hosts[host]["hypervisor_cores"])
        assert left_to_the_host == {0, 6, 12, 18}
