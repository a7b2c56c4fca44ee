"""A service runs a playbook: what the tasks said comes back, secrets stay where they belong, nothing is left."""

import os
import stat
import threading
import time
from pathlib import Path

import psutil
import pytest

from failavoid import playbook_runner
from failavoid.playbook_runner import project_folder, run_playbook

INVENTORY = """
all:
  hosts:
    one: {ansible_connection: local}
    two: {ansible_connection: local}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a playbook that is given as text; private folders lie in tmp_path/ram."""
    (tmp_path / "ram").mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "ram"))
    (tmp_path / "hosts.yml").write_text(INVENTORY)

    def run(text, variables=None, **options):
        (tmp_path / "playbook.yml").write_text(text)
        options = {"timeout_s": 60, "ident": "run-1", **options}
        return run_playbook(
            str(tmp_path / "playbook.yml"), tmp_path / "hosts.yml", variables or {}, log_dir=tmp_path / "log", **options
        )

    return run


def play(*tasks, hosts="all"):
    return f"- hosts: {hosts}\n  gather_facts: false\n  tasks:\n" + "".join(f"    - {task}\n" for task in tasks)


SAY = "{name: Say, ansible.builtin.command: 'echo {{ word }}', changed_when: false}"
SLEEP = "{name: Sleep, ansible.builtin.command: sleep 60, changed_when: false}"


def test_what_each_task_said_on_each_host_comes_back(run):
    before, events = time.time(), []
    result = run(play(SAY), {"word": "hello"}, on_event=lambda host, task, said: events.append((host, task)))
    assert result.ok
    assert (result.rc, result.status, result.failures) == (0, "successful", [])
    assert {host: tasks["Say"]["stdout"] for host, tasks in result.host_results.items()} == {
        "one": "hello",
        "two": "hello",
    }
    said = result.host_results["one"]["Say"]
    assert before < said["_began"] < said["_ended"] < time.time()
    assert sorted(events) == [("one", "Say"), ("two", "Say")]


def test_a_failure_is_a_sentence_that_names_host_and_task(run):
    result = run(play("{name: Try, ansible.builtin.fail: {msg: no bridge br0}, when: inventory_hostname == 'two'}"))
    assert not result.ok
    assert result.rc == 2
    assert result.failures == ["two: Try: no bridge br0"]


def test_of_a_loop_the_failed_items_are_named(run):
    loop = "{name: Try, ansible.builtin.fail: {msg: 'bad {{ item }}'}, when: item > 1, loop: [1, 2, 3]}"
    result = run(play(loop), limit="one")
    assert result.failures == ["one: Try: bad 2", "one: Try: bad 3"]


def test_ignored_and_rescued_failures_are_none(run):
    ignored = "{name: Try, ansible.builtin.fail: {msg: never mind}, ignore_errors: true}"
    rescued = "{block: [{name: Try again, ansible.builtin.fail: }], rescue: [{ansible.builtin.meta: noop}]}"
    assert run(play(ignored)).ok
    assert run(play(rescued)).ok


def test_a_playbook_that_matches_no_host_is_not_ok_though_ansible_says_0(run):
    result = run(play(SAY, hosts="nobody"), {"word": "x"})
    assert result.rc == 0
    assert not result.ok
    assert "no host of the inventory matched" in result.failures[0]


def test_a_playbook_that_cannot_be_read_says_why(run):
    result = run("- hosts: all\n  tasks: [{no_such_module: }]\n")
    assert not result.ok
    assert "no_such_module" in " ".join(result.failures)


def test_a_host_that_cannot_be_reached_is_named(run):
    unreachable = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1, "word": "x"}
    result = run(play(SAY), unreachable, limit="one")
    assert result.failures[0].startswith("one: Say: ")
    assert not result.ok


