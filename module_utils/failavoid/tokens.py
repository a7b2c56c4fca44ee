"""Bearer tokens that carry who they were made for.

A token is ``role.subject.nonce.mac``: the message authentication code (HMAC-SHA256)
binds the three words to the site's secret, so a service can check a token without
a list of tokens. The nonce tells a guest from an earlier guest of the same name
(it is the guest's UUID): a token ends with its guest, because services compare the
nonce with the guest they know.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

ROLES = ("service", "operator", "reader", "user", "host", "guest")


class InvalidTokenError(Exception):
    """A token that was not made with this site's secret, or is malformed."""


@dataclass(frozen=True)
class Identity:
    """Who a token speaks for: a ``role`` of ROLES, a ``subject`` (a name), a ``nonce``."""

    role: str
    subject: str
    nonce: str = "0"


def read_secret(path: str | Path) -> bytes:
    """Read the site's secret; raises ValueError if it is too short to be one."""
    secret = Path(path).read_bytes().strip()
    if len(secret) < 32:
        raise ValueError(f"{path}: the site's secret has {len(secret)} characters; at least 32 are needed")
    return secret


def mint(secret: bytes, role: str, subject: str, nonce: str = "0") -> str:
    """Make the token of ``subject`` in ``role``; the same words give the same token."""
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}: use one of {', '.join(ROLES)}")
    words = (role, subject, nonce)
    if any(not word or "." in word for word in words):
        raise ValueError(f"role, subject and nonce must not be empty or hold a '.': {words}")
    return ".".join((*words, _mac(secret, words)))


def verify(secret: bytes, token: str) -> Identity:
    """Return the identity a token carries. Raises InvalidTokenError."""
    words = token.split(".")
    if len(words) != 4 or words[0] not in ROLES:
        raise InvalidTokenError("the token is not of the form that 'failavoid token' prints: ROLE.SUBJECT.NONCE.MAC")
    role, subject, nonce, mac = words
    expected = _mac(secret, (role, subject, nonce))
    if not hmac.compare_digest(mac.encode(), expected.encode()):  # as text it would have to be ASCII
        raise InvalidTokenError(f"the token for {role} {subject} was not made with this site's secret")
    return Identity(role, subject, nonce)


def _mac(secret: bytes, words: tuple[str, ...]) -> str:
    digest = hmac.new(secret, ".".join(words).encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
