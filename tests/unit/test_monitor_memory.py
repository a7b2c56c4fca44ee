"""What the monitor remembers, learns and finds: across collections, jobs and its own restarts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from display_site import free_port
from services_served import served

from failavoid.monitor.archive import Archive
from failavoid.monitor.evaluation import Evaluator
from failavoid.monitor.findings import Findings, of_nodes
from failavoid.monitor.groups import Group, application_of, groups_of
from failavoid.monitor.learning import Learner
from failavoid.monitor.migrations import durations
from failavoid.monitor.scores import Scorer, score
from failavoid.monitor.service import Monitor, build_app
from failavoid.monitor.settings import Settings
from failavoid.monitor.state import State
from failavoid.monitor.store import Collection, Store
from failavoid.prediction.models import BINS
from failavoid.prediction.modes import Mode
from failavoid.services import Tls
from failavoid.shared.messages import (
    METRICS,
    Evacuation,
    Finding,
    Guest,
    Host,
    Job,
    JobRequest,
    Membership,
    NodeHealth,
    Prediction,
    Sample,
    Step,
)
from failavoid.shared.tokens import mint

PROJECT = Path(__file__).parents[2]
SECRET = b"s" * 48
HOSTS = ("a", "b", "c", "d", "e")
KEY = ("robust", "memory", "job-1", "a")


def request(name="job"):
    return JobRequest("ada", 1000, 1000, "key", 1, name=name)


def collected(second, share, **others):
    values = np.full((len(METRICS), len(HOSTS)), np.nan)
    values[METRICS.index("mem_total_kb")] = 1.0
    values[METRICS.index("mem_available_kb")] = 1 - np.asarray(share, dtype=float)
    values[METRICS.index("guests_rss_kb")] = 0.1
    for name, row in others.items():
        values[METRICS.index(name)] = row
    return Collection(float(second), {host: column for column, host in enumerate(HOSTS)}, values)


def run(evaluator, rows, group=None, begin=0, **others):
    """Judge one row a second; returns all alarms raised, and those withdrawn."""
    groups = [group or Group("job-1", "app", "", HOSTS)]
    raised, withdrawn = [], []
    for second, row in enumerate(rows, begin):
        more = {name: values[second - begin] for name, values in others.items()}
        decision = evaluator.evaluate(collected(second, row, **more), groups, float(second))
        raised += decision.raised
        withdrawn += decision.withdrawn
    return raised, withdrawn


def rows_with(host, values, others=0.4):
    rows = np.full((len(values), len(HOSTS)), others)
    rows[:, HOSTS.index(host)] = values
    return rows + np.random.default_rng(1).normal(0, 0.001, rows.shape)


# --- alarms over time


def test_an_alarm_whose_cause_is_gone_is_withdrawn():
    values = np.concatenate([np.full(20, 0.4), np.full(15, 0.8), np.full(20, 0.4)])
    raised, withdrawn = run(Evaluator(Settings()), rows_with("b", values))
    assert [alarm.host for alarm in raised] == ["b"]
    assert withdrawn == raised


def test_a_temperature_is_judged_as_memory_is():
    mode = Mode("heat", "temperature_c", 40, 100)
    heat = np.full((40, len(HOSTS)), 55.0) + np.random.default_rng(1).normal(0, 0.3, (40, len(HOSTS)))
    heat[15:, 2] = 95.0
    raised, _ = run(Evaluator(Settings(modes=[mode])), rows_with("a", np.full(40, 0.4)), temperature_c=heat)
    (alarm,) = raised
    assert (alarm.host, alarm.metric) == ("c", "temperature_c")
    assert alarm.value == pytest.approx(95, abs=1)
    assert alarm.evidence.centre == pytest.approx(55, abs=1)
    assert alarm.evidence.threshold == pytest.approx(90)
    assert alarm.evidence.settings["mode"] == "heat"


def test_a_leak_inside_a_guest_is_no_reason_to_move_unless_there_is_room_for_all_of_it():
    guests = np.full((40, len(HOSTS)), 0.1)
    guests[15:, 1] = 0.5
    rows = rows_with("b", np.concatenate([np.full(15, 0.4), np.full(25, 0.8)]))
    for room in (False, True):
        raised, _ = run(Evaluator(Settings(), has_room=lambda _host, room=room: room), rows, guests_rss_kb=guests)
        assert raised[0].evidence.pressure_from == "guests"
        assert raised[0].evidence.move_recommended is room


def test_an_applications_own_settings_are_its_own():
    settings = Settings(applications={"hungry": {"threshold": 0.85}})
    rows = rows_with("b", np.concatenate([np.full(15, 0.4), np.full(25, 0.8)]))
    assert run(Evaluator(settings), rows)[0]
    assert not run(Evaluator(settings), rows, Group("job-1", "hungry", "", HOSTS))[0]


@pytest.mark.parametrize("changes", [{"treshold": 0.8}, {"threshold": 2.0}])
def test_an_applications_wrong_setting_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Settings(applications={"hungry": changes})


def test_most_hosts_in_danger_is_pressure_and_no_alarm():
    state = State("")
    evaluator = Evaluator(Settings(), state)
    raised, _ = run(evaluator, np.full((30, len(HOSTS)), 0.8))
    run(evaluator, np.full((30, len(HOSTS)), 0.4), begin=30)
    assert not raised
    (finding,) = state.all(Finding)
    assert (finding.kind, finding.subject) == ("pressure", "job-1")
    assert finding.ended is not None


# --- predictions and what came of them


def test_a_prediction_that_comes_true_has_its_lead_and_one_that_clears_was_false():
    state = State("")
    growing = np.clip(0.4 + 0.01 * (np.arange(90.0) - 20), 0.4, 0.95)
    run(Evaluator(Settings(), state), rows_with("b", growing))
    by_rule = {one.rule: one for one in score(state.all(Prediction))}
    assert by_rule["threshold"].true == 1
    assert by_rule["threshold"].lead_median_s == pytest.approx(15, abs=2)
    assert by_rule["paper"].missed == 1  # of five hosts it sees nothing
    assert by_rule["paper"].recall == 0.0
    state = State("")
    run(
        Evaluator(Settings(), state),
        rows_with("b", np.concatenate([np.full(20, 0.4), np.full(9, 0.8), np.full(20, 0.4)])),
    )
    assert {one.rule: one.false for one in score(state.all(Prediction))} == {"robust": 1, "threshold": 1}


def test_a_prediction_whose_host_leaves_its_job_stays_unknown():
    state = State("")
    scorer = Scorer(state, 3600, "robust")
    scorer.predict(KEY, 10.0, 0.8, 60.0, 0.05)
    scorer.follow({("job-1", "b")}, 20.0)
    (one,) = state.all(Prediction)
    assert (one.outcome, one.ended, one.acting) == ("unknown", 20.0, True)
    assert score([one])[0].precision is None


def test_what_is_open_is_followed_on_after_a_restart_and_teaches_too(tmp_path):
    state = State(str(tmp_path))
    Scorer(state, 3600, "robust").predict(KEY, 10.0, 0.8, 60.0, 0.05)
    state.close()
    again = State(str(tmp_path))
    scorer = Scorer(again, 3600, "robust")
    scorer.failed(["robust"], "memory", "job-1", "a", 65.0, 0.9)
    (one,) = again.all(Prediction)
    assert (one.outcome, one.lead_s) == ("true", 55.0)
    again.close()
    (seen,) = Scorer(State(str(tmp_path)), 3600, "robust").calibration("memory").seen
    low, high = one.predicted_failure_interval_s
    assert seen == (60.0, pytest.approx(np.log(55 / 60) / 0.05), low <= 55 <= high)


def test_how_good_the_rules_were_is_shown_on_the_command_line():
    nobody = "http://127.0.0.1:1"
    settings = Settings(
        listen="127.0.0.1", port=free_port(), tls=Tls(enabled=False), resource_manager=nobody, controller=nobody
    )
    monitor = Monitor(settings, SECRET)
    scorer = monitor.evaluator.scorer
    for host, lead_s in (("a", 40.0), ("b", 60.0), ("c", 0.0)):
        if lead_s:
            scorer.predict(("robust", "memory", "job-1", host), 100.0, 0.8, 50.0, 0.2)
        scorer.failed(["robust"], "memory", "job-1", host, 100.0 + lead_s, 0.9)
    scorer.predict(("robust", "memory", "job-1", "d"), 100.0, 0.8, 50.0, 0.2)
    scorer.cleared(("robust", "memory", "job-1", "d"), 130.0)
    try:
        with served(build_app(monitor, SECRET)) as url:
            environment = {
                **os.environ,
                "FAILAVOID_MONITOR_URL": url,
                "FAILAVOID_TOKEN": mint(SECRET, "reader", "someone"),
                "COLUMNS": "200",
            }
            command = [sys.executable, "-m", "failavoid.cli.main", "predictions"]
            shown, document = (
                subprocess.run(
                    [*command, *more], env=environment, cwd=PROJECT, capture_output=True, text=True, check=True
                )
                for more in ((), ("--json",))
            )
    finally:
        for source in monitor.sources:
            source.start()
            source.stop()
        monitor.state.close()
    (rule,) = json.loads(document.stdout)["rules"]
    assert (rule["true"], rule["false"], rule["missed"]) == (2, 1, 1)
    assert (rule["precision"], rule["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert rule["lead_median_s"] == pytest.approx(50)
    (line,) = [line for line in shown.stdout.splitlines() if "robust *" in line]
    assert re.findall(r"[\d.]+ %|\b\d+\b", line)[:5] == ["3", "2", "1", "0", "0"], line
    assert "missed" in shown.stdout


# --- learning


def test_an_application_is_learned_from_jobs_that_complete_and_known_after_a_restart(tmp_path):
    state = State(str(tmp_path))
    groups = [Group("job-1", "app", "", HOSTS)]
    for outcome, runs in (("failed", 0), ("completed", 1)):
        learner = Learner(state, "unavailable")
        for _ in range(100):
            learner.take(groups, np.full(5, 0.4), np.array([False, False, False, False, True]))
        learner.close(Membership(1, [], [], [Job("job-1", request(), outcome)]))
        assert state.distribution("app", "unavailable").runs == runs
    state.close()
    learner = Learner(State(str(tmp_path)), "unavailable")
    found = learner.relative_probability(["app", "other"], np.array([0, 0, 1]), np.array([0.4, 0.8, 0.8]))
    assert found == pytest.approx([1.0, 0.0, 1.0], abs=0.2)


def test_what_a_job_used_before_a_restart_is_learned_when_it_completes(tmp_path):
    groups, nobody = [Group("job-1", "app", "", HOSTS)], np.zeros(5, dtype=bool)
    for used in (0.4, 0.6):
        state = State(str(tmp_path))
        learner = Learner(state, "unavailable")
        learner.close(Membership(-1, [], [], []))  # the resource manager was not heard yet: that ends no job
        for _ in range(100):
            learner.take(groups, np.full(5, used), nobody)
        learner.keep()
        if used == 0.4:
            state.close()
    learner.close(Membership(1, [], [], [Job("job-1", request(), "completed")]))
    counts = state.distribution("app", "unavailable").counts
    assert counts[[int(0.4 * BINS), int(0.6 * BINS)]] == pytest.approx([0.5, 0.5], abs=0.01)
    learner.keep()
    assert state.running("unavailable") == {}


def test_where_peers_cannot_tell_what_was_learned_does():
    state = State("")
    learner = Learner(state, "unavailable")
    for _ in range(100):
        learner.take([Group("job-0", "app", "", HOSTS)], np.full(5, 0.4), np.zeros(5, dtype=bool))
    learner.close(Membership(1, [], [], [Job("job-0", request(), "completed")]))
    rows = rows_with("b", np.concatenate([np.full(15, 0.4), np.full(25, 0.8)]))
    two = Group("job-1", "app", "", ("a", "b"))
    assert run(Evaluator(Settings(), state), rows, two)[0][0].host == "b"
    assert not run(Evaluator(Settings()), rows, two)[0]


@pytest.mark.parametrize(
    ("name", "command", "application"),
    [
        ("lammps", ["./lmp"], "lammps"),
        ("job", ["/opt/lmp/bin/lmp", "-in", "x"], "lmp"),
        ("job", ["python3", "-m", "failavoid.mpi", "/home/ada/app.py"], "app.py"),
        ("job", [], "job"),
    ],
)
def test_an_application_is_known_by_its_jobs_name_or_its_program(name, command, application):
    assert application_of(Job("job-1", request(name), "running", command=command)) == application


def test_hosts_of_different_hardware_are_not_compared():
    hosts = [
        Host(name, "", memory_kb=kb, numa={"0": [0, 1]}) for name, kb in (("a", 2**20), ("b", 2**20 + 99), ("c", 2**22))
    ]
    guests = [Guest(f"g{n}", "u", one.name, "", 0, [], 0, "ada", "ready", "job-1") for n, one in enumerate(hosts)]
    groups = groups_of(Membership(1, hosts, guests, [Job("job-1", request(), "running")]))
    assert [(group.name, group.hosts) for group in groups] == [("job-1/2x1g", ("a", "b")), ("job-1/2x4g", ("c",))]


def test_the_time_of_an_evacuation_is_from_its_first_step_to_the_release():
    steps = [Step("leased", 10.0, 10.1), Step("released", 17.0, 18.5)]
    assert durations([Evacuation("e", "a", "job-1", "RETIRED", steps=steps), Evacuation("f", "a", "j", "LEASED")]) == [
        8.5
    ]


# --- how samples arrive


def sent(store, host, delay, lost=0, begin=0.0):
    for second in range(70):
        store.take(
            Sample(host, "host", begin + second, {"mem_total_kb": 1.0, "mem_available_kb": 0.5}),
            begin + second + delay,
            lost=lost,
        )


def test_loss_delay_a_clock_that_is_off_and_silence_are_noticed():
    store = Store(3600.0, 5.0)
    sent(store, "well", 0.01)
    sent(store, "lossy", 0.01, lost=1)
    sent(store, "behind", 7.0)
    sent(store, "silent", 0.01, begin=-60.0)
    health = {node.node: node for node in store.health(70.0)}
    assert health["well"].recent_loss == 0
    assert health["lossy"].recent_loss == pytest.approx(0.5)
    assert health["lossy"].lost == 70
    assert health["behind"].skew_s == pytest.approx(-7.0)
    assert of_nodes(health.values(), dict.fromkeys(health, 0.0), 70.0).keys() == {
        ("lossy", "lossy"),
        ("skewed", "behind"),
        ("silent", "silent"),
    }


def test_a_node_of_a_job_that_was_never_heard_is_silent_too():
    members = {"new": 90.0, "never-heard": 0.0}
    assert of_nodes([], members, 100.0).keys() == {("silent", "never-heard")}


def test_a_node_that_samples_seldom_is_silent_only_when_it_owes_several_samples():
    store = Store(3600.0, 5.0)
    for second in (0.0, 10.0, 20.0, 900.0, 910.0):  # an outage says nothing of how often it samples
        store.take(Sample("guest-1", "guest", second, {"mem_total_kb": 1.0}), second)
    assert [store.health(910.0 + later)[0].silent for later in (10.5, 29.0, 31.0)] == [False, False, True]


def test_a_host_whose_source_brings_samples_seldom_is_known_between_them():
    store = Store(3600.0, 5.0)
    for second in (0.0, 10.0, 20.0):
        store.take(Sample("a", "host", second, {"mem_total_kb": 10.0, "mem_available_kb": 4.0}), second)
    known = [np.isfinite(store.collect(when).shares("unavailable")[0]) for when in (29.0, 44.0, 46.0)]
    assert known == [True, True, False]


def test_a_host_whose_clock_is_behind_is_judged_by_what_it_sends_now():
    store = Store(3600.0, 5.0)
    sent(store, "behind", 20.0)
    assert store.collect(89.5).shares("unavailable") == pytest.approx([0.5])


def test_the_past_stays_within_its_memory():
    store = Store(3600.0, 5.0, history_mb=1)
    for second in range(3000):
        store.take(Sample("a", "host", float(second), {"mem_total_kb": 1.0}), float(second), b"x" * 750)
    times = [float(time) for time in re.findall(r'"time": ([0-9.]+)', store.history(0.0))]
    assert len(times) == 1048
    assert times[-1] == 2999.0


def test_what_several_sources_bring_hides_nothing_from_the_history():
    store = Store(3600.0, 5.0)
    for arrived in (1.0, 10.2, 10.0):
        store.take(Sample("a", "host", arrived, {"mem_total_kb": 1.0}), arrived)
    assert [one["time"] for one in json.loads(store.history(10.1))] == [10.2]


def test_a_finding_is_said_when_it_begins_and_when_it_is_over():
    state = State("")
    findings = Findings(state)
    node = NodeHealth("a", "host", 0.0, 10, 0, 0.0, 0.0, 0.0, True)
    for now, members in ((1.0, {"a": 1.0}), (2.0, {"a": 1.0}), (3.0, {})):
        findings.look("nodes", now, of_nodes([node], members, now))
    (finding,) = state.all(Finding)
    assert (finding.kind, finding.subject, finding.time, finding.ended) == ("silent", "a", 1.0, 3.0)


# --- the archive


def test_what_was_archived_is_known_again(tmp_path):
    archive = Archive(tmp_path, 100)
    archive.start()
    groups = [Group("job-1", "app", "", HOSTS)]
    for second in range(90):
        archive.add(collected(1000.0 + second, np.full(5, 0.4)), groups if second < 80 else [])
    archive.stop()
    found = list(Archive(tmp_path, 100).recent(1000.0))
    assert [collection.time for collection, _ in found] == [1000.0 + second for second in range(90)]
    assert found[0][1] == groups
    assert found[89][1] == []
    assert found[5][0].shares("unavailable") == pytest.approx(np.full(5, 0.4))


@pytest.mark.parametrize("written", [False, True])
def test_pieces_that_a_killed_monitor_left_are_taken_up_unless_their_minute_was_written(tmp_path, written):
    archive = Archive(tmp_path, 100)
    archive.start()
    for second in range(5):
        archive.add(collected(1000.0 + second, np.full(5, 0.4)), [Group("job-1", "app", "", HOSTS)])
    archive.stop()
    (minute,) = tmp_path.glob("*.npz")
    piece = tmp_path / "open" / f"{minute.stem}+00.npz"
    piece.write_bytes(minute.read_bytes())
    if not written:
        minute.unlink()
    found = [collection.time for collection, _ in Archive(tmp_path, 100).recent(1000.0)]
    assert found == [1000.0 + second for second in range(5)]
    assert not piece.exists()


def test_the_archive_stays_within_its_limit(tmp_path):
    archive = Archive(tmp_path, 1)
    (tmp_path / "00000000-000000.npz").write_bytes(bytes(2 << 20))
    archive.start()
    archive.add(collected(1000.0, np.full(5, 0.4)), [])
    archive.stop()
    assert [path.name for path in tmp_path.glob("*.npz")] == ["19700101-001640.npz"]
