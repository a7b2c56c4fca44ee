"""The display in a real browser, on a machine whose hosts are played: what people see, with keys and without.

Pictures of it are in build/display/.
"""

import re
import time

import numpy as np
import pytest
from display_site import SECRET, Machine, Site, many, playing_manager, site, surroundings
from playwright.sync_api import expect
from services_served import served

from failavoid.monitor.service import build_app
from failavoid.prediction.models import BINS, Distribution
from failavoid.shared.tokens import mint
from tests.browser import MARKS, TAG, chromium, opened, picture, pictures, until


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def shown(browser, url, role="reader", at="", **options):
    """A page of the display, for somebody of that role."""
    return opened(browser, url, mint(SECRET, role, "ada") if role else "", at, **options)


@pytest.fixture
def there(tmp_path):
    with site(tmp_path) as (made, url):
        yield made, url


def test_whoever_has_no_token_or_a_wrong_one_is_asked_for_it_and_sees_nothing(browser, there):
    _, url = there
    with shown(browser, url, role="") as page:
        expect(page.get_by_role("dialog")).to_contain_text("A token, please")
        page.fill("#token", mint(b"x" * 48, "operator", "eve"))
        page.keyboard.press("Enter")
        expect(page.locator("#ask-why")).to_contain_text("was not made with this site's secret")
        assert page.evaluate("window.failavoid.copy.all('host').size") == 0
        page.fill("#token", mint(SECRET, "reader", "ada"))
        page.keyboard.press("Enter")
        expect(page.locator("#link")).to_have_text("live")
        expect(page.locator("#pools")).to_contain_text("3 allocated")


def test_an_evacuation_is_seen_from_the_alarm_to_the_defunct_host(browser, there):
    made, url = there
    with shown(browser, url) as page:
        until(page, "window.failavoid.rack.cores.size === 5")
        assert page.evaluate(MARKS, "host1") == ["0 here", "1 here"]
        assert page.evaluate(TAG, "host4") == "spare"
        picture(page, "machine")
        made.world.stuck = True
        made.far(30, 10)
        made.world.ranks_behave()
        before = page.evaluate("window.failavoid.rack.share('host1')")
        made.used["host1"] = 0.85
        expect(page.get_by_role("heading", name="1 evacuation under way")).to_be_visible()
        page.locator("aside td a", has_text="-host1").first.click()
        expect(page.locator(".badge").first).to_have_text("migrating")
        assert before == pytest.approx(0.3, abs=0.02)
        assert page.evaluate("window.failavoid.rack.share('host1')") == pytest.approx(0.85, abs=0.02)
        # a guest that moves is in both places
        until(page, f"({MARKS})('host4').length === 2")
        assert page.evaluate(MARKS, "host1") == ["0 leaving", "1 leaving"]
        assert page.evaluate(MARKS, "host4") == ["0 coming", "1 coming"]
        assert (page.evaluate(TAG, "host1"), page.evaluate(TAG, "host4")) == ("being left", "leased spare")
        expect(page.get_by_role("progressbar").first).to_have_attribute("value", "0.75")
        expect(page.locator(".timeline")).to_contain_text("ranks have stopped")
        pictures(page, "moving")
        made.world.stuck = False
        expect(page.locator(".badge").first).to_have_text("retired")
        expect(page.locator(".timeline")).to_contain_text("host is defunct")
        expect(page.locator("#pools")).to_contain_text("1 defunct")
        until(page, f"({TAG})('host1') === 'defunct'")
        assert page.evaluate(MARKS, "host1") == []
        assert page.evaluate(MARKS, "host4") == ["0 here", "1 here"]
        picture(page, "moved")


