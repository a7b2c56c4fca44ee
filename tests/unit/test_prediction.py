"""Back-tests, traces and what predictions teach: the parts of prediction that need no monitor."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from failavoid.cli.main import app
from failavoid.prediction.archives import Segment, read_job, read_segment, write_segment
from failavoid.prediction.backtest import Options, Run, replay, summarise
from failavoid.prediction.generate import (
    KINDS,
    SHAPES,
    Recipe,
    draw_application,
    draw_rate,
    healthy,
    leaking,
    write,
    write_run,
)
from failavoid.prediction.grouping import Grouping
from failavoid.prediction.models import BINS, Correlative, Distribution, robust
from failavoid.prediction.modes import Mode
from failavoid.prediction.scoring import Calibration, upper_bound_of_rate, wilson
from failavoid.prediction.traces import TraceError, read_labels, read_ldms, shorten
from failavoid.shared.messages import METRICS

PROJECT = Path(__file__).parents[2]
HEADER = "#Time,ProducerName,MemTotal,MemFree,MemAvailable,Active\n"


def rng():
    return np.random.default_rng(7)


def failavoid(*words):
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


# --- statistics of groups


def test_medians_of_ragged_groups_are_each_groups_own():
    values, ids = rng().random(500), rng().integers(0, 23, 500)
    values[::7] = np.nan
    medians = Grouping(ids).median(values)
    for group in range(23):
        assert medians[group] == pytest.approx(np.nanmedian(values[ids == group]))


def test_a_group_is_judged_the_same_whatever_other_groups_there_are():
    values = rng().normal(0.4, 0.01, 5)
    alone = robust(values, Grouping(np.zeros(5, dtype=np.intp)))
    for other in (3, 6, 7, 8, 30):
        both = robust(np.append(values, rng().normal(0.4, 0.1, other)), Grouping(np.repeat(np.arange(2), [5, other])))
        assert both.z[:5].tolist() == alone.z.tolist()


def test_several_metrics_together_show_what_none_shows_alone():
    load = rng().normal(0, 1, 400)
    rows = np.array([load, load + rng().normal(0, 0.05, 400)]).T
    model = Correlative.fit(rows)
    assert model.distance(np.array([[2.0, 2.0], [2.0, -2.0]])) == pytest.approx([2.0, 60], rel=0.7)
    assert model.distance(np.array([[2.0, -2.0]])) > 20
    with pytest.raises(ValueError, match="3 complete rows are too few for 2 metrics"):
        Correlative.fit(rows[:3])


def test_what_an_application_never_used_is_improbable_and_what_it_used_less_of_is_not():
    learned = Distribution.empty()
    learned.add(rng().normal(0.5, 0.02, 10000))
    assert learned.relative_probability(np.array([0.3, 0.5])) == pytest.approx([1.0, 1.0], abs=0.15)
    assert learned.relative_probability(np.array([0.65, 0.8, 1.4])) == pytest.approx([0, 0, 0], abs=1e-3)


def test_a_long_run_teaches_no_more_than_a_short_one():
    learned, short, long = Distribution.empty(), Distribution.empty(), Distribution.empty()
    short.add(np.full(100, 0.25))
    long.add(np.full(100000, 0.75))
    learned.merge(short)
    learned.merge(long)
    assert learned.runs == 2
    assert learned.counts[BINS // 4] == learned.counts[3 * BINS // 4]


# --- what predictions teach


def test_intervals_learn_to_hold_four_of_five_failures():
    calibration, inside = Calibration(), []
    for actual in 100 * np.exp(0.05 * 4 * rng().standard_normal(1500)):  # four times the doubt that was thought
        low, high = calibration.interval(100.0, 0.05)
        inside.append(low <= actual <= high)
        calibration.learn([(100.0, 0.05, actual, inside[-1])])
    assert np.mean(inside[300:]) == pytest.approx(0.8, abs=0.04)


def test_intervals_hold_four_of_five_failures_also_when_what_comes_is_not_like_what_was():
    calibration, held = Calibration(), []
    for number, one in enumerate(rng().standard_normal(400)):
        actual = 100 * np.exp(0.05 * one * (1 if number < 200 else 4))
        held.append(calibration.holds(100.0, 0.05, actual))
        calibration.learn([(100.0, 0.05, actual, held[-1])])
    assert np.mean(held[200:]) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("off", [0.1, 0.3, 1.0, 3.0])  # of the doubt
def test_intervals_hold_four_of_five_of_the_first_fifty_however_wrong_the_doubt_was(off):
    shares, random = [], rng()
    for _ in range(10):
        calibration, held = Calibration(), []
        for actual in 100 * np.exp(0.5 * off * random.standard_normal(50)):
            held.append(calibration.holds(100.0, 0.5, actual))
            calibration.learn([(100.0, 0.5, actual, held[-1])])
        shares.append(np.mean(held))
    assert np.mean(shares) == pytest.approx(0.8, abs=0.04)
    assert np.ptp(shares) < 0.15


def test_hosts_that_failed_together_widen_the_next_interval_less_than_as_many_one_by_one():
    came = [(100.0, 0.5, 100 * np.exp(0.5 * one), True) for one in rng().standard_normal(60)]
    together, apart = Calibration(), Calibration()
    for calibration in (together, apart):
        for one in came:
            calibration.learn([one])
    missed = [(*one[:3], False) for one in came[:10]]
    together.learn(missed)
    for one in missed:
        apart.learn([one])
    assert together.seen == apart.seen
    widths = [high - low for low, high in (calibration.quantiles(100.0) for calibration in (together, apart))]
    assert widths[0] < 0.9 * widths[1]


def test_what_short_predictions_teach_is_not_believed_of_long_ones():
    calibration = Calibration()
    noise = rng().standard_normal(200)
    for one in noise:
        for predicted, actual in ((20.0, 20.0 * np.exp(0.05 * one)), (2000.0, 2000.0 * np.exp(0.05 * 6 * one))):
            calibration.learn([(predicted, 0.05, actual, calibration.holds(predicted, 0.05, actual))])
    short, long = calibration.quantiles(20.0), calibration.quantiles(2000.0)
    assert short[1] - short[0] < 4
    assert long[1] - long[0] > 10
    assert Calibration(calibration.seen).quantiles(20.0) == short


def test_bounds_are_the_known_ones():
    assert upper_bound_of_rate(0, 1.0) == pytest.approx(2.996, abs=0.01)
    assert upper_bound_of_rate(3, 2.0) == pytest.approx(7.754 / 2, abs=0.01)
    assert wilson(10, 10) == pytest.approx([0.722, 1.0], abs=0.01)
    assert wilson(0, 0) is None


# --- failure modes


@pytest.mark.parametrize(("normal", "failure", "halfway"), [(40, 100, 70), (9000, 1000, 5000)])
def test_a_mode_puts_a_metric_on_the_rules_scale_and_back(normal, failure, halfway):
    mode = Mode("some", "temperature_c", normal, failure)
    assert [mode.share(value, 0.9) for value in (normal, halfway, failure)] == pytest.approx([0, 0.45, 0.9])
    assert mode.value(0.45, 0.9) == halfway


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("memory", "cpu", 0, 1), "memory is watched already"),
        (("heat", "warmth", 0, 1), "'metric' is 'warmth'"),
        (("heat", "cpu", 1, 1), "the same as 'normal'"),
    ],
)
def test_a_mode_that_makes_no_sense_is_refused(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        Mode(*words)


# --- recordings as they are


def trace(tmp_path, text, metric="unavailable"):
    path = tmp_path / "run.csv"
    path.write_text(text)
    return read_ldms([path], 1000.0, metric)


def row(time, used, host="h"):
    return f"{time},{host},1000,{1000 - used},{1000 - used},{used}\n"


def test_a_recording_is_shares_of_the_capacity(tmp_path):
    (one,) = trace(tmp_path, HEADER + row(5, 100) + row(6, 250))
    assert (one.host, one.times.tolist(), one.values.tolist(), one.notes) == ("h", [5, 6], [0.1, 0.25], [])
    assert one.at(np.array([4.0, 5.0, 5.9, 6.0, 10.9, 11.5]))[1:5].tolist() == [0.1, 0.1, 0.25, 0.25]
    assert np.isnan(one.at(np.array([4.0, 11.5]))).all()


@pytest.mark.parametrize(
    ("rows", "times", "said"),
    [
        (row(1, 1) + row(2, 1) + "3,h,10", [1, 2], "1 rows left out.*cut short"),
        (row(1, 1) + "2,h,1000,x,y,z\n" + row(3, 1), [1, 3], "1 rows left out"),
        (row(1, 1) + '2,"h,1000\n' + row(3, 1), [1, 3], "1 rows left out"),
        (row(1, 1) + "2," + "x" * 200_000 + "\n" + row(3, 1), [1, 3], "1 rows left out"),
        (row(1, 1) + "inf,h,1000,1,1,1\n" + row(3, 1), [1, 3], "1 rows left out"),
        (row(1, 1) + "1e300,h,1000,1,1,1\n" + row(3, 1), [1, 3], "1 rows left out"),
        (row(1, 1) + "2,h,1000,1,1000000,1\n" + row(3, 1), [1, 3], "1 rows left out"),
        (row(1, 1) + "2,h,1000,1,-5,1\n" + row(3, 1), [1, 3], "1 rows left out"),
        (row(1, 1) + row(3, 1) + row(2, 1) + row(4, 1), [1, 2, 3, 4], "1 rows out of order"),
        (row(1, 1) + row(2, 1) + row(90000003, 1) + row(4, 1), [1, 2, 4], "1 rows left out whose time"),
        (row(1, 1) + row(2, 1) + row(2, 9) + row(3, 1), [1, 2, 3], "1 times given twice"),
        (row(1, 1) + row(2, 1) + row(3, 1) + row(60, 1), [1, 2, 3, 60], "1 gaps, the longest 57 s"),
        (
            row(1000, 1) + row(1001, 1) + row(10, 1) + row(11, 1),
            [1000, 1001, 1002, 1003],
            "clock was set back by 991 s",
        ),
    ],
)
def test_what_is_wrong_with_a_recording_is_mended_and_said(tmp_path, rows, times, said):
    (one,) = trace(tmp_path, HEADER + rows)
    assert one.times.tolist() == times
    assert re.search(said, "; ".join(one.notes))


def test_of_two_values_of_one_moment_the_later_row_counts(tmp_path):
    (one,) = trace(tmp_path, HEADER + row(1, 100) + row(2, 100) + row(2, 900))
    assert one.values.tolist() == [0.1, 0.9]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("#Time,ProducerName,MemTotal,Active\n1,h,10,5\n", "'MemAvailable' is missing.*--metric active"),
        ("1,h,10,5\n", "its first line names no columns"),
        (HEADER, "no sample was found"),
    ],
)
def test_a_recording_that_cannot_be_used_is_refused_with_the_way_out(tmp_path, text, complaint):
    with pytest.raises(TraceError, match=complaint):
        trace(tmp_path, text)


def test_a_recording_without_the_metric_unavailable_serves_the_other(tmp_path):
    (one,) = trace(tmp_path, "#Time,ProducerName,MemTotal,Active\n1,h,1000,500\n", "active")
    assert one.values.tolist() == [0.5]


def test_of_several_files_those_that_cannot_be_used_are_left_out_and_named(tmp_path):
    (tmp_path / "good.csv").write_text(HEADER + row(5, 100))
    (tmp_path / "lacking.csv").write_text("#Time,ProducerName,MemTotal,Active\n1,h,10,5\n")
    (tmp_path / "notes.csv").write_text("what I measured\n")
    (one,) = read_ldms([tmp_path / f"{name}.csv" for name in ("lacking", "good", "notes")], 1000.0)
    assert one.values.tolist() == [0.1]
    assert [note.partition(": its")[0].partition(": column")[0] for note in one.notes] == [
        f"left out: {tmp_path}/lacking.csv",
        f"left out: {tmp_path}/notes.csv",
    ]
    with pytest.raises(TraceError, match=r"none.csv: cannot be read"):
        read_ldms([tmp_path / "good.csv", tmp_path / "none.csv"], 1000.0)


def test_columns_may_stand_in_any_order(tmp_path):
    text = "MemAvailable,#Time,schema:MemTotal,ProducerName\n900,5,1000,h\n"
    (one,) = trace(tmp_path, text)
    assert (one.host, one.times.tolist(), one.values.tolist()) == ("h", [5], [0.1])


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    (one,) = trace(tmp_path, "\ufeff" + HEADER + row(1, 100))
    assert one.values.tolist() == [0.1]


def test_days_without_a_sample_take_no_days_to_replay(tmp_path):
    rows = "".join(row(time, 100) for time in (1, 2, 3, 10**12, 10**12 + 1))
    traces = trace(tmp_path, HEADER + rows)
    moved = shorten(traces)
    assert traces[0].times.tolist() == [1, 2, 3, 903, 904]
    assert (moved(2.0), moved(10.0**12)) == (2.0, 903.0)
    assert "1 gaps of up to 999999999997 s without any sample" in traces[0].notes[-1]


def test_labels_that_are_none_are_named_with_their_line(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("file,application,leak_intervals_s\na.csv,app,\nb.csv,app,5-9;12-20\nc.csv,app,soon\n")
    with pytest.raises(TraceError, match=r"labels.csv, line 4"):
        read_labels(path)
    path.write_text(path.read_text().replace("soon", "1-2"))
    assert [label.leaks for label in read_labels(path)] == [(), ((5.0, 9.0), (12.0, 20.0)), ((1.0, 2.0),)]


# --- back-tests


def flat(level, seconds=600):
    return Run(level + rng().normal(0, 0.002, seconds))


def ramp(begin, rate, seconds=600, start=0.3):
    return Run(np.minimum(start + rate * np.maximum(0, np.arange(seconds) - begin), 1.0))


def outcome(group, rule="robust"):
    return summarise(len(group), 1, replay([group], Options(rule)), Calibration())


@pytest.mark.parametrize("size", [3, 4, 5, 8, 32])
def test_a_leaking_host_is_seen_long_before_it_fails(size):
    result = outcome([*(flat(0.3) for _ in range(size - 1)), ramp(100, 0.002)])
    assert (result.events, result.recall, result.false_alarms) == (1, 1.0, 0)
    assert result.lead_times_s[0] > 150


@pytest.mark.parametrize(("size", "leaking_hosts"), [(5, 2), (8, 3), (10, 4), (32, 12)])
def test_hosts_that_leak_together_do_not_hide_each_other(size, leaking_hosts):
    leaks = [ramp(100 + 5 * number, 0.002) for number in range(leaking_hosts)]
    result = outcome([*(flat(0.3) for _ in range(size - leaking_hosts)), *leaks])
    assert result.recall == 1.0
    assert outcome([*(flat(0.3) for _ in range(size - leaking_hosts)), *leaks], "paper").recall < 1


@pytest.mark.parametrize(("size", "failing"), [(4, 3), (12, 11), (32, 24)])
def test_where_most_hosts_fail_robust_sees_as_many_as_the_papers_rule_with_what_was_learned(size, failing):
    def one(at):
        values = np.repeat([0.3, 0.8, 0.95], [at, 300 - at, 60])
        return Run(values + rng().normal(0, 0.002, 360))

    group = [*(flat(0.3, 360) for _ in range(size - failing)), *(one(100 + number) for number in range(failing))]
    recall = {
        rule: summarise(
            size,
            failing,
            replay([group], Options(rule), lambda values, _columns: np.where(values > 0.5, 0.0, 1.0)),
            Calibration(),
        ).recall
        for rule in ("robust", "paper-learned")
    }
    assert recall["robust"] >= recall["paper-learned"] > 0


def test_a_slow_leak_is_seen_at_half_its_way_and_a_fast_one_before_its_end():
    slow = outcome([*(flat(0.3, 5000) for _ in range(7)), ramp(100, 0.00015, 5000)])
    assert slow.lead_times_s[0] > 1.8 * 0.15 / 0.00015
    fast = outcome([*(flat(0.3) for _ in range(7)), ramp(100, 0.05)])
    assert fast.recall == 1.0


def test_an_alarm_on_a_host_that_stays_below_is_false_or_within_its_labelled_leak_unrealised():
    stays = np.minimum(ramp(100, 0.002).values, 0.85)
    peers = [flat(0.3) for _ in range(5)]
    assert outcome([*peers, Run(stays)]).false_alarms == 1
    labelled = outcome([*peers, Run(stays, ((100.0, 600.0),))])
    assert (labelled.false_alarms, labelled.unrealised_alarms, labelled.events) == (0, 1, 0)
    assert labelled.recall is None


@pytest.mark.parametrize("shape", SHAPES)
def test_generated_leaks_reach_failure_in_their_time(shape):
    application = draw_application(rng(), "steady")
    host = leaking(rng(), application, 3000, 0.001, shape)
    assert (host.values >= 0.9).any()
    assert (host.values[: host.begin] < 0.9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_generated_healthy_hosts_stay_healthy(kind):
    application = draw_application(rng(), kind)
    assert healthy(rng(), application, 2000).max() < 0.9


def test_generated_rates_are_spread_over_three_decades():
    found = np.log10([draw_rate(np.random.default_rng(seed)) for seed in range(300)])
    assert found.min() < -4.2
    assert found.max() > -1.6


# --- on the command line


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write(folder, Recipe(healthy=8, leaking=4, seconds=900, slowest=2e-3, fastest=5e-3, shape="linear", missing=0.02))
    return folder


def test_groups_are_composed_and_the_same_seed_says_the_same(runs):
    words = ("backtest", "compose", str(runs), "--labels", "labels.csv", "--group-size", "4", "--group-size", "6")
    words += (
        "--leaking",
        "1",
        "--leaking",
        "2",
        "--trials",
        "5",
        "--seed",
        "3",
        "--capacity",
        "64GiB",
        "--rule",
        "robust",
    )
    status, text = failavoid(*words, "--json")
    assert status == 0, text
    document = json.loads(text)
    assert (document["rule"], document["metric"], document["horizon_s"]) == ("robust", "unavailable", 180.0)
    assert [(one["group_size"], one["leaking"], one["events"]) for one in document["results"]] == [
        (4, 1, 5),
        (4, 2, 10),
        (6, 1, 5),
        (6, 2, 10),
    ]
    for one in document["results"]:
        assert one["recall"] == 1.0
        assert len(one["recall_ci95"]) == 2
        assert set(one["lead_s"]) == {"median", "p5"}
        assert len(one["lead_times_s"]) == one["events"]
        assert {"false_alarms", "unrealised_alarms", "interval_coverage", "healthy_node_hours", "precision"} < set(one)
    assert failavoid(*words, "--json")[1] == text
    assert "lead s" in failavoid(*words)[1]


def test_groups_without_a_leaking_host_show_false_alarms_alone(runs):
    words = ("--group-size", "5", "--leaking", "0", "--trials", "4", "--capacity", "64GiB", "--json")
    status, text = failavoid("backtest", "compose", str(runs), "--labels", "labels.csv", *words)
    assert status == 0, text
    (one,) = json.loads(text)["results"]
    assert (one["events"], one["recall"], one["false_alarms"]) == (0, None, 0)
    assert one["healthy_node_hours"] == pytest.approx(4 * 5 * 900 / 3600, rel=0.05)


def test_recordings_that_are_not_of_every_second_are_judged_at_their_own_pace(tmp_path):
    for host in range(4):
        values = np.full(1800, np.nan)
        values[::10] = 0.4 + rng().normal(0, 0.002, 180)
        if host == 2:
            values[600:] += 1e-3 * np.arange(1200)
        write_run(tmp_path / f"{host}.csv", f"host{host}", np.minimum(values, 1.0))
    files = [str(tmp_path / f"{host}.csv") for host in range(4)]
    status, text = failavoid("backtest", "archive", *files, "--capacity", "64GiB", "--json")
    assert status == 0, text
    document = json.loads(text)
    (one,) = document["results"]
    assert (document["interval_s"], one["recall"], one["false_alarms"]) == (10.0, 1.0, 0)
    assert not [note for note in document["notes"] if "gaps" in note]
    assert one["lead_s"]["median"] > 150


def test_a_recording_of_several_hosts_is_one_group(runs):
    files = [str(path) for path in sorted(runs.glob("run-*.csv"))[:9]]
    status, text = failavoid("backtest", "archive", *files, "--rule", "threshold", "--capacity", "64GiB", "--json")
    assert status == 0, text
    (one,) = json.loads(text)["results"]
    assert (one["group_size"], one["events"], one["recall"]) == (9, 1, 1.0)


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (("archive", "none.csv", "--rule", "robust", "--capacity", "1GiB"), 1, "none.csv: cannot be read"),
        (("archive", "none.csv", "--rule", "magic", "--capacity", "1GiB"), 2, "use one of robust, paper"),
        (("archive", "none.csv", "--rule", "robust"), 2, "--capacity is missing"),
        (("archive", "none.csv", "--capacity", "much"), 2, "e.g. 24GiB"),
        (("archive", "none.csv", "--capacity", "1GiB", "--metric", "swap"), 2, "use one of unavailable, active"),
    ],
)
def test_wrong_words_are_refused_with_the_way_out(words, status, complaint):
    done = subprocess.run(
        [sys.executable, "-m", "failavoid.cli.main", "backtest", *words], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == status
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_capacity_that_no_run_reaches_is_said(runs):
    words = ("--labels", "labels.csv", "--group-size", "4", "--leaking", "1", "--capacity", "900GiB")
    done = subprocess.run(
        [sys.executable, "-m", "failavoid.cli.main", "backtest", "compose", runs, *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "is --capacity right for these runs?" in done.stderr


# --- the monitor's own recordings


def test_a_job_of_the_monitors_archive_is_replayed_for_as_long_as_its_hosts_were_its_own(tmp_path):
    times = np.arange(100.0, 160.0)
    values = np.full((60, len(METRICS), 3), np.nan, dtype=np.float32)
    values[:, METRICS.index("mem_total_kb")] = 1000
    values[:, METRICS.index("mem_available_kb")] = 400
    groups = ((100.0, (("job-1", "app", "", ("a", "b")),)), (130.0, (("job-1", "app", "", ("a", "c")),)))
    write_segment(tmp_path / "one.npz", Segment(times, ("a", "b", "c"), METRICS, values, groups))
    assert read_segment(tmp_path / "one.npz").groups == groups
    traces = {one.host: one for one in read_job([tmp_path / "one.npz"], "job-1", "unavailable")}
    assert {host: len(one.times) for host, one in traces.items()} == {"a": 60, "b": 30, "c": 30}
    assert traces["a"].values == pytest.approx(np.full(60, 0.6))
    with pytest.raises(TraceError, match="nothing of job job-2; jobs in it: job-1"):
        read_job([tmp_path / "one.npz"], "job-2", "unavailable")
    assert failavoid("backtest", "archive", str(tmp_path / "one.npz"), "--rule", "robust", "--json")[0] == 0


def test_a_damaged_recording_is_named(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(TraceError, match=r"bad.npz: is no recording"):
        read_segment(tmp_path / "bad.npz")


def test_generated_runs_can_be_read_again(tmp_path):
    write_run(tmp_path / "a.csv", "a", np.array([0.25, np.nan, 0.5]))
    (one,) = read_ldms([tmp_path / "a.csv"], 64 << 20)
    assert one.values == pytest.approx([0.25, 0.5])
    assert np.diff(one.times).tolist() == [2.0]
