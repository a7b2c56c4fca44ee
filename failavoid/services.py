"""What the monitor, the resource manager and the controller have in common as processes.

Settings from a YAML file, the token check of the HTTP API, long polls, the server and its clients, with TLS.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import httpx
import uvicorn
import yaml
from fastapi import Depends, FastAPI, HTTPException, Request, Response, Security
from fastapi.security import HTTPBearer

from failavoid import __version__
from failavoid.documents import PROBLEMS, describe, explain_refusals, refusal
from failavoid.shared.http import THIS_MACHINE, keeps_tokens
from failavoid.shared.messages import from_dict
from failavoid.shared.tokens import Identity, InvalidTokenError, verify
from failavoid.yaml_lines import line_of

log = logging.getLogger(__name__)
T = TypeVar("T")

READERS = ("service", "operator", "reader", "user")  # who may see a service's whole picture
LONGEST_BODY = 4 << 20  # bytes; the longest document, of an evacuation of thousands of guests, has less than half
_KEEP_ALIVE_S = 75  # longer than a long poll, so that agents and services keep their connections


@dataclass(frozen=True)
class Tls:
    """A service's certificate and key, and the authority that has signed the other services': PEM files.

    Not ``enabled``, a service listens without TLS: for tests, or behind a proxy on the same machine.
    """

    enabled: bool = True
    certificate: str = "/etc/failavoid/tls/certificate.pem"
    key: str = "/etc/failavoid/tls/key.pem"
    authority: str = "/etc/failavoid/authority.pem"

    def check(self, listen: str) -> None:
        """Refuse to send tokens over a network in the clear. Raises ValueError."""
        if not self.enabled and listen not in THIS_MACHINE:
            raise ValueError(
                f"setting 'tls' is not enabled, and 'listen' is {listen}: tokens would cross the network in the clear. "
                "Listen on 127.0.0.1, or enable TLS"
            )


def check_url(name: str, url: str) -> None:
    """Refuse a setting that is no URL of a service, or one over which tokens would cross a network in the clear.

    Raises ValueError.
    """
    if not keeps_tokens(url):
        raise ValueError(f"setting {name!r} is {url!r}; give it as https://ADDRESS:PORT")


class SettingsError(Exception):
    """A settings file that can't be used: the message names the file, the place and the way out."""


