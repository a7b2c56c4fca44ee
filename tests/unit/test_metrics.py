"""What services tell Prometheus, the alert rules and the dashboard, and a real Prometheus that scrapes all three."""

import contextlib
import socket
import subprocess
import time

import pytest
from evacuation_world import World
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from resource_manager_site import Site
from services_served import served

from failavoid.controller.api import build_app as controller_app
from failavoid.exposition import histogram
from failavoid.monitor.service import Monitor
from failavoid.monitor.service import build_app as monitor_app
from failavoid.monitor.settings import Settings
from failavoid.shared.messages import Alarm, Evidence, Sample
from failavoid.shared.tokens import mint
from tests.prometheus import RULES, ask, check_that_all_is_known_that_rules_and_dashboard_ask_for, program, prometheus

SECRET = b"s" * 48
NOWHERE = "http://127.0.0.1:1"


def bearer(role):
    return {"Authorization": f"Bearer {mint(SECRET, role, 'someone')}"}


def scraped(app):
    """{(name, label values, in alphabetical order...): value} of what the app tells now."""
    answer = TestClient(app).get("/metrics", headers=bearer("reader"))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.fixture
def monitor():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monitor = Monitor(Settings(listen="127.0.0.1", port=port, resource_manager=NOWHERE, controller=NOWHERE), SECRET)
    monitor.start()
    yield monitor
    monitor.stop()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "controller")
    world.around.cluster.refresh()
    yield world
    world.alive.clear()


@pytest.fixture
def site(tmp_path, monkeypatch):
    return Site(tmp_path / "resource_manager", monkeypatch)


def evacuated(world):
    """An evacuation that went as it should."""
    world.ranks_behave("guest1", "guest2")
    (evacuation,) = world.controller.order("host1", "fan is loud", "ada")
    world.until_state(evacuation, "RETIRED")
    return evacuation


def test_nobody_without_a_token_is_told_the_figures(world):
    assert TestClient(controller_app(world.controller, SECRET)).get("/metrics").status_code == 401


def test_an_evacuation_is_counted_with_its_moves_and_how_long_ranks_were_held(world):
    app = controller_app(world.controller, SECRET)
    assert scraped(app)["failavoid_evacuations_total", "retired"] == 0
    evacuation = evacuated(world)
    found = scraped(app)
    assert found["failavoid_evacuations_total", "retired"] == 1
    assert found["failavoid_evacuations_open",] == 0
    assert found["failavoid_migrations_total", "moved"] == 2
    assert found["failavoid_evacuation_seconds_count",] == 1
    assert found["failavoid_barrier_hold_seconds_bucket", "+Inf"] == 1
    steps = {step.name: step.done for step in world.controller.run(evacuation.id).evacuation.steps}
    assert found["failavoid_barrier_hold_seconds_sum",] == pytest.approx(steps["released"] - steps["gathered"])


def test_a_stop_of_evacuations_is_told(world):
    app = controller_app(world.controller, SECRET)
    assert scraped(app)["failavoid_evacuations_stopped",] == 0
    world.controller.stop_evacuations("ada", "works on the network")
    found = scraped(app)
    assert found["failavoid_evacuations_stopped",] == 1
    assert found["failavoid_controller_mode", "act"] == 1


def test_the_pools_are_told_and_a_job_takes_hosts_from_the_spares(site):
    assert scraped(site.api.app)["failavoid_spares",] == 4
    site.ready(hosts=2)
    found = scraped(site.api.app)
    assert found["failavoid_hosts", "allocated"] == 2
    assert found["failavoid_hosts", "free"] == found["failavoid_spares",] == 2
    assert found["failavoid_hosts", "defunct"] == 0
    assert found["failavoid_guests", "ready"] == 4
    assert found["failavoid_jobs", "ready"] == 1


def test_samples_alarms_and_findings_are_told(monitor):
    for second in range(3):
        monitor.store.take(Sample("host1", "host", time.time() + second, {"mem_total_kb": 1.0}), time.time(), lost=2)
    alarm = Alarm("a", 0.0, "host1", "job-1", "robust", "unavailable", 0.9, Evidence(0.9, 0.4, 0.01, 50.0, 0.75))
    app = monitor_app(monitor, SECRET)
    assert scraped(app)["failavoid_alarms_total", "robust", "unavailable"] == 0
    monitor.metrics.count([alarm], [])
    monitor.evaluator.findings.look("test", 1.0, {("silent", "host2"): "no samples"})
    found = scraped(app)
    assert found["failavoid_samples_received_total",] == 3
    assert found["failavoid_samples_lost_total",] == 6
    assert found["failavoid_alarms_total", "robust", "unavailable"] == 1
    assert found["failavoid_finding", "host2", "silent"] == 1
    assert found["failavoid_nodes", "host", "no"] == 1
    monitor.evaluator.findings.look("test", 2.0, {})
    assert ("failavoid_finding", "host2", "silent") not in scraped(app)


def test_a_rules_precision_and_recall_are_told(monitor):
    key = ("robust", "memory", "job-1", "host1")
    monitor.evaluator.scorer.predict(key, 1.0, 0.8, 10.0, 1.0)
    monitor.evaluator.scorer.failed(["robust"], "memory", "job-1", "host1", 9.0, 0.95)
    monitor.evaluator.scorer.predict(key, 20.0, 0.8, 10.0, 1.0)
    monitor.evaluator.scorer.cleared(key, 21.0)
    found = scraped(monitor_app(monitor, SECRET))
    assert found["failavoid_precision", "memory", "robust", "yes"] == 0.5
    assert found["failavoid_recall", "memory", "robust", "yes"] == 1.0
    assert found["failavoid_predictions", "false", "memory", "robust", "yes"] == 1


def test_a_bucket_holds_what_is_at_most_its_bound():
    (family,) = [histogram("seconds", "Some.", (1.0, 10.0), [0.5, 1.0, 3.0, 11.0])]
    counts = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
    assert counts == {"1": 2, "10": 3, "+Inf": 4, "seconds_count": 4, "seconds_sum": 15.5}


# -- Prometheus itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [["check", "rules", RULES], ["test", "rules", RULES.with_suffix(".test.yml")]])
def test_promtool_finds_no_fault_in_the_alert_rules(check):
    done = subprocess.run([program("promtool"), *check], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_real_prometheus_scrapes_all_services_and_has_what_rules_and_dashboard_ask_for(
    tmp_path, monitor, world, site
):
    evacuated(world)
    apps = {
        "monitor": monitor_app(monitor, SECRET),
        "resource_manager": site.api.app,
        "controller": controller_app(world.controller, SECRET),
    }
    with contextlib.ExitStack() as stack:
        targets = {name: stack.enter_context(served(app)) for name, app in apps.items()}
        token = mint(SECRET, "reader", "prometheus")
        api = stack.enter_context(prometheus(tmp_path / "prometheus", targets, token))
        check_that_all_is_known_that_rules_and_dashboard_ask_for(api)
        (series,) = ask(api, 'failavoid_evacuations_total{outcome="retired"}')
        assert series["value"][1] == "1"
        assert series["metric"]["service"] == "controller"
