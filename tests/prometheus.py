"""A real Prometheus (Debian's) that scrapes the three services, and what the project's rules and dashboard ask it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

CONTRIB = Path(__file__).parents[1] / "contrib"
RULES = CONTRIB / "prometheus/failavoid.rules.yml"
DASHBOARD = CONTRIB / "grafana/failavoid.json"
PATIENCE_S = 30.0
# what is not known before there is some: a prediction, a finding
LATER = {"failavoid_precision", "failavoid_recall", "failavoid_finding"}


def program(name: str) -> str:
    """Where one of Prometheus' programs is."""
    found = shutil.which(name)
    assert found, f"{name} is missing: it is in Debian's package prometheus, which 'make test-tools' installs"
    return found


@contextlib.contextmanager
def prometheus(
    folder: Path, targets: dict[str, str], token: str, authority: str | None = None
) -> Iterator[httpx.Client]:
    """The API of a Prometheus that scrapes ``targets``, {service: base URL}, each second, as contrib's scrape.yml says.

    ``authority`` is the certificate by which it knows them; without one they are asked in the clear.
    """
    folder.mkdir()
    (folder / "token").write_text(token)
    (scrape,) = yaml.safe_load((CONTRIB / "prometheus/scrape.yml").read_text())["scrape_configs"]
    assert [one["labels"]["service"] for one in scrape["static_configs"]] == list(targets)
    if authority is None:
        del scrape["tls_config"]
        scrape["scheme"] = "http"
    else:
        (folder / "authority.pem").write_text(authority)
        scrape["tls_config"]["ca_file"] = str(folder / "authority.pem")
    scrape.update(scrape_interval="1s", scrape_timeout="1s")
    scrape["authorization"]["credentials_file"] = str(folder / "token")
    for static, url in zip(scrape["static_configs"], targets.values()):
        static["targets"] = [url.partition("://")[2].rstrip("/")]
    written = {"scrape_configs": [scrape], "rule_files": [str(RULES)], "global": {"evaluation_interval": "1s"}}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(written))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1") as api:
            _until_it_scrapes(api, len(targets), folder / "log")
            yield api
    finally:
        process.terminate()
        process.wait()


def _until_it_scrapes(api: httpx.Client, services: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(httpx.HTTPError):  # it is not ready yet
            if len(ask(api, 'up{job="failavoid"} == 1')) == services and rules_of(api):
                return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def ask(api: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """The series that an expression gives now; one that Prometheus does not understand fails."""
    answer = api.get("/query", params={"query": expression})
    assert answer.status_code != 400, (expression, answer.text)
    return list(answer.raise_for_status().json()["data"]["result"])


def value(api: httpx.Client, expression: str) -> float:
    """The value of the one series that an expression gives."""
    (series,) = ask(api, expression)
    return float(series["value"][1])


def rules_of(api: httpx.Client) -> list[dict[str, Any]]:
    """The alert rules with their state."""
    groups = api.get("/rules").raise_for_status().json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def check_that_all_is_known_that_rules_and_dashboard_ask_for(api: httpx.Client) -> None:
    """Every expression of the rules and the dashboard is understood, and names only figures that there are."""
    known = set(api.get("/label/__name__/values").raise_for_status().json()["data"])
    rules = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    panels = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    for expression in [*rules, *panels]:
        ask(api, expression)
        asked_for = set(re.findall(r"\b(?:failavoid|process)_\w+", expression))
        assert asked_for <= known | LATER, expression
    assert {rule["health"] for rule in rules_of(api)} <= {"ok", "unknown"}
