"""Calls of the services' API, with errors a person can read.

By the standard library's client: it is loaded in a tenth of the time of a better one, and each command makes a call
or two.
"""

from __future__ import annotations

import time
import urllib.parse
from typing import Any

from failavoid.cli.settings import NO_SERVICE, NO_TOKEN, NOT_TRUSTED, REFUSED, CliError, load, token
from failavoid.shared import http

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
    settings, spoken = load(), service.replace("_", " ")
    url = getattr(settings, service)
    try:
        return http.call(method, f"{url}{path}", token(), body, timeout, settings.authority)
    except http.UntrustedError as error:
        raise CliError(f"the {spoken} at {url} can't be trusted: {error.detail}", NOT_TRUSTED) from error
    except http.ApiError as error:
        if not error.status:
            raise CliError(
                f"the {spoken} does not answer at {url} ({error.detail}): is it running?", NO_SERVICE
            ) from error
        raise CliError(error.detail, _exit_status(error.status), error.status) from error


def _exit_status(status: int) -> int:
    """What an HTTP status means to who waits.

    A service that is being stopped answers 500 to requests it cuts off; a proxy before one that is away answers 503 or
    504. (502, which others answer, is the resource manager's own word for a host that could not be asked.)
    """
    if status in (401, 403):
        return NO_TOKEN
    return NO_SERVICE if status in (500, 503, 504) else REFUSED