def test_a_recorded_evacuation_is_replayed(browser, there):
    made, url = there
    made.until(lambda: made.monitor.store.counts()[0] > 25)
    made.world.stuck = True
    made.world.ranks_behave()
    (evacuation,) = made.world.controller.order("host1", "fan is loud", "ada")
    made.world.until_state(evacuation, "MIGRATING")
    time.sleep(1.0)  # so that there is a moment to look at
    made.world.stuck = False
    ended = made.world.until_state(evacuation, "RETIRED")
    migrating = next(step for step in ended.steps if step.name == "migrating")
    with shown(browser, url, at=f"#/evacuation/{evacuation.id}/replay") as page:
        page.get_by_role("button", name="Pause").click()

        def at(moment):
            page.get_by_role("slider").evaluate(
                "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input')); }", moment
            )
            page.evaluate("new Promise(requestAnimationFrame)")

        at(migrating.begun - 0.3)
        assert page.evaluate(MARKS, "host1") == ["0 here", "1 here"]
        at((migrating.begun + migrating.done) / 2)
        assert page.evaluate(MARKS, "host1") == ["0 leaving", "1 leaving"]
        assert page.evaluate(MARKS, "host4") == ["0 coming", "1 coming"]
        picture(page, "replay")
        at(ended.steps[-1].done + 0.1)
        assert page.evaluate(MARKS, "host4") == ["0 here", "1 here"]
        assert page.evaluate(TAG, "host1") == "defunct"


def test_a_reader_may_look_and_an_operator_cancel(browser, tmp_path):
    with site(tmp_path, mode="recommend") as (made, url):
        evacuation = made.world.alarm()
        made.world.until_state(evacuation, "LEASED")
        at = f"#/evacuation/{evacuation.id}"
        with shown(browser, url, at=at) as page:
            for name in ("Confirm", "Cancel"):
                expect(page.get_by_role("button", name=name)).to_be_disabled()
        with shown(browser, url, role="operator", at=at) as page:
            picture(page, "to-confirm")
            page.on("dialog", lambda dialog: dialog.accept("not now"))
            page.get_by_role("button", name="Cancel").click()
            expect(page.locator(".badge").first).to_have_text("cancelled")
            expect(page.locator("aside")).to_contain_text("ada: not now")


def test_an_operator_confirms(browser, tmp_path):
    with site(tmp_path, mode="recommend") as (made, url):
        made.world.ranks_behave()
        evacuation = made.world.alarm()
        made.world.until_state(evacuation, "LEASED")
        with shown(browser, url, role="operator", at=f"#/evacuation/{evacuation.id}") as page:
            page.get_by_role("button", name="Confirm").click()
            expect(page.locator(".badge").first).to_have_text("retired")
        assert made.world.controller.run(evacuation.id).evacuation.confirmed_by == "ada"


def test_the_keyboard_is_enough(browser, there):
    _, url = there
    with shown(browser, url) as page:
        page.locator("#rack").focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        expect(page.locator("#said")).to_have_text(re.compile(r"host2, allocated, \d+ %, 2 guests"))
        page.keyboard.press("ArrowRight")
        expect(page.locator("#said")).to_contain_text("host5")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="host5", exact=True)).to_be_visible()
        zoom = page.evaluate("window.failavoid.rack.view.zoom")
        page.keyboard.press("+")
        assert page.evaluate("window.failavoid.rack.view.zoom") > zoom
        page.keyboard.press("0")
        assert page.evaluate("window.failavoid.rack.view.zoom") == pytest.approx(zoom)
        page.keyboard.press("/")
        page.keyboard.type("guest3")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="host2", exact=True)).to_be_visible()
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        expect(page.get_by_role("heading", name="The machine")).to_be_visible()


def test_a_host_is_drawn_among_its_peers_and_a_picked_job_stands_out(browser, there):
    made, url = there
    made.used["host1"] = 0.45  # less than what the rules look at
    with shown(browser, url, at="#/host/host1") as page:
        expect(page.locator(".uplot canvas")).to_be_visible()
        expect(page.locator("aside")).to_contain_text(re.compile(r"memory in use (44|45|46) %"))
        expect(page.locator(".cores span")).to_have_count(8)
        made.until(lambda: made.monitor.display.recent.begin() < time.time() - 10)
        pictures(page, "host")
        page.get_by_role("link", name="job-1").first.click()
        expect(page.get_by_role("heading", name="job-1")).to_be_visible()
        expect(page.locator("aside tbody tr").first).to_contain_text("guest1")
        dimmed = "['host1', 'host3', 'host4'].map(host => window.failavoid.rack.scene().dim(host))"
        assert page.evaluate(dimmed) == [False, False, True]
        pictures(page, "job")


