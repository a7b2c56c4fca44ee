"""Who is told of what, by mail and webhook, once each, over real SMTP and HTTP."""

import time
from dataclasses import replace

import pytest
from display_site import site

from failavoid.monitor import alerts
from failavoid.monitor.alerts import Alert, Alerter, Seen, deliver, holding
from failavoid.monitor.settings import AlertSettings
from failavoid.shared.messages import Alarm, Evidence, Finding, Host, Job, JobRequest, Membership
from tests.alert_receivers import mail_server_at, webhook_at

PATIENCE_S = 20.0
BEGAN = 1000.0


@pytest.fixture
def webhook():
    with webhook_at() as made:
        yield made


@pytest.fixture
def mail_server():
    with mail_server_at() as made:
        yield made


def seen(**changes):
    """A quiet machine: a job runs, a spare is there."""
    job = Job("job-1", JobRequest("u", 1, 1, "", 1), "running")
    membership = Membership(1, [Host("host1", "", "allocated"), Host("host2", "", "free")], [], [job])
    return replace(Seen(BEGAN + 100, BEGAN, [], [], [], membership), **changes)


def alarm(at, host="host1"):
    evidence = Evidence(0.8, 0.3, 0.01, 50.0, 0.75, predicted_failure_s=42.0)
    return Alarm(f"alarm-{at}", at, host, "job-1", "robust", "unavailable", 0.8, evidence)


def evacuation(state, ended, error="", migrations=(("host2", "moved"), ("host2", "moved"))):
    return {
        "id": "e-1",
        "host": "host1",
        "job": "job-1",
        "state": state,
        "spare": "host2",
        "migrations": [{"destination": host, "state": went} for host, went in migrations],
        "error": error,
        "steps": [{"name": "alarm", "begun": ended - 5, "done": ended}],
    }


def test_a_quiet_machine_is_not_worth_an_alert():
    assert holding(seen()) == {}


def test_an_alarm_is_told_with_its_figures_and_the_same_again_is_no_news():
    once = holding(seen(alarms=[alarm(BEGAN + 10)]))
    ((name, told),) = once.items()
    assert told.subject == "host1 of job job-1 is about to fail"
    assert "80%, its group 30%, z 50.0, failure in 42 s" in told.text
    assert set(holding(seen(alarms=[alarm(BEGAN + 10), alarm(BEGAN + 40)]))) == {name}
    assert holding(seen(now=BEGAN + 10 + alerts.AGAIN_S + 1, alarms=[alarm(BEGAN + 10)])) == {}


def test_an_evacuation_is_told_when_it_ends_with_its_outcome():
    assert holding(seen(evacuations=[evacuation("MIGRATING", BEGAN + 10)])) == {}
    (told,) = holding(seen(evacuations=[evacuation("RETIRED", BEGAN + 10)])).values()
    assert (told.subject, "2 guests to host2" in told.text) == ("host1: RETIRED", True)
    (told,) = holding(seen(evacuations=[evacuation("FAILED", BEGAN + 10, "no answer")])).values()
    assert "no answer" in told.text


@pytest.mark.parametrize(
    ("migrations", "words"),
    [
        ([], "no guest moved"),
        ([("host2", "cancelled"), ("host2", "planned")], "no guest moved"),
        ([("host2", "running")], "whether a guest moved is not clear"),
        ([("host2", "failed"), ("host2", "moved"), ("host3", "moved")], "2 guests to host2, host3"),
    ],
)
def test_only_guests_that_have_moved_are_told_to_be_at_their_spare(migrations, words):
    (told,) = holding(seen(evacuations=[evacuation("CANCELLED", BEGAN + 10, "withdrawn", migrations)])).values()
    assert told.text == f"evacuation e-1 of job job-1: {words}; withdrawn"


def test_what_ended_before_the_monitor_began_is_not_told_again():
    assert holding(seen(alarms=[alarm(BEGAN - 1)], evacuations=[evacuation("RETIRED", BEGAN - 1)])) == {}


