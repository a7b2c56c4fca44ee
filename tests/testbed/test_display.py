"""The display during a real evacuation: what people see while guests of a running MPI job leave a host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from failavoid.demo.observe import Services
from failavoid.demo.site import Site
from tests.browser import MARKS, TAG, chromium, opened, picture, until
from tests.testbed.long_job import MOVE_S, LongJob, long_job


@pytest.fixture(scope="module")
def job(site: Site, services: Services) -> Iterator[LongJob]:
    """An MPI job on two hosts that computes on."""
    with long_job(site, services, hosts=2, guests_per_host=1, memory_mb=288) as job:
        yield job
        assert job.finish() == 0


def test_an_evacuation_is_seen_in_the_browser_as_it_happens_and_again(site, services, job):
    source, still = sorted(guest.host for guest in services.membership().guests if guest.job == job.ident)
    url, token = str(services.monitor.base_url).rstrip("/"), site.run(site.head, "cat", "/etc/failavoid/tokens/root")
    # a browser of the site's users knows the site's authority; this one need not
    with chromium() as browser, opened(browser, url, token.strip(), ignore_https_errors=True) as page:
        assert page.evaluate(MARKS, source) == ["0 here"]
        assert page.evaluate(MARKS, still) == ["1 here"]
        picture(page, "testbed-before")
        evacuation = job.evacuate(source)
        expect(page.get_by_role("heading", name="1 evacuation under way")).to_be_visible()
        page.locator("aside a", has_text=evacuation).first.click()
        spare = f"window.failavoid.copy.get('evacuation', '{evacuation}').spare"
        until(page, spare)
        destination = page.evaluate(spare)
        # seen in both places while it moves; the moment is short, so it is looked for until it has come
        until(page, f"({MARKS})('{destination}').join() === '0 coming'")
        assert page.evaluate(MARKS, source) in (["0 leaving"], [])
        picture(page, "testbed-moving")
        expect(page.locator(".badge").first).to_have_text("retired", timeout=MOVE_S * 1000)
        expect(page.locator(".timeline")).to_contain_text("host is defunct")
        until(page, f"({TAG})('{source}') === 'defunct'")
        assert page.evaluate(MARKS, destination) == ["0 here"]
        picture(page, "testbed-moved")
        page.get_by_role("link", name="Replay it").click()
        expect(page.get_by_role("slider")).to_be_visible()
        picture(page, "testbed-replay")
    job.restore()
