"""What the rules say of hosts whose memory develops in a known way."""

import csv
import functools
import os
from pathlib import Path

import numpy as np
import pytest

from failavoid.monitor.evaluation import Evaluator
from failavoid.monitor.evidence import pressure_from
from failavoid.monitor.groups import Group
from failavoid.monitor.settings import Settings
from failavoid.monitor.store import Collection
from failavoid.prediction.settings import RuleSettings
from failavoid.prediction.trend import find_trend, fit
from failavoid.prediction.watch import Roster, Watch
from failavoid.shared.messages import METRICS

RULES = RuleSettings()
RNG_SEED = 7


def watched(rows, groups=None, settings=RULES, begin=0.0):
    """All rules' word on the last of ``rows`` (one a second, one column a host)."""
    rows = np.asarray(rows, dtype=float)
    groups = np.zeros(rows.shape[1], dtype=int) if groups is None else groups
    watch = Watch(settings, 1.0)
    watch.follow(Roster([(f"group-{group}", f"host{number}") for number, group in enumerate(groups)]))
    for second, row in enumerate(rows):
        tick = watch.tick(begin + second, row)
    return tick


def at_once(values, groups=None, settings=RULES):
    """All rules' word on hosts that have stood at ``values`` for the whole short window."""
    return watched(np.tile(np.asarray(values, dtype=float), (11, 1)), groups, settings)


def fired(tick, rule):
    return np.flatnonzero(tick.verdicts[rule].fires).tolist()


def collected(second, hosts, share, guests=0.0):
    """A collection in which the hosts use these shares of their memory."""
    values = np.full((len(METRICS), len(hosts)), np.nan)
    share = np.asarray(share, dtype=float)
    values[METRICS.index("mem_total_kb")] = 1.0
    values[METRICS.index("mem_available_kb")] = 1 - share
    values[METRICS.index("guests_rss_kb")] = guests
    return Collection(float(second), hosts, values)


def job_on(hosts, job="job-1"):
    return [Group(job, "app", "", tuple(hosts))]


def replay(values, settings=None, jitter=0.003):
    """Run the evaluator over ``values`` (one row a second, one column a host of one job)."""
    values = np.asarray(values, dtype=float)
    noise = np.random.default_rng(RNG_SEED).normal(0, jitter, values.shape)
    values = np.clip(values + noise, 0, 1)
    evaluator = Evaluator(settings or Settings())
    hosts = {f"host{number:02d}": number for number in range(values.shape[1])}
    for second, row in enumerate(values):
        evaluator.evaluate(collected(second, hosts, row), job_on(hosts), float(second))
    return evaluator


def first(evaluator, rule, host):
    event = evaluator.events.get((rule, host, "job-1"))
    return None if event is None else event.time


# --- one collection


def test_the_papers_rule_sees_an_outlier_over_the_threshold():
    assert fired(at_once([0.3, 0.31, 0.3, 0.32, 0.3, 0.31, 0.3, 0.8]), "paper") == [7]


def test_the_papers_rule_wants_both_outlier_and_danger():
    assert fired(at_once([0.3] * 7 + [0.6]), "paper") == []
    assert fired(at_once([0.78] * 4 + [0.8] * 4), "paper") == []


@pytest.mark.parametrize("hosts", [2, 3, 4, 5])
def test_the_papers_rule_cannot_fire_below_six_hosts(hosts):
    assert fired(at_once([0.1] * (hosts - 1) + [1.0]), "paper") == []


@pytest.mark.parametrize("hosts", [6, 8, 100])
def test_the_papers_rule_can_fire_from_six_hosts_on(hosts):
    assert fired(at_once([0.1] * (hosts - 1) + [1.0]), "paper") == [hosts - 1]


def test_the_papers_rule_masks_hosts_that_fail_together_and_robust_does_not():
    judgement = at_once([0.3] * 12 + [0.85] * 4)
    assert fired(judgement, "paper") == []
    assert fired(judgement, "robust") == [12, 13, 14, 15]


