"""The journal gives back after a crash what was written before it."""

import sqlite3

import pytest

from failavoid.controller.journal import Journal
from failavoid.shared.messages import Alarm, ControllerStatus, Evacuation, Evidence, Migration, Notice

ALARM = Alarm("alarm-1", 1.0, "host1", "job-1", "robust", "unavailable", 0.8, Evidence(0.8, 0.3, 0.01, 9, 0.75))


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "state" / "journal.sqlite")
    yield journal
    journal.close()


def reopened(tmp_path):
    return Journal(tmp_path / "state" / "journal.sqlite")


def evacuation():
    return Evacuation("e-1", "host1", "job-1", "PREDICTED", alarm=ALARM, migrations=[Migration("g", "a", "b", [0], 0)])


def test_every_write_is_on_disk_when_it_returns(journal, tmp_path):
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    journal.begin(evacuation(), "alarm")
    assert [e.id for e in reopened(tmp_path).evacuations()] == ["e-1"]


def test_a_step_has_a_row_before_and_one_after_its_side_effect(journal, tmp_path):
    one = evacuation()
    journal.begin(one, "leased", at=10.0)
    (after_crash,) = reopened(tmp_path).evacuations()
    assert [(s.name, s.begun, s.done) for s in after_crash.steps] == [("leased", 10.0, None)]
    one.state, one.spare = "LEASED", "host5"
    journal.done(one, "leased", "host5", at=11.0)
    (after_crash,) = reopened(tmp_path).evacuations()
    assert after_crash == one
    assert [(s.begun, s.done, s.detail) for s in after_crash.steps] == [(10.0, 11.0, "host5")]


def test_a_repeated_step_keeps_its_first_beginning(journal, tmp_path):
    one = evacuation()
    journal.begin(one, "leased", at=10.0)
    journal.begin(one, "leased", at=20.0)
    journal.done(one, "leased", at=21.0)
    assert [(s.begun, s.done) for s in one.steps] == [(10.0, 21.0)]
    assert reopened(tmp_path).evacuations() == [one]


def test_what_could_not_be_written_whole_is_not_there(journal, tmp_path):
    one = evacuation()
    journal._db.execute("DROP TABLE events")
    with pytest.raises(sqlite3.OperationalError):
        journal.begin(one, "leased")
    assert reopened(tmp_path).evacuations() == []


def test_alarms_are_remembered_with_what_came_of_them(journal):
    assert (journal.alarm("alarm-1"), journal.alarm_document("alarm-1")) == (None, None)
    journal.note_alarm(ALARM, "monitor", "failure avoidance is off")
    assert journal.alarm("alarm-1") == "failure avoidance is off"
    assert journal.alarm_document("alarm-1") == ALARM


def test_a_withdrawal_may_come_before_its_alarm(journal):
    assert not journal.is_withdrawn("alarm-1")
    journal.note_withdrawal("alarm-1", "monitor", "memory is back", "nothing to cancel")
    assert journal.is_withdrawn("alarm-1")


def test_steps_alarms_and_requests_are_events_in_one_order(journal, tmp_path):
    one = evacuation()
    journal.note_alarm(ALARM, "monitor", "e-1")
    journal.begin(one, "leased", at=10.0)
    journal.note_request("ada", "cancel", "e-1", "not now")
    journal.done(one, "leased", "host5", at=11.0)
    events = reopened(tmp_path).events(0)
    assert [event.number for event in events] == [1, 2, 3, 4]
    assert [(event.who, event.what) for event in events] == [
        ("monitor", "alarm"),
        ("controller", "step"),
        ("ada", "request"),
        ("controller", "step"),
    ]
    assert events[2].detail == {"act": "cancel", "subject": "e-1", "reason": "not now", "outcome": ""}
    assert events[3].detail == {"evacuation": "e-1", "step": "leased", "mark": "done", "words": "host5"}
    assert [event.number for event in journal.events(2)] == [3, 4]
    assert [event.number for event in journal.events(0, limit=1)] == [1]


def test_that_new_evacuations_are_stopped_is_remembered(journal, tmp_path):
    assert journal.status() is None
    journal.save_status(ControllerStatus("act", True, "ada", "tests", 5.0))
    assert reopened(tmp_path).status() == ControllerStatus("act", True, "ada", "tests", 5.0)


def test_of_a_guests_repeated_word_the_first_arrival_counts(journal):
    journal.note_report("job-1", 1, "guest1", "ready", 2, 5.0)
    journal.note_report("job-1", 1, "guest1", "ready", 2, 6.0)
    journal.note_report("job-1", 2, "guest1", "ready", 2, 7.0)
    assert journal.reports("job-1", 1) == [("guest1", "ready", 5.0)]


def test_a_jobs_notice_is_the_last_one_written(journal):
    journal.save_notice(Notice("job-1", 1, 0, [], 0, 0))
    journal.save_notice(Notice("job-1", 2, 1, ["guest1"], 0, 0))
    assert journal.notices() == [Notice("job-1", 2, 1, ["guest1"], 0, 0)]
