"""The resource manager's figures for Prometheus: pools, guests, jobs, spares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from failavoid.resource_manager.store import Store
from failavoid.shared.messages import MARKS, POOLS

GUEST_STATES = ("booting", "warm", "assigned", "ready", "lost")
JOB_STATES = ("allocating", "ready", "running")


def collect(store: Store) -> Iterator[Metric]:
    """All of it at this moment."""
    picture = store.membership()
    with store.view() as state:
        leases = len(state.leases)
    yield _by("failavoid_hosts", "Hosts, by pool.", "pool", POOLS, [host.pool for host in picture.hosts])
    yield _by(
        "failavoid_hosts_marked",
        "Hosts that a mark keeps from new work, by its kind.",
        "mark",
        MARKS,
        [kind for host in picture.hosts for kind in {mark.kind for mark in host.marks}],
    )
    free = [host for host in picture.hosts if host.pool == "free"]
    yield GaugeMetricFamily("failavoid_spares", "Free hosts, which evacuations may take.", value=len(free))
    yield GaugeMetricFamily(
        "failavoid_reserved_spares",
        "Free hosts that evacuations alone may take.",
        value=sum(host.reserved_spare for host in free),
    )
    yield GaugeMetricFamily("failavoid_leases", "Spares held for evacuations under way.", value=leases)
    yield _by("failavoid_guests", "Guests, by state.", "state", GUEST_STATES, [one.state for one in picture.guests])
    yield _by(
        "failavoid_jobs", "Jobs that have not ended, by state.", "state", JOB_STATES, [j.state for j in picture.jobs]
    )
    yield GaugeMetricFamily(
        "failavoid_differences",
        "What the hosts' libvirt says otherwise than the resource manager.",
        value=len(picture.differences),
    )


def _by(name: str, help_text: str, label: str, kinds: tuple[str, ...], found: list[str]) -> GaugeMetricFamily:
    """A gauge with a series for each kind, also for those of which there is none."""
    family = GaugeMetricFamily(name, help_text, labels=[label])
    counts = Counter(found)
    for kind in kinds:
        family.add_metric([kind], counts[kind])
    return family
