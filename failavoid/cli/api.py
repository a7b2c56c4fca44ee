"""Calls of the services' API, with errors a person can read."""

from __future__ import annotations

from typing import Any

import httpx

from failavoid.cli.settings import CliError, load, token

STATUS_REFUSED = 3  # the service said no
STATUS_NO_TOKEN = 4
STATUS_NO_SERVICE = 5


def call(service: str, method: str, path: str, body: Any = None, timeout: float = 30.0) -> Any:
    """Ask ``service`` (monitor, resource_manager, controller) and return its answer. Raises CliError."""
    url = getattr(load(), service)
    try:
        response = httpx.request(
            method, f"{url}{path}", json=body, headers={"Authorization": f"Bearer {token()}"}, timeout=timeout
        )
    except httpx.HTTPError as error:
        raise CliError(
            f"the {service.replace('_', ' ')} does not answer at {url} ({error}): is it running?", STATUS_NO_SERVICE
        ) from error
    if response.status_code >= 400:
        try:
            detail = response.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = response.text
        status = STATUS_NO_TOKEN if response.status_code in (401, 403) else STATUS_REFUSED
        raise CliError(str(detail), status)
    return response.json() if response.content else None
