"""Other settings for a service of the head, for a while."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site


@contextlib.contextmanager
def changed_settings(site: Site, services: Services, service: str, **changes: Any) -> Iterator[None]:
    """A service runs with these settings, and then with its own again: monitor, resource_manager or controller.

    A setting that is changed must stand on one line of its file, as the roles write lists and words.
    """
    path = f"/etc/failavoid/{service}.yml"
    kept = site.run(site.head, "cat", path)
    lines = [line for line in kept.splitlines() if line.partition(":")[0] not in changes]
    lines += [f"{name}: {json.dumps(value)}" for name, value in changes.items()]
    try:
        _run_with(site, services, service, "\n".join(lines) + "\n")
        yield
    finally:
        _run_with(site, services, service, kept)


def _run_with(site: Site, services: Services, service: str, settings: str) -> None:
    site.run(site.head, "sh", "-c", f"cat >/etc/failavoid/{service}.yml <<'END'\n{settings}END")
    restart(site, services, service)


def restart(site: Site, services: Services, service: str) -> None:
    """Restart a service, and wait until it answers."""
    site.run(site.head, "systemctl", "restart", f"failavoid-{service.replace('_', '-')}")
    client: httpx.Client = getattr(services, service)

    def answers() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return client.get("/openapi.json").status_code == 200
        return False

    assert wait_until(answers, 30), f"the {service} did not come back"