def test_no_spare_and_a_silent_host_are_told():
    full = seen().membership
    full.hosts[1].pool = "allocated"
    found = holding(
        seen(membership=full, findings=[Finding("silent", "host1", 1.0, "no samples"), Finding("lossy", "x", 1.0, "")])
    )
    assert set(found) == {"no-spare", "silent host1"}
    full.jobs[0].state = "completed"
    assert holding(seen(membership=full)) == {}


def test_a_mail_says_what_why_and_where_to_look(mail_server):
    port, taken = mail_server
    receiver = AlertSettings("mail", to=["ops@site", "hpc@site"], server="127.0.0.1", port=port)
    deliver(receiver, Alert("alarm", 0.0, "host1 is about to fail", "memory 80%", "#/host/host1"), "https://head:7411/")
    ((receivers, message),) = taken
    assert receivers == ["ops@site", "hpc@site"]
    assert "Subject: failavoid: host1 is about to fail" in message
    assert "https://head:7411/display/#/host/host1" in message


def test_a_webhook_is_told_once_and_again_only_after_it_was_over(webhook):
    now = [seen(alarms=[alarm(BEGAN + 10)])]
    alerter = Alerter([webhook.settings], "", lambda: now[0])
    for _ in range(3):
        alerter._take(holding(now[0]))
        alerter._tell(0.0)
    (told,) = webhook.told
    assert told["text"].startswith("failavoid: host1 of job job-1 is about to fail: ")
    assert told["occasion"] == "alarm"
    for now[0] in (seen(), seen(alarms=[alarm(BEGAN + 90)])):
        alerter._take(holding(now[0]))
        alerter._tell(0.0)
    assert len(webhook.told) == 2


def test_a_receiver_is_told_of_its_occasions_alone(webhook):
    alerter = Alerter([replace(webhook.settings, occasions=["silent"])], "", seen)
    alerter._take(holding(seen(alarms=[alarm(BEGAN + 10)], findings=[Finding("silent", "host1", 1.0, "")])))
    alerter._tell(0.0)
    assert [told["occasion"] for told in webhook.told] == ["silent"]


def test_a_receiver_that_does_not_answer_is_tried_again_some_times_and_its_secret_is_not_logged(webhook, caplog):
    webhook.status = 500
    alerter = Alerter([webhook.settings], "", seen)
    alerter._take({"x": Alert("alarm", 0.0, "host1 is about to fail", "")})
    for moment in range(0, 1000, 5):
        alerter._tell(float(moment))
    assert webhook.asked == alerts.TRIES
    assert "could not be told of 'host1 is about to fail': it answered 500" in caplog.text
    assert "secret" not in caplog.text
    webhook.status = 200
    alerter._take({})
    alerter._take({"x": Alert("alarm", 0.0, "host1 is about to fail", "")})
    alerter._tell(2000.0)
    assert len(webhook.told) == 1


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"kind": "pigeon"}, "use webhook or mail"),
        ({"kind": "webhook", "url": "head"}, "give it as https"),
        ({"kind": "mail"}, "mail to nobody"),
        ({"kind": "mail", "to": ["a@b"], "occasions": ["rain"]}, "use some of alarm, evacuation"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_way_out(wrong, word):
    with pytest.raises(ValueError, match=word):
        AlertSettings(**wrong)


def test_the_monitor_tells_of_a_real_alarm_and_of_the_evacuation_that_follows(tmp_path, webhook, monkeypatch):
    monkeypatch.setattr(alerts, "LOOK_S", 0.1)
    with site(tmp_path, alerts=[webhook.settings]) as (made, _url):
        made.until(lambda: made.monitor.store.counts()[0] > 25)
        made.world.ranks_behave()
        made.used["host1"] = 0.85
        made.until(lambda: {told["occasion"] for told in webhook.told} >= {"alarm", "evacuation"})
    subjects = [told["subject"] for told in webhook.told]
    assert "host1 of job job-1 is about to fail" in subjects
    assert "host1: RETIRED" in subjects
    assert time.time() - webhook.told[0]["time"] < PATIENCE_S