def test_what_is_not_there_is_said_before_anything_runs(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.yml does not exist"):
        run_playbook("none.yml", tmp_path / "hosts.yml", {}, "x", tmp_path, 10)
    with pytest.raises(FileNotFoundError, match=r"no-hosts does not exist"):
        run_playbook("site.yml", tmp_path / "no-hosts", {}, "x", tmp_path, 10)


def test_only_the_log_stays(run, tmp_path):
    result = run(play(SAY), {"word": "hello"})
    run(play(SAY), {"word": "hello"})
    assert list((tmp_path / "ram").iterdir()) == []
    assert result.log == tmp_path / "log" / "run-1.log"
    assert result.log.read_text().count("TASK [Say]") == 2  # a repeated run keeps its past
    assert not result.log.stat().st_mode & stat.S_IRWXO


def test_of_many_logs_the_newest_stay(run, tmp_path, monkeypatch):
    monkeypatch.setattr(playbook_runner, "LOGS_KEPT", 2)
    (tmp_path / "log").mkdir()
    for age, name in enumerate(("newer", "older", "oldest")):
        (tmp_path / "log" / f"{name}.log").touch()
        os.utime(tmp_path / "log" / f"{name}.log", (1000 - age, 1000 - age))
    run(play(SAY), {"word": "hello"})
    assert sorted(path.name for path in (tmp_path / "log").glob("*.log")) == ["newer.log", "run-1.log"]


def test_secrets_are_on_no_command_line_and_in_no_file_that_others_can_read(run, tmp_path):
    seen = []

    def look(_host, _task, _said):
        running = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        seen.append(" ".join(word for command in running for word in command))
        for folder, _, names in os.walk(tmp_path / "ram"):
            for name in names:
                path = Path(folder) / name
                open_to = [path, *path.parents[: len(path.relative_to(tmp_path / "ram").parts)]]
                assert any(not place.stat().st_mode & stat.S_IRWXO for place in open_to)

    hidden = "{name: Say, no_log: true, ansible.builtin.command: 'echo {{ word }}', changed_when: false}"
    result = run(play(hidden), {"word": "very-secret-word"}, on_event=look)
    assert result.ok
    assert len(seen) == 2
    assert "ansible-playbook" in seen[0]
    assert "very-secret-word" not in "".join(seen)
    assert "very-secret-word" not in result.log.read_text()


def test_templates_in_variables_reach_tasks_but_runs_do_not_leak_into_each_other(run):
    assert run(play(SAY), {"word": "first"}).ok
    assert "undefined" in run(play(SAY)).failures[0]


@pytest.mark.parametrize("how", ["cancelled", "timeout"])
def test_a_run_that_is_ended_leaves_no_process(run, how):
    began = time.monotonic()
    before = psutil.Process().children(recursive=True)
    cancel = threading.Event()
    if how == "cancelled":
        threading.Timer(2.0, cancel.set).start()
        result = run(play(SLEEP), cancelled=cancel.is_set)
        assert result.status == "canceled"
        assert result.failures == ["playbook.yml was cancelled"]
    else:
        result = run(play(SLEEP), timeout_s=2)
        assert result.status == "timeout"
        assert result.failures == ["playbook.yml was ended because its time was up"]
    assert not result.ok
    assert time.monotonic() - began < 30
    assert psutil.Process().children(recursive=True) == before


def test_runs_in_threads_do_not_disturb_each_other(run, tmp_path):
    results = {}
    (tmp_path / "playbook.yml").write_text(play(SAY))

    def one(word):
        results[word] = run_playbook(
            str(tmp_path / "playbook.yml"), tmp_path / "hosts.yml", {"word": word}, word, tmp_path / "log", 60
        )

    threads = [threading.Thread(target=one, args=(word,)) for word in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {word: result.host_results["one"]["Say"]["stdout"] for word, result in results.items()} == {
        "a": "a",
        "b": "b",
        "c": "c",
    }


def test_the_projects_own_folders_are_found():
    assert (project_folder() / "module_utils").is_dir()
