"""The source `prometheus`: asks a Prometheus server for what node_exporter says of each host.

Options: ``url`` of the server; ``interval_s`` between questions; ``selector``, label matchers that choose the hosts
(`job="node"`); ``label`` that holds a host's name, of which a port and a domain are left out.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import httpx

from failavoid.monitor.sources import Context, take_options
from failavoid.shared.messages import Sample
from failavoid.shared.names import InvalidNameError, check_name

log = logging.getLogger(__name__)
TIMEOUT_S = 10.0
# what a metric is made of, as PromQL; %s takes the selector
QUERIES = {
    "mem_total_kb": "node_memory_MemTotal_bytes{%s} / 1024",
    "mem_available_kb": "node_memory_MemAvailable_bytes{%s} / 1024",
    "mem_active_kb": "node_memory_Active_bytes{%s} / 1024",
    "swap_used_kb": "(node_memory_SwapTotal_bytes{%s} - node_memory_SwapFree_bytes{%s}) / 1024",
    "load1": "node_load1{%s}",
    "cpu": '1 - avg without (cpu, mode) (rate(node_cpu_seconds_total{mode="idle",%s}[1m]))',
    "psi_cpu": "rate(node_pressure_cpu_waiting_seconds_total{%s}[1m])",
    "psi_memory": "rate(node_pressure_memory_waiting_seconds_total{%s}[1m])",
    "psi_io": "rate(node_pressure_io_waiting_seconds_total{%s}[1m])",
    "psi_memory_full": "rate(node_pressure_memory_stalled_seconds_total{%s}[1m])",
    "ecc_corrected": "sum without (controller) (node_edac_correctable_errors_total{%s})",
    "ecc_corrected_per_h": "sum without (controller) (increase(node_edac_correctable_errors_total{%s}[1h]))",
    "ecc_uncorrected": "sum without (controller) (node_edac_uncorrectable_errors_total{%s})",
    "temperature_c": "max without (chip, sensor) (node_hwmon_temp_celsius{%s})",
    "fan_rpm": "min without (chip, sensor) (node_hwmon_fan_rpm{%s})",
}


class PrometheusSource:
    """Polls in a thread of its own; a server that is away is asked again."""

    @staticmethod
    def check(options: dict[str, Any]) -> dict[str, Any]:
        """Return all options. Raises ValueError."""
        taken = take_options("prometheus", options, url="", interval_s=5.0, selector="", label="instance")
        if not taken["url"].startswith(("http://", "https://")):
            raise ValueError(f"source prometheus: option 'url' is {taken['url']!r}; give it as http://ADDRESS:PORT")
        if not 0.1 <= taken["interval_s"] <= 3600:
            raise ValueError(
                f"source prometheus: option 'interval_s' is {taken['interval_s']}; give seconds from 0.1 to 3600"
            )
        return taken

    def __init__(self, options: dict[str, Any], context: Context) -> None:
        taken = self.check(options)
        self._client = httpx.Client(base_url=taken["url"], timeout=TIMEOUT_S)
        self._interval_s = float(taken["interval_s"])
        self._selector, self._label = taken["selector"], taken["label"]
        self._store = context.store
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prometheus", daemon=True)
        self._trouble = ""

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a question under way is cut off."""
        self._stopped.set()
        self._client.close()

    def poll(self) -> int:
        """Ask for everything once; return how many hosts there were. Raises httpx.HTTPError, ValueError."""
        found: dict[str, dict[str, float]] = {}
        stamps: dict[str, float] = {}
        for metric, query in QUERIES.items():
            for host, when, value in self._ask(query.replace("%s", self._selector)):
                found.setdefault(host, {})[metric] = value
                stamps[host] = when
        now = time.time()
        for host, metrics in found.items():
            self._store.take(Sample(host, "host", stamps[host], metrics), now)
        return len(found)

    def _ask(self, query: str) -> list[tuple[str, float, float]]:
        answer = self._client.get("/api/v1/query", params={"query": query})
        answer.raise_for_status()
        document = answer.json()
        if document.get("status") != "success":
            raise ValueError(f"Prometheus refuses {query}: {document.get('error')}")
        rows = []
        for series in document["data"]["result"]:
            name = str(series["metric"].get(self._label, "")).partition(":")[0].lower()
            if not name.replace(".", "").isdigit():  # an address stays one, and is refused
                name = name.partition(".")[0]
            when, value = float(series["value"][0]), float(series["value"][1])
            try:
                check_name("host", name)
            except InvalidNameError as error:
                raise ValueError(f"label {self._label!r} of {series['metric']} names no host: {error}") from error
            if value == value:  # not NaN
                rows.append((name, when, value))
        return rows

    def _run(self) -> None:
        while not self._stopped.is_set():
            trouble = ""
            try:
                if not self.poll():
                    trouble = f"Prometheus knows no host by the selector {{{self._selector}}}"
            except (httpx.HTTPError, ValueError, KeyError, TypeError, RuntimeError) as error:
                trouble = f"Prometheus at {self._client.base_url}: {error or type(error).__name__}"
            if self._stopped.is_set():
                return
            if bool(trouble) != bool(self._trouble):
                log.warning("%s; trying on", trouble) if trouble else log.info("Prometheus answers again")
            self._trouble = trouble
            self._stopped.wait(self._interval_s)
