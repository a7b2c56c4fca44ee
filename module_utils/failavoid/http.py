"""A JSON client for the services' API, for what runs on hosts and in guests, and for the command line.

The standard library's http.client keeps the agent small; the services on the head
use httpx.
"""

from __future__ import annotations

import functools
import http.client
import json
import ssl
import urllib.parse
from typing import Any, Optional, Tuple

THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


def keeps_tokens(url: str) -> bool:
    """Whether ``url`` is one to which a token may be sent: over TLS, or on this machine."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in THIS_MACHINE)


class ApiError(Exception):
    """A service's refusal, or the lack of an answer (``status`` 0); ``detail`` is the reason alone."""

    def __init__(self, status: int, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail or message


class UntrustedError(ApiError):
    """Who answers is not known to be the service, so nothing was told to it: ``status`` is 0."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(0, f"{url} can't be trusted: {why}", why)


class Client:
    """Speaks with a service over one connection that stays open, so that long polls cost one handshake; for one thread.

    ``authority`` is the path of the site's authority (PEM), which must have signed the service's certificate; without
    one the system's authorities count. A request is sent again over a new connection where the kept one turns out to be
    closed: it must be one that may arrive twice.
    """

    def __init__(self, token: str, authority: str = "") -> None:
        self._token = token
        self._authority = authority
        self._place: Tuple[str, str] = ("", "")
        self._connection: Optional[http.client.HTTPConnection] = None

    def call(self, method: str, url: str, body: Optional[Any] = None, timeout: float = 10.0) -> Any:
        """Send one request and return the parsed answer.

        ``timeout`` is in seconds, for connecting and for each read: give a long poll more
        than it asks the service to wait. Raises ApiError, and UntrustedError where the answer is a stranger's.
        """
        parts = urllib.parse.urlsplit(url)
        if self._place != (parts.scheme, parts.netloc):
            self.close()
            self._place = (parts.scheme, parts.netloc)
        kept = self._connection is not None
        try:
            try:
                status, text = self._exchange(method, parts, body, timeout)
            except (ConnectionError, ssl.SSLError, http.client.HTTPException):
                if not kept:
                    raise
                self.close()  # the service ended, or closed what was idle
                status, text = self._exchange(method, parts, body, timeout)
        except UntrustedError:
            raise
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise UntrustedError(url, _doubt(error)) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ApiError(0, f"{method} {url}: no answer ({error})", str(error) or type(error).__name__) from error
        if status >= 400:
            raise ApiError(status, f"{method} {url}: {status} {text.strip()}", _detail(text))
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise ApiError(0, f"{method} {url}: the answer is not JSON ({error})") from error

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(
        self, method: str, parts: urllib.parse.SplitResult, body: Optional[Any], timeout: float
    ) -> Tuple[int, str]:
        if self._connection is None:
            self._connection = self._open(parts, timeout)
        elif self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        self._connection.timeout = timeout
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = self._connection.getresponse()
        return response.status, response.read().decode()

    def _open(self, parts: urllib.parse.SplitResult, timeout: float) -> http.client.HTTPConnection:
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=_context(self._authority))
        return http.client.HTTPConnection(host, port, timeout=timeout)


def call(
    method: str, url: str, token: str, body: Optional[Any] = None, timeout: float = 10.0, authority: str = ""
) -> Any:
    """Send one request over a connection of its own and return the parsed answer; as `Client.call`. Raises ApiError."""
    client = Client(token, authority)
    try:
        return client.call(method, url, body, timeout)
    finally:
        client.close()


@functools.lru_cache
def _context(authority: str) -> ssl.SSLContext:
    """What TLS needs to know: made once, because reading certificates costs more than the rest of a call.

    Raises UntrustedError.
    """
    try:
        context = ssl.create_default_context(cafile=authority or None)
    except OSError as error:
        raise UntrustedError(
            "a service",
            f"the site's authority can't be read from {authority}: {error.strerror or error}. It is the file "
            "/etc/failavoid/authority.pem of the head, which the role hypervisor installs on hosts too",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


_TIME_DOUBTS = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED, of OpenSSL's x509_vfy.h
_NAME_DOUBTS = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH


def _doubt(error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with a certificate, and the way out."""
    if error.verify_code in _TIME_DOUBTS:
        way = "compare this machine's clock with the head's; playbooks/site.yml renews certificates before they end"
    elif error.verify_code in _NAME_DOUBTS:
        way = "use one of the names in the head's certificate, or add this one to hypervisor_head_names"
    else:
        way = "this site's authority, /etc/failavoid/authority.pem of the head, has not signed its certificate"
    return f"{error.verify_message}: {way}"


def _detail(text: str) -> str:
    """What a refusal says: its ``detail``, or all of it."""
    try:
        document = json.loads(text)
    except ValueError:
        return text.strip()
    detail = document.get("detail", document) if isinstance(document, dict) else document
    return detail if isinstance(detail, str) else json.dumps(detail)
