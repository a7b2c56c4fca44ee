"""A host fails and is left: what people see in the browser and are told by mail and webhook, what Prometheus has."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import expect

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.runs import start_hog, stop_hog
from failavoid.demo.scale import SCALES
from failavoid.demo.site import PORTS, Site
from failavoid.monitor.settings import AlertSettings
from failavoid.shared.messages import Evacuation
from failavoid.shared.tokens import mint
from tests.alert_receivers import mail_server_at, webhook_at
from tests.browser import MARKS, TAG, chromium, opened, picture, until
from tests.prometheus import (
    ask,
    check_that_all_is_known_that_rules_and_dashboard_ask_for,
    prometheus,
    rules_of,
    value,
)
from tests.testbed.changed_settings import changed_settings
from tests.testbed.long_job import MOVE_S, LongJob, long_job

# beside a guest of 288 MiB the host comes to more than danger and less than its end
HOG = dataclasses.replace(SCALES["default"], hog_share=0.65, hog_seconds=30.0)
ALARM_S, TELL_S = 90.0, 30.0


@dataclass
class Told:
    """What the monitor's receivers were told: the webhook's documents, and (receivers, message) of each mail."""

    webhook: list[dict[str, object]]
    mails: list[tuple[list[str], str]]


@pytest.fixture(scope="module")
def told(site: Site, services: Services, own_address: str) -> Iterator[Told]:
    """A webhook and a mail server on this machine, which the testbed's monitor tells of alarms and evacuations."""
    with webhook_at(own_address) as webhook, mail_server_at(own_address) as (port, mails):
        mail = AlertSettings("mail", to=["ops@site.example", "hpc@site.example"], server=own_address, port=port)
        receivers = [dataclasses.asdict(one) for one in (webhook.settings, mail)]
        with changed_settings(site, services, "monitor", alerts=receivers, display_url=site.url("monitor")):
            yield Told(webhook.told, mails)


@pytest.fixture(scope="module")
def api(site: Site, services: Services, told: Told, tmp_path_factory: pytest.TempPathFactory):
    """Prometheus on this machine, which scrapes the testbed's services over TLS by a reader's token."""
    secret = site.run(site.head, "cat", "/etc/failavoid/secret").strip().encode()
    targets = {name: site.url(name) for name in PORTS}
    authority = site.run(site.head, "cat", "/etc/failavoid/authority.pem")
    folder = tmp_path_factory.mktemp("prometheus") / "made"
    with prometheus(folder, targets, mint(secret, "reader", "prometheus"), authority) as api:
        yield api


@pytest.fixture(scope="module")
def job(site: Site, services: Services, told: Told, api) -> Iterator[LongJob]:
    """An MPI job on three hosts that computes on: of two, nobody could say which is the outlier."""
    with long_job(site, services, hosts=3, guests_per_host=1, memory_mb=288) as job:
        yield job
        assert job.finish() == 0


class Failure:
    """A host of the job whose memory a process takes. It begins when first asked for its evacuation, and once."""

    def __init__(self, job: LongJob, api) -> None:
        self.job, self.host = job, job.hosts()[0]
        self.retired_before = value(api, 'failavoid_evacuations_total{outcome="retired"}')
        self._name = ""

    def evacuation(self) -> str:
        """Its name, as soon as there is one."""
        if not self._name:
            begun = time.time()
            start_hog(self.job.site, self.host, HOG)

            def found() -> bool:
                names = [
                    one.id
                    for one in self.job.services.evacuations(self.job.ident)
                    if one.steps and one.steps[0].begun > begun
                ]
                self._name = names[0] if names else ""
                return bool(names)

            assert wait_until(found, ALARM_S, interval=0.1), "no alarm, or nobody acted on it"
        return self._name

    def ended(self) -> Evacuation:
        """Wait for its end, which is as it should be."""
        ended = self.job.ended(self.evacuation())
        assert (ended.state, ended.error) == ("RETIRED", "")
        return ended


@pytest.fixture(scope="module")
def failure(job: LongJob, api) -> Iterator[Failure]:
    """A host of the job that fails during these tests, and is repaired afterwards."""
    failure = Failure(job, api)
    yield failure
    stop_hog(job.site, failure.host)
    assert job.goes_on()
    # its memory is given back, and its agent has told so
    assert wait_until(lambda: restored(job), 60, interval=2)


def restored(job: LongJob) -> bool:
    """Whether no host is defunct any more; each is asked for again."""
    for host in job.services.membership().hosts:
        if host.pool == "defunct":
            job.services.resource_manager.post(f"/hosts/{host.name}/restore", json={}, timeout=60)
    return not any(host.pool == "defunct" for host in job.services.membership().hosts)


