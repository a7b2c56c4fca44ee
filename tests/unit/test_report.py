"""The demonstration's report says what its record holds, and no more."""

import json
import re
from pathlib import Path

import pytest
from lxml import html

from failavoid import controller
from failavoid.demo import record as records
from failavoid.demo.charts import MEANING
from failavoid.demo.page import render
from failavoid.demo.report import build_report, from_danger_to_oom_s, main, write_report
from failavoid.demo.runs import Line
from failavoid.shared.messages import Evacuation, RuleEvent, from_dict, to_dict
from tests.unit.report_records import make_record


@pytest.fixture
def record():
    return make_record()


def page_of(record):
    return html.fromstring(render(record, build_report(record)))


def text_of(element):
    return re.sub(r"\s+", " ", element.text_content()).strip()


def card(page, run):
    return text_of(page.xpath(f"//article[@data-run='{run}']")[0])


def without_evacuation(record):
    """Turn the protected run into one in which nobody raised an alarm, and the job died."""
    run = record.runs["protected"]
    run.alarms, run.rule_events, run.evacuations, run.exit_status = [], [], [], 1
    run.output = [Line(run.began, "iteration 1")]
    del run.snapshots["during"]
    return record


def with_cancelled_evacuation(record):
    """Turn the protected run into one whose ranks did not gather."""
    run = record.runs["protected"]
    evacuation = run.evacuations[0]
    evacuation.state, evacuation.error = "CANCELLED", "no word from g0003 within 10 s"
    evacuation.steps = [s for s in evacuation.steps if s.name in ("alarm", "leased", "noticed", "gathered")]
    evacuation.steps[-1].done = None
    for move in evacuation.migrations:
        move.state, move.pin_verified = "cancelled", None
        move.elapsed_s = move.downtime_ms = move.bytes = None
    run.exit_status, run.output = 1, []
    run.snapshots["after"] = record.runs["control"].snapshots["after"]
    return record


# -- report.json -------------------------------------------------------------------------------------------


def test_the_report_has_the_agreed_form(record):
    report = build_report(record)
    assert set(report) >= {"scale", "control", "protected", "memory_hog_application", "wall_s"}
    assert {k: v for k, v in report["scale"].items() if k != "name"} == {
        "hosts_in_use": 4,
        "hosts_idle": 1,
        "guests": 8,
        "ranks": 8,
        "domain_type": "qemu",
    }
    assert {k: report["control"][k] for k in ("job_completed", "guests_lost", "cause")} == {
        "job_completed": False,
        "guests_lost": 2,
        "cause": "oom",
    }
    protected = report["protected"]
    assert protected["job_completed"] is True
    assert protected["result_correct"] is True
    assert (protected["failed_host"], protected["spare"], protected["failed_host_pool"]) == (
        "host02",
        "host05",
        "defunct",
    )
    assert set(protected["alarm"]) >= {"rule", "metric", "value", "evidence", "other_rules_s"}
    assert set(protected["migrations"][0]) >= {
        *("guest", "from", "to", "elapsed_s", "downtime_ms", "bytes", "pinned_cpu", "numa_node"),
    }
    hog = report["memory_hog_application"]
    assert (hog["job_completed"], hog["evacuations"]) == (True, 0)
    assert report["wall_s"] == record.wall_s


def test_the_timeline_counts_from_the_alarms_acceptance_to_each_done(record):
    timeline = build_report(record)["protected"]["timeline_s"]
    assert list(timeline) == ["alarm", "leased", "noticed", "gathered", "migrating", "verified", "released", "retired"]
    assert list(timeline.values()) == [0.0, 0.09, 0.13, 2.4, 6.1, 6.5, 7.31, 7.4]


def test_a_step_that_was_not_done_is_null(record):
    timeline = build_report(with_cancelled_evacuation(record))["protected"]["timeline_s"]
    assert timeline["noticed"] == 0.13
    assert timeline["gathered"] is None
    assert timeline["released"] is None


def test_preparing_the_destination_is_measured_from_its_begin(record):
    assert build_report(record)["protected"]["prepare_destination_s"] == 0.75


def test_the_moves_are_libvirts_figures(record):
    first = build_report(record)["protected"]["migrations"][0]
    move = record.runs["protected"].evacuations[0].migrations[0]
    assert (first["elapsed_s"], first["downtime_ms"], first["bytes"]) == (move.elapsed_s, move.downtime_ms, move.bytes)
    assert first["pinned_cpu"] == move.cores[0]


def test_a_guest_pinned_to_several_cores_names_them_all(record):
    record.runs["protected"].evacuations[0].migrations[0].cores = [2, 3]
    assert build_report(record)["protected"]["migrations"][0]["pinned_cpu"] == [2, 3]


