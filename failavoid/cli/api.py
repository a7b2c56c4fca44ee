"""Calls of the services' API, with errors a person can read.

By the standard library's client: it is loaded in a tenth of the time of a better one, and each command makes a call
or two.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from typing import Any

from failavoid.cli.settings import NO_SERVICE, NO_TOKEN, REFUSED, CliError, load, token

RETRY_S = 1.0


def call(service: str, method: str, path: str, body: Any = None, timeout: float = 30.0, patience_s: float = 0.0) -> Any:
    """Ask ``service`` (monitor, resource_manager, controller) and return its answer. Raises CliError.

    ``timeout`` is in seconds. For ``patience_s`` seconds a service that does not answer is asked again: use it only
    for what may be asked twice.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return _call(service, method, path, body, timeout)
        except CliError as error:
            if error.status != NO_SERVICE or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)


def name(word: str) -> str:
    """A word of the command line as part of a path."""
    return urllib.parse.quote(word, safe="")


def _call(service: str, method: str, path: str, body: Any, timeout: float) -> Any:
    url = getattr(load(), service)
    headers = {"Authorization": f"Bearer {token()}", "Content-Type": "application/json"}
    text = None if body is None else json.dumps(body)
    parts = urllib.parse.urlsplit(url)
    try:
        maker = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = maker(parts.hostname or "", parts.port, timeout=timeout)
        try:
            connection.request(method, f"{parts.path}{path}", text, headers)
            response = connection.getresponse()
            answer = response.read().decode()
        finally:
            connection.close()
        document = json.loads(answer) if answer else None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CliError(
            f"the {service.replace('_', ' ')} does not answer at {url} ({error}): is it running?", NO_SERVICE
        ) from error
    if response.status < 400:
        return document
    detail = document.get("detail", document) if isinstance(document, dict) else document
    raise CliError(
        detail if isinstance(detail, str) else json.dumps(detail),
        NO_TOKEN if response.status in (401, 403) else REFUSED,
    )
