"""The monitor's figures for Prometheus: samples, alarms, findings, how good its predictions are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from failavoid.exposition import registry_of
from failavoid.monitor.findings import Findings
from failavoid.monitor.scores import score
from failavoid.monitor.settings import Settings
from failavoid.monitor.state import State
from failavoid.monitor.store import Store
from failavoid.shared.messages import Alarm, Prediction

_JUDGING_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_SCORES_EVERY_S = 30.0  # they are made from thousands of documents
OUTCOMES = ("true", "false", "unknown", "open", "missed")


class Metrics:
    """Counts what happens, and asks for the rest when it is scraped."""

    def __init__(
        self, settings: Settings, store: Store, state: State, findings: Findings, horizon_s: Callable[[], float]
    ) -> None:
        self._store, self._state, self._findings, self._horizon_s = store, state, findings, horizon_s
        self._scores: list[Metric] = []
        self._scored = -_SCORES_EVERY_S
        self.registry = registry_of(self._collect)
        self._alarms = Counter("failavoid_alarms", "Alarms raised.", ["rule", "metric"], registry=self.registry)
        for metric in (settings.metric, *(mode.metric for mode in settings.modes)):
            self._alarms.labels(settings.rule, metric)  # from 0: an increase is not seen of a series that begins at 1
        self._withdrawn = Counter("failavoid_alarms_withdrawn", "Alarms taken back.", registry=self.registry)
        self.judging = Histogram(
            "failavoid_judging_seconds",
            "Time that judging one collection took.",
            buckets=_JUDGING_S,
            registry=self.registry,
        )

    def count(self, raised: list[Alarm], withdrawn: list[Alarm]) -> None:
        """Take what one collection led to."""
        for alarm in raised:
            self._alarms.labels(alarm.rule, alarm.metric).inc()
        self._withdrawn.inc(len(withdrawn))

    def _collect(self) -> Iterator[Metric]:
        received, lost = self._store.counts()
        yield CounterMetricFamily("failavoid_samples_received", "Samples that arrived.", value=received)
        yield CounterMetricFamily("failavoid_samples_lost", "Samples that were sent and never arrived.", value=lost)
        nodes = GaugeMetricFamily("failavoid_nodes", "Hosts and guests that send samples.", labels=["kind", "silent"])
        health = self._store.health(time.time())
        for kind in ("host", "guest"):
            for silent in (False, True):
                count = sum(node.kind == kind and node.silent == silent for node in health)
                nodes.add_metric([kind, "yes" if silent else "no"], count)
        yield nodes
        findings = GaugeMetricFamily(
            "failavoid_finding", "1 for what a person should know of a node or job now.", labels=["kind", "subject"]
        )
        for finding in self._findings.open():
            findings.add_metric([finding.kind, finding.subject], 1)
        yield findings
        yield GaugeMetricFamily(
            "failavoid_horizon_seconds",
            "A failure predicted within this is danger, by how long evacuations have taken here.",
            value=self._horizon_s(),
        )
        if time.monotonic() - self._scored >= _SCORES_EVERY_S:
            self._scored, self._scores = time.monotonic(), list(self._of_rules())
        yield from self._scores

    def _of_rules(self) -> Iterator[Metric]:
        labels = ["rule", "mode", "acting"]
        predictions = GaugeMetricFamily(
            "failavoid_predictions", "Predictions that are kept, by what came of them.", labels=[*labels, "outcome"]
        )
        precision = GaugeMetricFamily(
            "failavoid_precision", "Share of a rule's predictions that came true.", labels=labels
        )
        recall = GaugeMetricFamily("failavoid_recall", "Share of failures that a rule predicted.", labels=labels)
        lead = GaugeMetricFamily("failavoid_lead_seconds", "Median time from prediction to failure.", labels=labels)
        for one in score(self._state.all(Prediction)):
            of_rule = [one.rule, one.mode, "yes" if one.acting else "no"]
            for outcome in OUTCOMES:
                predictions.add_metric([*of_rule, outcome], getattr(one, outcome))
            for family, value in ((precision, one.precision), (recall, one.recall), (lead, one.lead_median_s)):
                if value is not None:
                    family.add_metric(of_rule, value)
        return iter((predictions, precision, recall, lead))
