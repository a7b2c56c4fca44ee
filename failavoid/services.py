"""What the monitor, the resource manager and the controller have in common as processes.

Settings from a YAML file, the token check of the HTTP API, long polls, the server.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
import yaml
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from failavoid.shared.messages import from_dict
from failavoid.shared.tokens import Identity, InvalidTokenError, verify

T = TypeVar("T")


class SettingsError(Exception):
    """A settings file that can't be used: the message names the file, the place and the way out."""


def load_settings(cls: type[T], path: str | Path) -> T:
    """Read the dataclass ``cls`` from a YAML file. Raises SettingsError."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not YAML: {error}") from error
    try:
        return from_dict(cls, data or {})
    except ValueError as error:
        raise SettingsError(f"{path}{_line_of(text, str(error))}: {error}") from error


def _line_of(text: str, message: str) -> str:
    """Find the line of the setting that an error of from_dict or a setting's check speaks of."""
    for number, line in enumerate(text.splitlines(), 1):
        key = line.split(":")[0].strip(" -")
        if key and not key.startswith("#") and (f".{key}:" in message or f"{key!r}" in message):
            return f", line {number}"
    return ""


def make_app(title: str, secret: bytes, public: str | tuple[str, ...] = ()) -> FastAPI:
    """Make an API whose every route needs a valid token; `require` asks for more.

    What is below the paths ``public`` is for everybody: pages, which hold nothing of the site.
    """
    app = FastAPI(title=title, docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def check_token(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path.startswith(public):
            return await call_next(request)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return _refusal(401, "a token is needed: send the header 'Authorization: Bearer TOKEN'")
        try:
            request.state.identity = verify(secret, token)
        except InvalidTokenError as error:
            return _refusal(401, str(error))
        return await call_next(request)

    @app.exception_handler(ValueError)
    async def bad_value(_request: Request, error: ValueError) -> Response:
        return _refusal(422, str(error))

    return app


def _refusal(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status_code=status)


def require(*roles: str) -> Any:
    """A dependency that gives the caller's Identity, or 403 if its role is none of ``roles``.

    Without roles any valid token will do.
    """

    def identity(request: Request) -> Identity:
        caller: Identity = request.state.identity
        if roles and caller.role not in roles:
            raise HTTPException(
                403, f"a token of role {' or '.join(roles)} is needed; this one is of role {caller.role}"
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


def run(app: FastAPI, listen: str, port: int) -> None:
    """Serve ``app`` until SIGTERM. Long polls under way are cut off, so that a restart is quick."""
    uvicorn.run(app, host=listen, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
