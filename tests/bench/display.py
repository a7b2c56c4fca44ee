"""What the display costs: writes build/bench/display.json. It needs a browser (Debian's chromium) and no testbed.

`draw_ms`, `update_ms`: in headless Chromium without a graphics card, from the whole machine in one picture: to draw it,
and to take an update of all hosts (decode it, draw). `bytes_per_s`: what a browser is sent at one update a second while
no job begins or ends, `first_bytes` what it is sent when it comes. `monitor_cpu`: the share of a core that the display
takes for no browser, for one and for 20; what reads the streams is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from failavoid.monitor.service import Monitor, build_app
from failavoid.monitor.settings import Settings
from failavoid.monitor.store import Collection
from failavoid.shared.messages import METRICS
from failavoid.shared.tokens import mint
from tests.browser import chromium, opened, until

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from display_site import CORES, SECRET, TOTAL_KB, bearer, free_port, many
from services_served import served

SIZES = (100, 1_000, 10_000)
BROWSERS, FIRST_S, LOOK_S, UPDATES = 20, 1.5, 10.0, 20
NOWHERE = "http://127.0.0.1:1"
_MEASURE = """async ([updates]) => {
  const { copy, rack } = window.failavoid;
  const drawn = [], updated = [];
  for (let turn = 0; turn < updates; turn++) {
    rack.draw();
    rack.context.getImageData(0, 0, 1, 1); // wait until it is on the canvas
    const began = performance.now();
    rack.draw();
    rack.context.getImageData(0, 0, 1, 1);
    drawn.push(performance.now() - began);
    const bytes = Uint8Array.from(copy.values, () => Math.floor(Math.random() * 255));
    const text = JSON.stringify({ time: turn, metric: copy.metric, values: btoa(String.fromCharCode(...bytes)) });
    const from = performance.now();
    copy.takeValues(JSON.parse(text));
    rack.draw();
    rack.context.getImageData(0, 0, 1, 1);
    updated.push(performance.now() - from);
    await new Promise(requestAnimationFrame);
  }
  return { drawn, updated };
}"""


@contextlib.contextmanager
def machine(count: int) -> Any:
    """A monitor of so many hosts, whose samples have come, and its URL; one collection a second is shown."""
    settings = Settings(listen="127.0.0.1", port=free_port(), resource_manager=NOWHERE, controller=NOWHERE)
    monitor = Monitor(settings, SECRET)
    membership = many(count)
    monitor.follower._membership = membership
    hosts = {host.name: column for column, host in enumerate(membership.hosts)}
    rng = np.random.default_rng(1)
    stopped = threading.Event()

    def show() -> None:
        values = np.full((len(METRICS), count), np.nan)
        values[METRICS.index("mem_total_kb")] = TOTAL_KB
        beat = time.monotonic()
        while not stopped.wait(max(0.0, beat - time.monotonic())):
            beat += 1.0
            values[METRICS.index("mem_available_kb")] = TOTAL_KB * rng.uniform(0.2, 0.9, count)
            monitor.display.take(Collection(time.time(), hosts, values))

    monitor.display.start()
    thread = threading.Thread(target=show)
    thread.start()
    try:
        with served(build_app(monitor, SECRET)) as url:
            yield url
    finally:
        stopped.set()
        thread.join()
        monitor.display.stop()


def in_browser(url: str, count: int) -> dict[str, Any]:
    """Milliseconds in a real browser."""
    with chromium() as browser, opened(browser, url, mint(SECRET, "reader", "bench")) as page:
        until(page, f"window.failavoid.copy.values.length === {count}")
        until(page, f"window.failavoid.rack.placed.tiles.size === {count}")
        found = page.evaluate(_MEASURE, [UPDATES])
    return {f"{name}_ms": _summary(found[key]) for name, key in (("draw", "drawn"), ("update", "updated"))}


def _summary(taken: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(taken), 1), "worst": round(max(taken), 1)}


async def watch(url: str, seconds: float) -> tuple[int, int]:
    """(bytes of the beginning, bytes of the rest) that a browser is sent."""
    first = rest = 0
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("GET", f"{url}/live/stream", headers=bearer("reader")) as answer,
    ):
        began = None
        async for data in answer.aiter_bytes():
            began = began or time.monotonic()
            if time.monotonic() - began < FIRST_S:
                first += len(data)
            else:
                rest += len(data)
            if time.monotonic() - began > seconds + FIRST_S:
                break
    return first, rest


def with_browsers(url: str, browsers: int) -> dict[str, float]:
    """Watch with so many browsers at once; the share of a core includes what the watching itself takes here."""

    async def all_of_them() -> list[tuple[int, int]]:
        return await asyncio.gather(*(watch(url, LOOK_S) for _ in range(browsers)))

    cpu, began = time.process_time(), time.monotonic()
    found = asyncio.run(all_of_them())
    share = (time.process_time() - cpu) / (time.monotonic() - began)
    return {
        "first_bytes": found[0][0],
        "bytes_per_s": round(statistics.mean(rest for _, rest in found) / LOOK_S),
        "cpu_share": round(share, 3),
    }


def main() -> None:
    """Measure all sizes."""
    logging.basicConfig(level=logging.ERROR)
    report: dict[str, Any] = {"cores_per_host": CORES, "browsers": BROWSERS}
    for count in SIZES:
        with machine(count) as url:
            cpu = time.process_time()
            time.sleep(LOOK_S / 2)
            idle = (time.process_time() - cpu) / (LOOK_S / 2)
            one, all_ = with_browsers(url, 1), with_browsers(url, BROWSERS)
            report[str(count)] = {
                "first_bytes": one["first_bytes"],
                "bytes_per_s": one["bytes_per_s"],
                "monitor_cpu": {"0": round(idle, 3), "1": one["cpu_share"], str(BROWSERS): all_["cpu_share"]},
                **in_browser(url, count),
            }
        print(count, json.dumps(report[str(count)]), flush=True)
    path = Path("build/bench/display.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
