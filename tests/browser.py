"""The display in a real browser: headless Chromium, Debian's, driven by Playwright."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
PICTURES = Path(__file__).parents[1] / "build/display"
PATIENCE_MS = 60_000  # the machine may have much else to do
# what the rack draws of a host
MARKS = "host => window.failavoid.rack.scene().marksOf(host).map(mark => `${mark.text} ${mark.kind}`)"
TAG = "host => window.failavoid.rack.scene().tagOf(host)"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The browser."""
    assert CHROMIUM.exists(), (
        f"{CHROMIUM} is missing: it is Debian's package chromium, which 'make test-tools' installs"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Browser, url: str, token: str, at: str = "", **options: Any) -> Iterator[Page]:
    """A page of the display at ``url``; what it logs as an error, or asks for elsewhere, fails."""
    context = browser.new_context(viewport={"width": 1400, "height": 820}, **options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: request.url.startswith((url, "data:")) or faults.append(request.url))
    if token:
        page.add_init_script(f"sessionStorage.setItem('failavoid-token', '{token}')")
    page.goto(f"{url}/display/{at}")
    if token:
        expect(page.locator("#link")).to_have_text("live")
        until(page, "window.failavoid.copy.values.length > 0 && window.failavoid.copy.all('host').size > 0")
    yield page
    assert faults == []
    context.close()


def until(page: Page, expression: str) -> None:
    """Wait for what is so in the page; its Content-Security-Policy forbids Playwright's own way of waiting."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"it did not come to {expression}"
        page.wait_for_timeout(30)


def picture(page: Page, name: str) -> None:
    """Keep what is seen now, to be looked at."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")


def pictures(page: Page, name: str) -> None:
    """The same on light and on dark paper."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        picture(page, name if scheme == "light" else f"{name}-{scheme}")
    page.emulate_media(color_scheme="light")