def test_other_rules_are_told_in_seconds_after_the_alarm_and_null_if_they_never_held(record):
    assert build_report(record)["protected"]["alarm"]["other_rules_s"] == {"paper": None, "threshold": 4.0}


def test_a_rule_that_held_first_has_a_negative_time(record):
    run = record.runs["protected"]
    run.rule_events.append(RuleEvent("paper", "host02", run.job, run.alarms[0].time - 2.5, "unavailable", 0.6))
    assert build_report(record)["protected"]["alarm"]["other_rules_s"]["paper"] == -2.5


def test_rules_that_held_for_another_host_or_job_do_not_count(record):
    run = record.runs["protected"]
    run.rule_events += [
        RuleEvent("paper", "host03", run.job, run.alarms[0].time + 1, "unavailable", 0.8),
        RuleEvent("paper", "host02", "another-job", run.alarms[0].time + 1, "unavailable", 0.8),
    ]
    assert build_report(record)["protected"]["alarm"]["other_rules_s"]["paper"] is None


def test_the_control_run_shows_what_the_other_rules_would_have_done_with_more_time(record):
    assert build_report(record)["protected"]["alarm"]["other_rules_in_control_s"] == {"paper": None, "threshold": 11.0}


def test_a_control_job_that_died_without_the_oom_killer_has_no_such_cause(record):
    record.runs["control"].oom_lines = []
    report = build_report(record)
    assert report["control"]["job_completed"] is False
    assert report["control"]["cause"] is None


def test_the_oom_killer_is_no_cause_if_it_took_no_guest(record):
    run = record.runs["control"]
    run.oom_lines = [line.replace("qemu-system-x86", "python3") for line in run.oom_lines]
    assert build_report(record)["control"]["cause"] is None


def test_only_the_last_stretch_over_the_threshold_counts_as_time_before_the_oom_killer(record):
    run = record.runs["control"]
    whole = from_danger_to_oom_s(run)
    assert whole == pytest.approx(38.4, abs=2)
    dip = next(s for s in run.samples if s.node == run.failing_host and s.time > run.events["out of memory"] - 10)
    dip.metrics["mem_available_kb"] = dip.metrics["mem_total_kb"]
    assert from_danger_to_oom_s(run) == pytest.approx(9, abs=1.1)


def test_without_an_alarm_nothing_is_made_up(record):
    protected = build_report(without_evacuation(record))["protected"]
    for name in ("alarm", "timeline_s", "failed_host", "spare", "failed_host_pool", "prepare_destination_s"):
        assert protected[name] is None
    assert protected["migrations"] == []
    assert protected["result_correct"] is False


def test_the_evacuation_that_moved_guests_is_told_of_several(record):
    run = record.runs["protected"]
    run.evacuations.append(with_cancelled_evacuation(make_record()).runs["protected"].evacuations[0])
    report = build_report(record)["protected"]
    assert report["timeline_s"]["retired"] == 7.4
    assert report["evacuations"] == 2


def with_the_spare_evacuated_too(record):
    """Let the protected run's spare be found failing after its guests had come."""
    run = record.runs["protected"]
    second = from_dict(Evacuation, to_dict(run.evacuations[0]))
    second.id, second.host, second.spare = "evacuation-2", "host05", "host06"
    for move in second.migrations:
        move.source, move.destination = "host05", "host06"
    run.evacuations.append(second)
    return record


def test_the_failing_hosts_evacuation_is_told_and_others_beside_it(record):
    report = build_report(with_the_spare_evacuated_too(record))["protected"]
    assert (report["failed_host"], report["spare"]) == ("host02", "host05")
    assert report["other_evacuations"] == [{"host": "host05", "spare": "host06", "state": "RETIRED", "error": ""}]


def test_runs_that_are_missing_are_null(record):
    record.runs = {}
    report = build_report(record)
    assert report["control"] is report["protected"] is report["memory_hog_application"] is None


def test_the_report_says_that_the_kernel_was_told_to_prefer_the_guests(record):
    assert any("oom_score_adj" in note and "800" in note for note in build_report(record)["notes"])
    record.oom_score_adj = None
    assert not any("oom_score_adj" in note for note in build_report(record)["notes"])


def test_warnings_of_overlapping_pins_are_passed_on(record):
    assert record.warnings[0] in build_report(record)["notes"]


def test_a_sample_without_memory_is_left_out(record):
    for sample in record.runs["protected"].samples[::7]:
        sample.metrics = {"cpu": 0.5}
    assert build_report(record)["protected"]["job_completed"] is True
    assert page_of(record).xpath("//svg[@data-run='protected']")