def test_the_threshold_rule_looks_at_danger_alone():
    assert fired(at_once([0.74, 0.75, 0.9]), "threshold") == [1, 2]


@pytest.mark.parametrize("hosts", [3, 4, 5, 6, 16])
def test_robust_sees_one_failing_host_in_groups_of_any_size(hosts):
    assert fired(at_once([0.4] * (hosts - 1) + [0.8]), "robust") == [hosts - 1]


@pytest.mark.parametrize("hosts", [1, 2])
def test_robust_says_nothing_where_nobody_can_tell_who_is_the_outlier(hosts):
    judgement = at_once([0.4] * (hosts - 1) + [0.8])
    assert fired(judgement, "robust") == []


@pytest.mark.parametrize("hosts", [4, 5, 8])
def test_an_application_that_fills_all_hosts_alike_is_no_failure(hosts):
    values = [0.80] * (hosts - 1) + [0.95]
    assert fired(at_once(values), "robust") == []
    assert fired(at_once(values), "paper") == []
    assert fired(at_once(values), "threshold") == list(range(hosts))


def test_a_low_outlier_is_no_failure():
    judgement = at_once([0.8, 0.8, 0.8, 0.8, 0.8, 0.1])
    assert fired(judgement, "robust") == fired(judgement, "paper") == []


def test_groups_of_different_sizes_are_judged_apart():
    groups = [0, 1, 0, 1, 0, 1, 0, 1, 1, 1, 1]
    values = [0.3, 0.8, 0.3, 0.8, 0.3, 0.8, 0.8, 0.8, 0.8, 0.8, 0.81]
    assert fired(at_once(values, groups), "robust") == [6]


def test_a_silent_host_is_neither_judged_nor_counted():
    judgement = at_once([0.3, 0.3, 0.3, np.nan, 0.8])
    assert fired(judgement, "robust") == [4]
    assert judgement.view.peers.tolist() == [3, 3, 3, 4, 3]
    assert fired(at_once([np.nan] * 5), "threshold") == []


def test_the_median_of_each_group_is_its_own():
    values = np.random.default_rng(1).random(200)
    groups = np.random.default_rng(2).integers(0, 17, 200)
    values[::11] = np.nan
    judgement = at_once(values, groups)
    for group in range(17):
        mine = groups == group
        if mine.sum() > 5 + np.isnan(values[mine]).sum():
            centre = judgement.view.normal.centre[mine]
            assert np.allclose(centre, np.nanmedian(values[mine]))


def test_a_host_ahead_of_peers_that_follow_is_no_failure_and_one_beyond_them_is():
    times = np.arange(11.0)
    peers = [0.6 + 0.01 * (times - 10)] * 5  # 0.7 in ten seconds' time, 0.8 with twice the growth
    ahead, beyond = np.full(11, 0.76), np.full(11, 0.95)
    for growth, failing in ((1, [5, 6]), (2, [6])):
        values = np.array([*(0.6 + growth * (peer - 0.6) for peer in peers), ahead, beyond]).T
        judgement = watched(values)
        assert np.flatnonzero(~judgement.view.application).tolist() == ([*range(7)] if growth == 1 else [6])
        assert set(fired(judgement, "robust")) <= set(failing)


# --- trends


def trend_of(values):
    values = np.asarray(values, dtype=float)
    times = np.arange(float(len(values)))
    nobody = np.zeros(values.shape[1], dtype=bool)
    line = fit(times, values, 6)
    return find_trend([line], [line], values[-1], values, times, RULES.failure, nobody, nobody)


def test_a_prediction_is_the_less_certain_the_further_it_goes_beyond_what_was_seen():
    """However straight the line is: what grew so for ten seconds need not for minutes."""
    ten = np.arange(11.0)
    near, far = trend_of(np.array([0.8 + 0.001 * ten, 0.5 + 0.001 * ten]).T).doubt
    assert far > 1.5 * near
    long = trend_of((0.5 + 0.001 * np.arange(101.0))[:, None]).doubt[0]
    assert long < near < far