def load_settings(cls: type[T], path: str | Path, check: Callable[[T], None] | None = None) -> T:
    """Read the dataclass ``cls`` from a YAML file. Raises SettingsError with the line that is wrong.

    ``check`` raises ValueError for what the dataclass itself cannot know to be wrong.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not, and the like
        raise SettingsError(f"{path}: is not YAML: {error}") from error
    try:
        settings = from_dict(cls, data or {})
        if check:
            check(settings)
    except ValueError as error:
        line = line_of(text, str(error))
        raise SettingsError(f"{path}{f', line {line}' if line else ''}: {error}") from error
    return settings


def make_app(title: str, secret: bytes, public: str | tuple[str, ...] = ()) -> FastAPI:
    """Make an API whose every route needs a valid token; each route names its roles by `require`.

    What is below the paths ``public`` is for everybody: pages, which hold nothing of the site.
    Its OpenAPI is at /openapi.json, for whoever has a token.
    """
    bearer = Security(HTTPBearer(auto_error=False, description="A token of this site: docs/architecture.md, Trust."))
    app = FastAPI(
        title=title, version=__version__, docs_url=None, redoc_url=None, dependencies=[bearer], responses=PROBLEMS
    )
    describe(app)
    explain_refusals(app)

    @app.middleware("http")
    async def check_token(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path.startswith(public):
            return await call_next(request)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            if scheme.lower() != "bearer" or not token:
                raise InvalidTokenError("a token is needed: send the header 'Authorization: Bearer TOKEN'")
            request.state.identity = verify(secret, token)
        except InvalidTokenError as error:
            address = request.client.host if request.client else "an unknown address"
            log.warning("%r was refused to %s: %s", f"{request.method} {request.url.path}", address, error)
            return refusal(401, str(error), {"WWW-Authenticate": "Bearer"})
        if "Transfer-Encoding" in request.headers:
            return refusal(411, "a body must come with its length: send the header Content-Length")
        length = request.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > LONGEST_BODY:
            return refusal(413, f"the body has {length} bytes; at most {LONGEST_BODY} are taken")
        return await call_next(request)

    return app


def require(*roles: str) -> Any:
    """A dependency that gives the caller's Identity, or 403 if its role is none of ``roles``.

    Without roles it is one of READERS that will do.
    """
    allowed = roles or READERS

    def identity(request: Request) -> Identity:
        caller: Identity = request.state.identity
        if caller.role not in allowed:
            raise HTTPException(
                403, f"a token of role {' or '.join(allowed)} is needed; this one is of role {caller.role}"
            )
        return caller

    return Depends(identity)


class Changes:
    """A version that grows with every change, for long polls to wait on.

    `bump` may be called from any thread; `wait` from any event loop.
    """

    def __init__(self, version: int = 0) -> None:
        self._version = version
        self._lock = threading.Lock()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @property
    def version(self) -> int:
        return self._version

    def bump(self) -> int:
        """Note a change, wake everybody who waits, and return the new version."""
        with self._lock:
            self._version += 1
            waiting, self._waiting = self._waiting, set()
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)
        return self._version

    async def wait(self, after: int, timeout: float) -> int:
        """Return the version once it is greater than ``after``, at the latest after ``timeout`` seconds."""
        event = asyncio.Event()
        entry = (asyncio.get_running_loop(), event)
        with self._lock:
            if self._version > after:
                return self._version
            self._waiting.add(entry)
        try:
            await asyncio.wait_for(event.wait(), timeout)
        except (TimeoutError, asyncio.TimeoutError):
            pass
        finally:
            with self._lock:
                self._waiting.discard(entry)
        return self._version


def set_up_logging() -> None:
    """Log to standard error, which is the journal's; systemd adds the time."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def client(url: str, token: str, authority: str = "", **options: Any) -> httpx.Client:
    """Make a client of the service at ``url``; ``options`` are httpx.Client's.

    Over https it speaks with nobody whose certificate ``authority`` (a PEM file) has not signed. Raises SettingsError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies, and at first trusts nobody
    if url.startswith("https://"):
        try:
            context.load_verify_locations(authority)
        except OSError as error:
            raise SettingsError(
                f"the site's authority can't be read from {authority!r} ({error.strerror or error}), and without it "
                f"{url} can't be trusted: see tls.authority; the role hypervisor installs it (tasks_from head.yml)"
            ) from error
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, verify=context, **options)


class _Stopped(BaseException):
    """SIGTERM or SIGINT has come."""


def _stopped(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would cut the stop short
    raise _Stopped


def _tells_more_than_a_stop(record: logging.LogRecord) -> bool:
    """Whether a record of uvicorn is of something else than a request that the end of the process cut off."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def run(app: FastAPI, listen: str, port: int, tls: Tls, stop: Callable[[], None]) -> NoReturn:
    """Serve ``app`` until SIGTERM or SIGINT, then call ``stop`` and end the process.

    So that a restart is quick, long polls and streams under way are cut off, and threads that are at work are not
    waited for. A certificate or a port that can't be used ends the process with one sentence, also after ``stop``.
    """
    # uvicorn takes the signals while it serves, and raises them again afterwards, which by default would be the end
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopped)
    try:
        _serve(app, listen, port, tls)
    except _Stopped:
        pass
    finally:
        stop()
    logging.shutdown()
    os._exit(0)  # leaving by the ordinary way waits for all threads, also those of playbooks and silent hosts


def _serve(app: FastAPI, listen: str, port: int, tls: Tls) -> None:
    config = uvicorn.Config(
        app,
        host=listen,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=_KEEP_ALIVE_S,
        ssl_certfile=tls.certificate if tls.enabled else None,
        ssl_keyfile=tls.key if tls.enabled else None,
    )
    try:
        config.load()
    except OSError as error:
        sys.exit(
            f"{app.title}: certificate {tls.certificate} and key {tls.key} can't be used ({error.strerror or error}): "
            "see tls in the settings; the role hypervisor installs them (tasks_from head.yml)"
        )
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    logging.getLogger("uvicorn.error").addFilter(_tells_more_than_a_stop)
    uvicorn.Server(config).run()
