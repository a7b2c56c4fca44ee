"""How a sample travels: one authenticated UDP datagram from an agent to the monitor.

Layout, the numbers in decimal::

    FA1 ROLE.SUBJECT.NONCE BOOT SEQUENCE TIME\\n   who speaks (as in its token) and when, in clear
    {"metrics": {...}, "cores": [...]}           JSON; receivers ignore keys they do not know
    32 bytes                                     HMAC-SHA256 over all before, keyed with the token

The receiver makes the sender's token anew from the site's secret and the words in the
header, so it needs no list of senders. BOOT tells one start of an agent from the next,
SEQUENCE grows with every sample of a boot, TIME is the sender's clock in seconds: a
datagram is taken once, and only while it is fresh.
"""

from __future__ import annotations

import hmac
import json
import os
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

VERSION = b"FA1"
MAC_BYTES = 32
MAX_BYTES = 65507  # of a UDP datagram; a host with 500 cores needs 4 kB
WINDOW_S = 30.0


class RefusedError(Exception):
    """A datagram that is not taken. The message says why; ``sender`` is who it claims to be from."""

    def __init__(self, reason: str, sender: str = "") -> None:
        super().__init__(f"sample of {sender or 'an unknown sender'} refused: {reason}")
        self.reason = reason
        self.sender = sender


class Encoder:
    """Makes the datagrams of one agent, from its start to its end."""

    def __init__(self, token: str) -> None:
        self._key = token.encode()
        who = token.rpartition(".")[0].encode()
        self._start = b"%s %s %d " % (VERSION, who, int.from_bytes(os.urandom(6), "big"))
        self._sequence = 0

    def encode(self, when: float, metrics: Dict[str, float], cores: List[float]) -> bytes:
        """Return the datagram of one collection, made at ``when`` (seconds since the epoch)."""
        self._sequence += 1
        body = json.dumps({"metrics": metrics, "cores": cores}, separators=(",", ":"))
        text = b"%s%d %.3f\n%s" % (self._start, self._sequence, when, body.encode())
        return text + hmac.digest(self._key, text, "sha256")


class Received:
    """A datagram that was taken. ``body`` is its JSON as it came; ``lost`` how many before it never came."""

    __slots__ = ("body", "lost", "nonce", "role", "subject", "time")

    def __init__(self, role: str, subject: str, nonce: str, when: float, body: bytes, lost: int = 0) -> None:
        self.role = role
        self.subject = subject
        self.nonce = nonce
        self.time = when
        self.body = body
        self.lost = lost

    def content(self) -> Tuple[Dict[str, float], List[float]]:
        """Return metrics and cores. Raises RefusedError."""
        try:
            data = _DECODER.decode(self.body.decode())
            metrics, cores = data["metrics"], data.get("cores", [])
            if not all(map(_is_number, metrics.values())):
                raise ValueError("a metric is not a number")
            if not all(map(_is_number, cores)):
                raise ValueError("a core's share is not a number")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RefusedError(f"its content is malformed: {error}", self.subject) from error
        return metrics, cores


class Decoder:
    """Checks datagrams: made with this site's secret, fresh, and not seen before.

    ``mint`` is `failavoid.shared.tokens.mint` bound to the site's secret. A sender that
    was not heard before must be newer than ``started``: what was recorded before a
    restart of the monitor cannot be played to it again.
    """

    def __init__(
        self,
        mint: Callable[[str, str, str], str],
        window_s: float = WINDOW_S,
        started: Optional[float] = None,
    ) -> None:
        self._mint = mint
        self._window_s = window_s
        self._started = time.time() if started is None else started
        self._keys: Dict[bytes, Tuple[bytes, str, str, str]] = {}
        self._last: Dict[Tuple[str, str], Tuple[bytes, bytes, int, float]] = {}

    def decode(self, datagram: bytes, now: float) -> Received:
        """Return what a datagram holds. Raises RefusedError; ``now`` is this host's clock in seconds."""
        text, mac = datagram[:-MAC_BYTES], datagram[-MAC_BYTES:]
        header, _, body = text.partition(b"\n")
        try:
            version, who, boot, number, stamp = header.split(b" ")
        except ValueError:
            raise RefusedError("no header of a sample") from None
        if version != VERSION:
            raise RefusedError(f"version {version[:8]!r} is not {VERSION!r}; deploy agent and monitor together")
        known = self._keys.get(who)
        key, role, subject, nonce = known or self._identify(who)
        if not hmac.compare_digest(mac, hmac.digest(key, text, "sha256")):
            raise RefusedError("it was not made with this site's secret", subject)
        if known is None:  # kept for those only who proved who they are: strangers must not fill the memory
            self._keys[who] = (key, role, subject, nonce)
        try:
            sequence, when = int(number), float(stamp)
        except ValueError as error:
            raise RefusedError(f"malformed header: {error}", subject) from error
        if not abs(now - when) <= self._window_s:  # so that not-a-number is refused too
            raise RefusedError(
                f"its clock is {when - now:+.1f} s off the monitor's; more than {self._window_s:g} s are not "
                "accepted: synchronise the clocks",
                subject,
            )
        last = self._last.get((role, subject))
        lost = 0
        if last is None:
            fresh = when > self._started
        elif last[0] == who and last[1] == boot:
            lost = sequence - last[2] - 1
            fresh = lost >= 0
        else:
            fresh = when > last[3]
            if fresh and last[0] != who:
                self._keys.pop(last[0], None)  # an earlier guest of the same name
        if not fresh:
            raise RefusedError("it is older than what was taken before", subject)
        self._last[(role, subject)] = (who, boot, sequence, when)
        return Received(role, subject, nonce, when, body, lost)

    def forget(self, role: str, subject: str) -> None:
        """Drop what is remembered of a sender that is silent for longer than the window."""
        last = self._last.pop((role, subject), None)
        if last:
            self._keys.pop(last[0], None)

    def _identify(self, who: bytes) -> Tuple[bytes, str, str, str]:
        try:
            role, subject, nonce = who.decode("ascii").split(".")
            if role not in ("host", "guest"):
                raise ValueError("only hosts and guests send samples")
            return self._mint(role, subject, nonce).encode(), role, subject, nonce
        except ValueError as error:
            raise RefusedError(f"no valid sender: {error}") from error


def _is_number(value: Any) -> bool:
    """Tell whether a float can hold it: JSON can write 1e999, and whole numbers of any length."""
    return type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max


def _not_a_number(word: str) -> Any:
    raise ValueError(f"{word} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_not_a_number)