def test_an_evacuation_is_seen_in_the_browser_as_it_happens_and_again(site, services, job, failure):
    source = failure.host
    (still, _) = (host for host in job.hosts() if host != source)
    rank = {guest.host: f"{number} here" for number, guest in enumerate(ranks(job))}
    url, token = str(services.monitor.base_url).rstrip("/"), site.run(site.head, "cat", "/etc/failavoid/tokens/root")
    # a browser of the site's users knows the site's authority; this one need not
    with chromium() as browser, opened(browser, url, token.strip(), ignore_https_errors=True) as page:
        share = "host => window.failavoid.rack.share(host)"
        assert page.evaluate(MARKS, source) == [rank[source]]
        assert page.evaluate(MARKS, still) == [rank[still]]
        before = page.evaluate(share, source)
        picture(page, "testbed-before")
        evacuation = failure.evacuation()
        expect(page.get_by_role("heading", name="1 evacuation under way")).to_be_visible()
        page.locator("aside a", has_text=evacuation).first.click()
        spare = f"window.failavoid.copy.get('evacuation', '{evacuation}').spare"
        until(page, spare)
        destination = page.evaluate(spare)
        # seen in both places while it moves; the moment is short, so it is looked for until it has come
        until(page, f"({MARKS})('{destination}').join().endsWith(' coming')")
        assert page.evaluate(MARKS, source) in ([rank[source].replace("here", "leaving")], [])
        assert page.evaluate(share, source) > before + 0.2  # its colour has turned
        picture(page, "testbed-moving")
        expect(page.locator(".badge").first).to_have_text("retired", timeout=MOVE_S * 1000)
        expect(page.locator(".timeline")).to_contain_text("host is defunct")
        until(page, f"({TAG})('{source}') === 'defunct'")
        assert page.evaluate(MARKS, destination) == [rank[source]]
        picture(page, "testbed-moved")
        page.get_by_role("link", name=f"{source}", exact=True).first.click()
        expect(page.locator(".uplot canvas")).to_be_visible()
        expect(page.locator("aside")).to_contain_text("Last alarm")
        picture(page, "testbed-host")
        page.go_back()
        page.get_by_role("link", name="Replay it").click()
        expect(page.get_by_role("slider")).to_be_visible()
        picture(page, "testbed-replay")


def ranks(job: LongJob):
    """The job's guests by rank."""
    guests = {guest.name: guest for guest in job.guests()}
    return [guests[name] for name in job.services.job(job.ident).guests]


def test_people_are_told_of_the_alarm_and_of_the_evacuations_end_by_mail_and_webhook(site, job, failure, told):
    ended = failure.ended()

    def subjects() -> set[str]:
        return {f"{alert['subject']}" for alert in told.webhook}

    alarm, end = f"{failure.host} of job {job.ident} is about to fail", f"{failure.host}: RETIRED"
    assert wait_until(lambda: {alarm, end} <= subjects(), TELL_S), subjects()
    by_subject = {alert["subject"]: alert for alert in told.webhook}
    assert by_subject[alarm]["occasion"] == "alarm"
    assert by_subject[end]["link"] == f"{site.url('monitor')}/display/#/evacuation/{ended.id}"
    assert f"1 guest to {ended.spare}" in str(by_subject[end]["text"])

    def mailed(subject: str) -> bool:
        return any(
            receivers == ["ops@site.example", "hpc@site.example"] and f"Subject: failavoid: {subject}" in message
            for receivers, message in told.mails
        )

    assert wait_until(lambda: mailed(alarm) and mailed(end), TELL_S), told.mails
    assert [alert["subject"] for alert in told.webhook].count(end) == 1


def test_prometheus_scrapes_the_services_and_its_rules_raise_the_alarm(failure, api):
    ended = failure.ended()
    check_that_all_is_known_that_rules_and_dashboard_ask_for(api)
    retired = 'failavoid_evacuations_total{outcome="retired"}'
    assert wait_until(lambda: value(api, retired) == failure.retired_before + 1, TELL_S)
    moves = len(ended.migrations)
    for histogram in ("failavoid_migration_seconds", "failavoid_migration_downtime_seconds"):
        assert value(api, f"{histogram}_count") >= moves
    assert value(api, "failavoid_barrier_hold_seconds_count") >= 1
    assert value(api, 'failavoid_hosts{pool="defunct"}') >= 1
    states = {rule["name"]: rule["state"] for rule in rules_of(api)}
    assert states["FailavoidAlarm"] == "firing"
    assert states["FailavoidServiceDown"] == states["FailavoidEvacuationFailed"] == "inactive"
    assert ask(api, 'up{job="failavoid"} == 0') == []