def test_a_host_that_leaks_slowly_is_predicted_by_what_minutes_show():
    """Its last moments are noise."""
    leak = 0.5 + 1e-4 * np.arange(1200.0)
    values = np.array([leak if host == 3 else np.full(1200, 0.4) for host in range(8)]).T
    values += np.random.default_rng(RNG_SEED).normal(0, 0.006, values.shape)
    view = watched(values).view
    assert view.leaking[3]
    assert view.trend.failure[3] == pytest.approx((0.9 - leak[-1]) / 1e-4, rel=0.15)


@pytest.mark.parametrize("since", [2, 8, 15, 28])  # the last step, s
def test_a_leak_in_steps_is_predicted_by_what_minutes_show(since):
    seconds = np.arange(570.0 + since)
    steps = 0.4 + 0.04 * np.maximum(0.0, (seconds - 300) // 30)
    values = np.array([steps if host == 3 else np.full(len(seconds), 0.4) for host in range(8)]).T
    values += np.random.default_rng(RNG_SEED).normal(0, 0.0005, values.shape)
    view = watched(values).view
    assert view.now[3] > 0.75
    assert view.trend.failure[3] == pytest.approx((0.9 - view.now[3]) / (0.04 / 30), rel=0.35)


def test_a_steady_growth_is_predicted_within_its_doubt():
    noise = np.random.default_rng(RNG_SEED).normal(0, 0.002, 11)
    trend = trend_of((0.5 + 0.01 * np.arange(11.0) + noise)[:, None])
    assert trend.slope[0] == pytest.approx(0.01, rel=0.1)
    assert trend.sure[0]
    assert abs(np.log(trend.failure[0] / 30)) < 3 * trend.doubt[0]


def test_a_falling_or_unknown_trend_predicts_nothing():
    seconds = np.arange(11.0)
    falling = 0.5 - 0.01 * seconds
    young = np.where(seconds < 8, np.nan, 0.2 + 0.05 * seconds)
    trend = trend_of(np.array([falling, young]).T)
    assert np.isinf(trend.failure).all()
    assert np.isnan(trend.slope[1])
    assert not trend.sure.any()


def test_a_jump_is_no_sustained_growth_and_a_fast_ramp_is():
    jump = np.where(np.arange(11) < 10, 0.4, 0.85)
    ramp = 0.3 + 0.05 * np.arange(11.0)
    trend = trend_of(np.array([jump, ramp]).T)
    assert np.isinf(trend.sustained[0])
    assert trend.sustained[1] == pytest.approx(2.0)


def test_pressure_from_outside_the_guests_is_told_from_pressure_inside():
    groups = np.zeros(4, dtype=int)
    guests = np.array([0.3, 0.31, 0.3, 0.3])
    assert pressure_from(np.array([0.4, 0.41, 0.4, 0.8]), guests, groups, 3) == "host"
    leaking = np.array([0.3, 0.31, 0.3, 0.7])
    assert pressure_from(np.array([0.4, 0.41, 0.4, 0.8]), leaking, groups, 3) == "guests"


# --- over time


def ramp(seconds, begin, start, rate, limit):
    """A host at ``start`` that grows from second ``begin`` on by ``rate`` a second up to ``limit``."""
    times = np.arange(float(seconds))
    return np.clip(start + rate * (times - begin), start, limit)


def hog(seconds, begin, share=0.5, lasting=8.0):
    return np.clip((np.arange(float(seconds)) - begin) / lasting, 0, 1) * share


def growing_application(hosts, seconds=120, rate=0.008, limit=0.7):
    return np.array([ramp(seconds, 10, 0.3, rate, limit) for _ in range(hosts)]).T


@pytest.mark.parametrize("hosts", [4, 8])
def test_robust_alarms_about_a_process_that_takes_half_of_one_hosts_memory(hosts):
    values = growing_application(hosts)
    values[:, 2] += hog(120, 30)
    over = int(np.argmax(values[:, 2] >= 0.75))
    evaluator = replay(values)
    assert 30 < first(evaluator, "robust", "host02") <= over + 5
    assert {host for _, host, _ in evaluator.events} == {"host02"}
    alarm = evaluator.alarms[0]
    assert alarm.rule == "robust"
    assert alarm.value == alarm.evidence.value
    assert alarm.evidence.peers == hosts - 1
    assert alarm.evidence.z > 5
    earliest, latest = alarm.evidence.predicted_failure_interval_s
    assert earliest <= alarm.evidence.predicted_failure_s <= latest
    assert alarm.evidence.settings["horizon_s"] == 60


@pytest.mark.parametrize("hosts", [4, 8])
@pytest.mark.parametrize("rate", [0.002, 0.008, 0.016])
def test_an_application_that_grows_fast_hides_no_failing_host(hosts, rate):
    """While the others are on their way to the threshold too, but far from where the host is."""
    values = growing_application(hosts, rate=rate)
    values[:, 2] += hog(120, 30)
    over = int(np.argmax(values[:, 2] >= 0.75))
    evaluator = replay(values)
    assert first(evaluator, "robust", "host02") <= over + 5
    assert {host for _, host, _ in evaluator.events} == {"host02"}


def test_with_eight_hosts_the_papers_rule_alarms_at_the_threshold():
    values = growing_application(8)
    values[:, 2] += hog(120, 30)
    evaluator = replay(values, Settings(rule="paper"))
    over = int(np.argmax(values[:, 2] >= 0.75))
    assert abs(first(evaluator, "paper", "host02") - over) <= 2
    assert [alarm.rule for alarm in evaluator.alarms][:1] == ["paper"]


@pytest.mark.parametrize("hosts", [4, 8])
@pytest.mark.parametrize("rate", [0.005, 0.02, 0.04, 0.1])
@pytest.mark.parametrize("early_s", [0, 2, 3])
def test_an_application_that_grows_on_all_hosts_raises_nothing(hosts, rate, early_s):
    """Even if one host began earlier and stays ahead for as long as all grow.

    The paper's rule has no memory: it is mistaken where that lead is most of the way.
    """
    values = np.array([ramp(200, 10 if host else 10 - early_s, 0.3, rate, 0.88) for host in range(hosts)]).T
    evaluator = replay(values)
    rules = {rule for rule, _, _ in evaluator.events}
    assert rules == {"threshold"} or (rules == {"threshold", "paper"} and rate * early_s >= 0.3)
    assert not evaluator.alarms


def alarmed(values, learned=None):
    """The hosts of one job that `robust` would have alarmed about, with the horizon of back-tests."""
    watch = Watch(RuleSettings(horizon_s=180.0), 1.0, ("robust",))
    watch.follow(Roster([("job-1", f"host{number}") for number in range(values.shape[1])]))
    values = values + np.random.default_rng(RNG_SEED).normal(0, 0.004, values.shape)
    return {
        int(host)
        for second, row in enumerate(values)
        for host in watch.tick(second, row, learned=learned).begun["robust"]
    }


@pytest.mark.parametrize(("until", "top", "second", "step"), [(115, 0.46, 118, 0.1), (91, 0.345, 121, 0.19)])
def test_a_ramp_that_all_hosts_went_up_is_no_trend_of_the_one_that_then_takes_a_step(until, top, second, step):
    values = np.array([ramp(200, 0, 0.05, (top - 0.05) / until, top) for _ in range(8)]).T
    values[second:, 3] += step
    assert alarmed(values) == set()


def test_a_leak_that_begins_while_all_hosts_start_is_seen_before_the_threshold():
    values = np.array([ramp(200, 0, 0.05, 0.0036, 0.46) for _ in range(8)]).T
    values[:, 3] += ramp(200, 100, 0.0, 0.004, 1.0)
    before = int(np.argmax(values[:, 3] >= 0.75))
    assert alarmed(values[:before]) == {3}


def out_of_step(hosts=8, seconds=900):
    """An application that fills 0.33 to 0.57 of the memory every two minutes, and what was learned of it."""
    late = 120 / hosts * np.arange(hosts)
    values = 0.33 + 0.24 * ((np.arange(float(seconds))[:, None] - late) % 120) / 120
    return values, lambda shares, _columns: np.where(shares > 0.57, 0.01, 1.0)


def test_a_host_that_goes_a_little_further_than_usual_is_none_that_fails():
    values, learned = out_of_step()
    top = 700 + int(np.argmax(values[700:820, 3]))
    values[top - 11 : top + 1, 3] += np.linspace(0, 0.03, 12)
    assert alarmed(values, learned) == set()


def test_a_host_out_of_step_that_leaks_is_seen_before_the_threshold():
    values, learned = out_of_step()
    low = 600 + int(np.argmin(values[600:720, 3]))
    values[low:, 3] = 0.33 + 0.007 * np.arange(len(values) - low)
    before = int(np.argmax(values[:, 3] >= 0.74))
    assert alarmed(values[:before], learned) == {3}


@pytest.mark.parametrize("hosts", [4, 8])
@pytest.mark.parametrize("apart_s", [1, 3, 6])
def test_a_job_whose_guests_and_ranks_start_one_after_the_other_raises_nothing(hosts, apart_s):
    values = np.array([ramp(60, 5 + apart_s * host, 0.12, 0.05, 0.42) for host in range(hosts)]).T
    evaluator = replay(values)
    assert not evaluator.events


def test_a_step_that_ends_below_the_threshold_raises_nothing():
    values = np.full((60, 5), 0.3)
    values[30:, 1] = 0.65
    assert not replay(values).events


def test_sawtooth_memory_raises_nothing():
    seconds = np.arange(300.0)
    values = np.array([0.4 + 0.3 * (((seconds + 0.5 * host) % 20) / 20) for host in range(5)]).T
    assert not replay(values).events


def test_a_short_spike_is_outlived():
    values = np.full((60, 5), 0.4)
    values[30:33, 1] = 0.85
    evaluator = replay(values)
    assert first(evaluator, "robust", "host01") is None
    assert first(evaluator, "threshold", "host01") == 30


def test_an_alarm_is_raised_again_only_while_its_cause_stays():
    values = np.full((130, 5), 0.4)
    values[20:90, 1] = 0.85
    evaluator = replay(values, Settings(reraise_s=30.0))
    assert [alarm.time for alarm in evaluator.alarms] == [24, 54, 84]
    assert len({alarm.id for alarm in evaluator.alarms}) == 3


def test_a_host_that_wavers_around_the_threshold_counts_once_and_again_after_it_was_calm():
    values = np.full((200, 5), 0.4)
    values[20:60, 1] = 0.76
    values[26:60:8, 1] = 0.73
    values[100:, 1] = 0.80
    evaluator = replay(values, Settings(reraise_s=25.0), jitter=0)
    times = [alarm.time for alarm in evaluator.alarms]
    assert times[0] == 24
    assert 104 in times


def test_a_leaving_host_takes_its_state_along_and_a_coming_one_starts_afresh():
    evaluator = Evaluator(Settings())
    hosts = {"a": 0, "b": 1, "c": 2, "d": 3}

    def tick(second, d_value, members):
        row = np.array([0.4, 0.4, 0.4, d_value])
        return evaluator.evaluate(collected(second, hosts, row), job_on(members), float(second)).raised

    for second in range(4):
        assert tick(second, 0.8, ["a", "b", "c", "d"]) == []
    for second in range(4, 6):  # the fifth in a row would raise it
        assert tick(second, 0.8, ["a", "b", "c"]) == []
    for second in range(6, 10):
        assert tick(second, 0.8, ["a", "b", "c", "d"]) == []
    assert [alarm.host for alarm in tick(10, 0.8, ["a", "b", "c", "d"])] == ["d"]


def test_a_spare_that_has_just_taken_guests_in_is_not_judged_by_how_they_came():
    values = growing_application(4, seconds=60)
    arriving = np.concatenate([np.full(20, 0.1), np.linspace(0.1, 0.55, 3), np.full(37, 0.55)])
    values[:, 3] = arriving
    evaluator = Evaluator(Settings())
    hosts = {f"h{number}": number for number in range(4)}
    for second, row in enumerate(values):
        members = list(hosts) if second >= 23 else list(hosts)[:3]
        evaluator.evaluate(collected(second, hosts, row), job_on(members), float(second))
    assert not evaluator.events


def test_a_host_that_falls_silent_while_it_fails_keeps_its_count():
    values = np.full((40, 5), 0.4)
    values[20:, 1] = 0.85
    values[22:26, 1] = np.nan
    evaluator = replay(values)
    assert first(evaluator, "robust", "host01") == 28


# --- settings


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"threshold": 1.5}, "'threshold' is 1.5; it must be from 0 to 1"),
        ({"threshold": 0.95}, "'threshold' .0.95. must be below 'failure'"),
        ({"sigma": 0.0}, "'sigma' is 0"),
        ({"horizon_s": -1.0}, "'horizon_s' is -1"),
        ({"z": float("nan")}, "'z' is nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        RuleSettings(**settings)


# --- recorded leaks of a real application

DATA = Path(os.environ.get("FAILAVOID_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
LDMS = DATA / "ldms-hpas"
CAPACITY_KB = 24 * 1024 * 1024  # a smaller memory than the node's, so that leaks reach its end


@functools.cache
def ldms_runs():
    runs = {}
    with (LDMS / "labels.csv").open() as labels:
        for label in csv.DictReader(labels):
            table = np.genfromtxt(LDMS / label["file"], delimiter=",", names=True, dtype=None, encoding=None)
            used = (table["MemTotal"] - table["MemAvailable"]) / CAPACITY_KB
            runs[label["file"]] = (np.minimum(used, 1.0), label["leak_intervals_s"])
    return runs


@pytest.mark.skipif(
    not LDMS.is_dir(), reason=f"no recorded traces in {LDMS}: set FAILAVOID_DATA to the folder of ldms-hpas"
)
@pytest.mark.parametrize(("hosts", "leaking"), [(4, 1), (8, 1), (16, 6)])
def test_robust_sees_all_recorded_leaks_and_no_healthy_host(hosts, leaking):
    runs = ldms_runs()
    rng = np.random.default_rng(RNG_SEED)
    leaks = [name for name, (used, label) in runs.items() if label and (used >= 0.9).any()]
    healthy = [name for name, (_, label) in runs.items() if not label]
    for _ in range(4):
        names = [
            *rng.choice(leaks, leaking, replace=False),
            *rng.choice(healthy, hosts - leaking, replace=False),
        ]
        length = min(len(runs[name][0]) for name in names)
        values = np.array([runs[name][0][:length] for name in names]).T
        evaluator = replay(values, Settings(rules=RuleSettings(horizon_s=180.0)), jitter=0)
        for number, name in enumerate(names):
            seen = first(evaluator, "robust", f"host{number:02d}")
            if number < leaking:
                begun = int(runs[name][1].split("-")[0])
                fails = int(np.argmax(runs[name][0] >= 0.9))
                assert begun < seen < fails - 120, f"{name}: seen at {seen}, fails at {fails}"
            else:
                assert seen is None, f"{name} is healthy, alarm at {seen}"