# -- report.html -------------------------------------------------------------------------------------------


def test_the_page_loads_nothing(record):
    text = render(record, build_report(record))
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:)\w""", text)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", text)


def test_the_three_outcomes_stand_at_the_top(record):
    page = page_of(record)
    assert [one.get("data-run") for one in page.xpath("//article")] == list(record.runs)
    assert "The job died" in card(page, "control")
    assert "2 guests lost" in card(page, "control")
    assert "The job completed" in card(page, "protected")
    assert "7.3 s" in card(page, "protected")
    assert "0 evacuations" in card(page, "memory_hog_application")
    assert text_of(page.xpath("//h1")[0]) == "A host failed. The job did not."


def state(page, name):
    return page.xpath(f"//figure[@data-state='{name}']")[0]


def test_the_rack_shows_guests_leaving_then_on_their_new_host(record):
    page = page_of(record)
    assert [one.get("data-state") for one in page.xpath("//figure")] == ["before", "during", "after"]
    assert not state(page, "before").xpath(".//g[@class='leaving' or @class='coming' or @class='moved']")
    during = state(page, "during")
    assert len(during.xpath(".//g[@class='leaving']")) == len(during.xpath(".//g[@class='coming']")) == 2
    assert during.xpath(".//path[@class='way']")
    after = state(page, "after")
    assert len(after.xpath(".//g[@class='moved']")) == 2
    assert after.xpath(".//text[@class='tag-text bad']/text()") == ["defunct"]


def test_the_rack_after_the_move_is_shown_while_the_job_still_ran(record):
    """Its memory is given back before mpirun ends."""
    run = record.runs["protected"]
    given_back = run.output[-2].time + 0.6
    for sample in run.samples:
        if sample.time > given_back:
            sample.metrics["mem_available_kb"] = sample.metrics["mem_total_kb"]
    assert state(page_of(record), "after").xpath(".//text[@class='on share']/text()")[0] == "66%"


def test_the_process_that_simulates_the_failure_is_drawn_where_it_is(record):
    page = page_of(record)
    assert len(state(page, "after").xpath(".//g[@class='hog']")) == 1
    record.runs["protected"].hog_remained = False
    assert not state(page_of(record), "after").xpath(".//g[@class='hog']")


def test_every_host_and_core_is_drawn_at_any_scale():
    page = page_of(make_record(8, 2, 8, cores=24))
    before = state(page, "before")
    assert len(before.xpath(".//rect[starts-with(@class, 'box')]")) == 10
    assert len(before.xpath(".//rect[@class='core']")) == 240
    assert len(before.xpath(".//g[@class='guest']")) == 64


def test_in_a_large_rack_hosts_to_which_nothing_happened_are_small():
    page = page_of(make_record(64, 16, 1, cores=24))
    for name in ("before", "during", "after"):
        picture = state(page, name)
        assert len(picture.xpath(".//rect[starts-with(@class, 'box')]")) == 80
        assert len(picture.xpath(".//rect[@class='core']")) == 80 * 24
        assert picture.xpath(".//text[contains(@class, 'name')]/text()") == ["host02", "host65"]
        bottom = float(picture.xpath("./svg")[0].get("viewbox").split()[3])
        for box in picture.xpath(".//rect[starts-with(@class, 'box')]"):
            assert float(box.get("y")) + float(box.get("height")) <= bottom
    assert "host01: 32% of memory in use, guests g0001" in text_of(state(page, "before"))


def test_all_marks_lie_inside_their_host():
    for picture in page_of(make_record(8, 2, 8, cores=24)).xpath("//figure/svg"):
        box = picture.xpath(".//rect[starts-with(@class, 'box')]")[0]
        right = float(box.get("x")) + float(box.get("width"))
        for mark in picture.xpath(".//rect[@class='mark' or @class='core']"):
            assert float(mark.get("x")) + float(mark.get("width")) <= right


def test_the_failing_host_and_the_thresholds_are_in_the_memory_charts(record):
    for chart in page_of(record).xpath("//svg[@data-run='control']"):
        assert len(chart.xpath(".//path[contains(@class, 'failing')]")) == 1
        assert len(chart.xpath(".//line[@class='limit']")) == 2
        assert "OOM killer" in chart.text_content()


def test_labels_of_events_do_not_cover_each_other(record):
    for chart in page_of(record).xpath("//svg[@data-run]"):
        rows = {}
        for label in chart.xpath(".//text[starts-with(@class, 'event-text')]"):
            rows.setdefault(label.get("y"), []).append((float(label.get("x")), len(label.text) * 6.5))
        for labels in rows.values():
            labels.sort()
            for (x, width), (following, _) in zip(labels, labels[1:]):
                assert x + width <= following


def test_the_timeline_has_a_bar_for_each_step(record):
    page = page_of(record)
    chart = page.xpath("//svg[@aria-label='Timeline of the evacuation']")[0]
    assert len(chart.xpath(".//rect[starts-with(@class, 'bar')]")) == 10
    assert "7.31 s" in chart.text_content()


def test_every_step_of_the_controllers_is_explained():
    sources = Path(controller.__file__).parent.rglob("*.py")
    begun = {name for source in sources for name in re.findall(r'begin\("(\w+)"', source.read_text())}
    assert {"leased", "migrating", "retired"} <= begun
    assert begun <= set(MEANING)


def test_a_step_that_was_not_done_is_drawn_open(record):
    page = page_of(with_cancelled_evacuation(record))
    chart = page.xpath("//svg[@aria-label='Timeline of the evacuation']")[0]
    assert len(chart.xpath(".//rect[@class='bar open']")) == 1
    assert "not done" in chart.text_content()


def test_only_a_destination_ready_in_time_is_said_to_have_kept_no_rank_waiting(record):
    said = "way to their barrier"
    assert said in text_of(page_of(record))
    prepared = next(s for s in record.runs["protected"].evacuations[0].steps if s.name == "prepare_destination")
    prepared.done += 1
    assert said not in text_of(page_of(record))


def test_the_failing_host_stands_among_its_peers_where_the_rule_saw_it(record):
    chart = page_of(record).xpath("//svg[contains(@aria-label, 'among its peers')]")[0]
    assert chart.xpath(".//circle[@class='dot failing']/title/text()") == ["host02: 68.2%"]


@pytest.mark.parametrize("centre", [0.1, 0.5, 0.7, 0.75, 0.8, 0.97])
def test_the_labels_over_the_peers_do_not_cover_each_other(record, centre):
    record.runs["protected"].alarms[0].evidence.centre = centre
    chart = page_of(record).xpath("//svg[contains(@aria-label, 'among its peers')]")[0]
    spans = []
    for label in chart.xpath(".//text[@y='13']"):
        left = float(label.get("x"))
        spans.append((left, left + 6.5 * len(label.text)))
    spans.sort()
    assert len(spans) == 2
    assert spans[0][0] >= 0
    assert spans[0][1] < spans[1][0]
    assert spans[1][1] <= float(chart.get("viewbox").split()[2])


def test_one_guest_taken_is_not_told_as_several(record):
    record.runs["control"].guests_lost = ["g0003"]
    assert "OOM killer took a guest on host02" in card(page_of(record), "control")


def test_further_evacuations_are_not_kept_quiet(record):
    assert "other evacuation" not in card(page_of(record), "protected")
    assert "1 other evacuation in this run: host05 (RETIRED)." in card(
        page_of(with_the_spare_evacuated_too(record)), "protected"
    )


def test_the_moves_are_a_table(record):
    rows = page_of(record).xpath("//table[@id='migrations']//tr")
    assert len(rows) == 3
    assert "179 MiB" in text_of(rows[1])


def test_the_alarms_evidence_and_the_other_rules_are_told_in_words(record):
    text = text_of(page_of(record).xpath("//main")[0])
    assert "Rule robust found host02 out of line: 68.2% by the metric unavailable" in text
    assert "22.4 times their scale" in text
    assert "4.0 s later" in text
    assert "not before the guests left" in text
    assert "Among 4 hosts none can be more than 1.50 standard deviations above their mean" in text


def test_what_programs_said_is_shown_but_is_no_markup(record):
    record.runs["control"].output.append(Line(0.0, "</pre><script>alert(1)</script>"))
    page = page_of(record)
    assert any("<script>alert(1)" in text_of(one) for one in page.xpath("//pre"))
    assert len(page.xpath("//script")) == 2


def test_names_are_no_markup(record):
    changed = json.loads(json.dumps(to_dict(record)).replace("host03", "<b>host03</b></script>"))
    page = page_of(from_dict(records.Record, changed))
    assert not page.xpath("//svg//b")
    assert len(page.xpath("//script")) == 2


def test_without_an_alarm_the_page_does_not_claim_a_success(record):
    page = page_of(without_evacuation(record))
    assert text_of(page.xpath("//h1")[0]) == "A host failed, and the job with it"
    assert "The job died" in card(page, "protected")
    assert "No evacuation took place" in card(page, "protected")
    assert "should have ended otherwise" in card(page, "protected")
    assert not page.xpath("//svg[@aria-label='Timeline of the evacuation']")
    assert not page.xpath("//path[@class='way']")
    assert page.xpath("//h2[.='Why there was no alarm']")


def test_a_cancelled_evacuation_is_told_with_its_reason(record):
    page = page_of(with_cancelled_evacuation(record))
    assert "ended as CANCELLED" in card(page, "protected")
    assert "no word from g0003" in card(page, "protected")
    assert "not in this run" in text_of(page.xpath("//table[@id='rules']")[0])
    assert "did not move: cancelled" in text_of(page.xpath("//table[@id='migrations']")[0])
    assert not page.xpath("//g[@class='coming' or @class='moved']")


def test_a_wrong_result_is_no_success(record):
    record.runs["protected"].output = [Line(0.0, "RESULT wrong: 4711 != 4712")]
    page = page_of(record)
    assert "wrong result" in card(page, "protected")
    assert text_of(page.xpath("//h1")[0]) != "A host failed. The job did not."


def test_a_control_job_that_lives_proves_nothing(record):
    run = record.runs["control"]
    run.exit_status, run.guests_lost, run.oom_lines = 0, [], []
    page = page_of(record)
    assert "proves nothing" in card(page, "control")
    assert "should have ended otherwise" in card(page, "control")
    assert text_of(page.xpath("//h1")[0]) == "The job was moved and completed"


@pytest.mark.parametrize("missing", ["control", "protected", "memory_hog_application"])
def test_a_missing_run_leaves_the_rest_readable(record, missing):
    del record.runs[missing]
    page = page_of(record)
    assert len(page.xpath("//article")) == 2
    assert missing not in {one.get("data-run") for one in page.xpath("//article")}
    assert "Not recorded: run" in text_of(page)


def test_a_run_of_which_nothing_was_seen_is_still_told(record):
    for run in record.runs.values():
        run.samples, run.snapshots, run.events, run.output, run.exit_status = [], {}, {}, [], None
        run.evacuations, run.alarms, run.rule_events, run.oom_lines, run.guests_lost = [], [], [], [], []
    page = page_of(record)
    assert len(page.xpath("//article")) == 3
    assert "No samples of this run were kept" in text_of(page)


# -- what the hosts say of themselves ----------------------------------------------------------------------


class SiteOf:
    """Hosts that answer as `virtualization` and `booted` say."""

    def __init__(self, virtualization, booted):
        self.virtualization, self.booted = virtualization, booted

    def run(self, host, *argv, check=True):
        return self.virtualization[host] + "\n" if argv[0] == "systemd-detect-virt" else f"{self.booted[host]}\n"


@pytest.mark.parametrize(
    ("virtualization", "booted", "shared"),
    [
        (["systemd-nspawn", "systemd-nspawn"], [1000, 1001], True),
        (["systemd-nspawn", "systemd-nspawn"], [1000, 2000], False),
        (["none", "none"], [1000, 1000], False),
        (["systemd-nspawn"], [1000], False),
    ],
)
def test_containers_of_one_kernel_share_its_cores(virtualization, booted, shared):
    hosts = [f"host{number:02d}" for number in range(len(booted))]
    site = SiteOf(dict(zip(hosts, virtualization)), dict(zip(hosts, booted)))
    assert records.share_one_kernel(site, hosts) is shared


def test_what_is_said_of_hosts_stands_once_with_the_runs_in_which_it_was_so(record):
    runs = list(record.runs.values())
    together = "host01, host02 run on one machine"
    for run in runs:
        for membership in run.snapshots.values():
            for host in membership.hosts[:2]:
                host.warnings = [together, f"{host.name}: more than one guest is pinned to core 0"]
    runs[1].snapshots["after"].hosts[2].warnings = ["host03: it is old"]
    assert records.said_of_hosts(runs) == [
        "In all runs, host01, host02 run on one machine.",
        "In all runs, host01, host02: more than one guest is pinned to core 0.",
        "In run protected, host03: it is old.",
    ]


# -- files -------------------------------------------------------------------------------------------------


def test_the_report_can_be_made_again_from_the_record(record, tmp_path, monkeypatch):
    write_report(record, tmp_path)
    first = {name: (tmp_path / name).read_text() for name in ("report.json", "report.html")}
    for name in first:
        (tmp_path / name).unlink()
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "record.json")])
    assert main() == 0
    assert {name: (tmp_path / name).read_text() for name in first} == first


def test_a_file_that_is_no_record_gives_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "record.json").write_text('{"scale": 3}')
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "record.json")])
    assert main() == 1
    assert "'make demo' writes one" in capsys.readouterr().err
