"""A JSON client for the services' API, for what runs on hosts and in guests.

The standard library's http.client keeps the agent small; the services on the head
use httpx.
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from typing import Any, Optional


class ApiError(Exception):
    """A service's refusal, or the lack of an answer (``status`` 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def call(method: str, url: str, token: str, body: Optional[Any] = None, timeout: float = 10.0) -> Any:
    """Send one request and return the parsed answer.

    ``timeout`` is in seconds, for connecting and for each read: give a long poll more
    than it asks the service to wait. Raises ApiError.
    """
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise ApiError(0, f"{method} {url}: no answer ({error})") from error
    finally:
        connection.close()
    if response.status >= 400:
        raise ApiError(response.status, f"{method} {url}: {response.status} {text.strip()}")
    return json.loads(text) if text else None