def test_what_was_learned_is_drawn_with_where_the_hosts_stand(browser, there):
    made, url = there
    bins = np.arange(BINS)
    counts = np.exp(-(((bins / BINS - 0.3) / 0.05) ** 2))
    made.monitor.state.keep_distribution("job", "unavailable", Distribution(counts * 1000, 12))
    with shown(browser, url, at="#/learned") as page:
        expect(page.get_by_role("heading", name="job, 12 runs")).to_be_visible()
        expect(page.locator("aside a", has_text="host")).to_have_count(3)
        pictures(page, "learned")


def test_another_metric_colours_the_machine(browser, there):
    _, url = there
    with shown(browser, url) as page:
        page.select_option("#metric", "cpu")
        until(page, "window.failavoid.copy.metric === 'cpu'")
        assert page.evaluate("window.failavoid.rack.share('host1')") == pytest.approx(0.9, abs=0.01)
        page.select_option("#metric", "temperature_c")
        until(page, "window.failavoid.copy.metric === 'temperature_c'")
        expect(page.locator("#scale")).to_have_text("20 °C100 °C")
        assert page.evaluate("Number.isNaN(window.failavoid.rack.share('host1'))")  # these hosts have no such sensor


def test_a_page_stays_right_through_a_restart_of_the_monitor(browser, tmp_path):
    with surroundings(tmp_path) as (world, controller, manager):
        with Site(world, controller, manager).running() as made, served(build_app(made.monitor, SECRET)) as url:
            context = shown(browser, url)
            page = context.__enter__()
            first = page.evaluate("window.failavoid.stream.last.split('.')[0]")
        expect(page.locator("#link")).to_have_text("lost: trying on")
        world.manager.membership.hosts[4].pool = "defunct"
        world.manager.change()
        port = int(url.rpartition(":")[2])
        with Site(world, controller, manager).running() as made, served(build_app(made.monitor, SECRET), port):
            expect(page.locator("#link")).to_have_text("live")
            expect(page.locator("#pools")).to_contain_text("1 defunct")
            assert page.evaluate("window.failavoid.stream.last.split('.')[0]") != first
            until(page, "Math.abs(window.failavoid.rack.share('host1') - 0.3) < 0.03")
            context.__exit__(None, None, None)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_fuller_host_is_told_by_lightness_alone_on_light_and_dark_paper(browser, there, scheme):
    _, url = there
    with shown(browser, url, color_scheme=scheme) as page:
        lightness = page.evaluate(
            """async () => {
              const { fill } = await import('/display/colours.js');
              return Array.from({ length: 255 }, (_, step) => {
                const [r, g, b] = fill(step).match(/\\d+/g).map(Number);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
              });
            }"""
        )
        picture(page, f"machine-{scheme}")
    if scheme == "light":
        lightness = [-value for value in lightness]  # fuller is darker
    steps = [after - before for before, after in zip(lightness, lightness[1:])]
    assert min(steps) >= -1.5  # rounding of colours; the way as a whole goes up
    assert lightness[-1] - lightness[0] > 150


def test_ten_thousand_hosts_are_seen_as_one_and_can_be_looked_into(browser, tmp_path):
    membership = many(10_000)
    with served(playing_manager(lambda: membership)) as manager:
        machine = Machine(lambda: membership, "http://127.0.0.1:1", manager, interval_s=3.0, stale_s=20.0)
        with machine.running(), served(build_app(machine.monitor, SECRET)) as url, shown(browser, url) as page:
            until(page, "window.failavoid.rack.placed.tiles.size === 10000")
            until(page, "window.failavoid.rack.share('host09999') > 0")
            assert page.evaluate("window.failavoid.rack.visible().length") == 10_000
            pictures(page, "ten-thousand")
            page.fill("#find", "host04321")
            page.keyboard.press("Enter")
            expect(page.get_by_role("heading", name="host04321")).to_be_visible()
            page.evaluate("window.failavoid.rack.view.zoomBy(1000)")
            page.evaluate("window.failavoid.rack.select('host04321')")
            until(page, "window.failavoid.rack.cores.get('host04321')?.length === 8")
            assert page.evaluate("window.failavoid.rack.visible().length") < 200
            pictures(page, "ten-thousand-near")
