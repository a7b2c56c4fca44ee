"""How a service shows its figures to Prometheus: `GET /metrics`, for whoever may read, from a registry of its own."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from failavoid.services import require


class _Asked(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        """What there is at this moment."""
        return self._collect()


def registry_of(collect: Callable[[], Iterable[Metric]]) -> CollectorRegistry:
    """A registry that asks ``collect`` at each scrape, and tells of the process itself."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Asked(collect))
    return registry


def serve_metrics(app: FastAPI, registry: CollectorRegistry) -> None:
    """Add the route. It is text in Prometheus' own format, and so no document of the API."""

    @app.get("/metrics", dependencies=[require()], include_in_schema=False)
    def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), headers={"Content-Type": kind})


def histogram(name: str, help_text: str, bounds: tuple[float, ...], values: Iterable[float]) -> HistogramMetricFamily:
    """What is known of all values so far; ``bounds`` are the buckets' upper ends, to which infinity is added."""
    counts = [0] * (len(bounds) + 1)
    total = 0.0
    for value in values:
        counts[bisect_left(bounds, value)] += 1
        total += value
    ends = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    return HistogramMetricFamily(name, help_text, buckets=list(zip(ends, accumulate(counts))), sum_value=total)
