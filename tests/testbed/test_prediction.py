"""The deployed monitor: how samples arrive from real hosts, and what it keeps through its own restart."""

from __future__ import annotations

import time


def get(services, path):
    answer = services.monitor.get(path)
    answer.raise_for_status()
    return answer.json()


def test_no_hosts_samples_are_lost_late_or_off_the_clock(site, services):
    nodes = {node["node"]: node for node in get(services, "/nodes")}
    for host in site.groups["hypervisor"]:
        assert not nodes[host]["silent"], host
        assert nodes[host]["recent_loss"] == 0, host
        assert abs(nodes[host]["skew_s"]) < 1, host


def test_hosts_send_stalls_and_memory(site, services):
    latest = services.latest()
    for host in site.groups["hypervisor"]:
        assert {"mem_total_kb", "mem_available_kb", "cpu", "psi_memory"} <= set(latest[host].metrics), host


def test_a_restarted_monitor_keeps_its_history_and_predictions(site, services):
    host = site.groups["hypervisor"][0]
    time.sleep(5)
    before = time.time() - 30
    known = [sample for sample in get(services, f"/history?since={before}") if sample["node"] == host]
    predictions = get(services, "/predictions")["predictions"]
    site.run(site.head, "systemctl", "restart", "failavoid-monitor")
    deadline = time.monotonic() + 60
    while True:
        try:
            again = [sample for sample in get(services, f"/history?since={before}") if sample["node"] == host]
            break
        except Exception:
            assert time.monotonic() < deadline, "the monitor did not come back"
            time.sleep(0.5)
    assert min(sample["time"] for sample in again) <= min(sample["time"] for sample in known) + 2
    assert {one["id"] for one in predictions} <= {one["id"] for one in get(services, "/predictions")["predictions"]}
