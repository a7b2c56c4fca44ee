"""The source `agents`: takes the agents' datagrams from the network, in a thread of its own."""

from __future__ import annotations

import functools
import logging
import socket
import threading
import time
from collections import Counter
from typing import Any

from failavoid.monitor.sources import Context, take_options
from failavoid.shared.messages import Sample
from failavoid.shared.samples import WINDOW_S, Decoder, Received, RefusedError
from failavoid.shared.tokens import mint

log = logging.getLogger(__name__)
BUFFER_BYTES = 8 << 20  # a second of 10,000 hosts' samples and more; the kernel may grant less
_SO_RCVBUFFORCE = 33  # socket(7); the module socket lacks it
SAY_EVERY_S = 30.0


class Receiver:
    """Hears the hosts and guests of this site alone."""

    @staticmethod
    def check(options: dict[str, Any]) -> None:
        """There are none to be given. Raises ValueError."""
        take_options("agents", options)

    def __init__(self, options: dict[str, Any], context: Context) -> None:
        self.check(options)
        family = socket.AF_INET6 if ":" in context.listen else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
        except PermissionError:  # as for all but root: within the kernel's limit
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._socket.settimeout(0.5)
        self._socket.bind((context.listen, context.port))
        self.port: int = self._socket.getsockname()[1]
        # the kernel says twice what it grants: half of it is for its own use
        self.buffer_bytes = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        if self.buffer_bytes < BUFFER_BYTES:
            log.info(
                "the kernel buffers %d kB of samples; with thousands of hosts, let it: net.core.rmem_max=%d",
                self.buffer_bytes >> 10,
                BUFFER_BYTES,
            )
        self._decoder = Decoder(functools.partial(mint, context.secret))
        self._store = context.store
        self._is_guest = context.is_guest
        self._stopped = threading.Event()
        self._refused: Counter[str] = Counter()
        self._said = 0.0
        self._thread = threading.Thread(target=self._run, name="receiver")

    def start(self) -> None:
        """Begin to take samples."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the socket."""
        self._stopped.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        cleaned = time.monotonic()
        while not self._stopped.is_set():
            try:
                datagram = self._socket.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:
                log.error("receiving samples: %s", error)
                self._stopped.wait(1)
                continue
            try:
                now = time.time()
                received = self._decoder.decode(datagram, now)
                self._check_guest(received)
                metrics, cores = received.content()
                sample = Sample(received.subject, received.role, received.time, metrics, cores)
                self._store.take(sample, now, received.body, received.lost)
            except RefusedError as error:
                self._refuse(error)
            except Exception:  # whatever one datagram does: the others' samples must go on arriving
                log.exception("a sample of %d bytes is left out", len(datagram))
            if time.monotonic() - cleaned > WINDOW_S * 2:
                cleaned = time.monotonic()
                for kind, name in self._store.drop_silent(now):
                    self._decoder.forget(kind, name)

    def _check_guest(self, received: Received) -> None:
        """A guest's token ends with the guest, although its code still fits."""
        if received.role == "guest" and not self._is_guest(received.subject, received.nonce):
            raise RefusedError("the resource manager knows no such guest", received.subject)

    def _refuse(self, error: RefusedError) -> None:
        """Count, and say so now and then: a stranger must not fill the journal."""
        self._refused[error.sender] += 1
        if time.monotonic() - self._said > SAY_EVERY_S or not self._said:
            self._said = time.monotonic()
            log.warning("%s (%d refused since the last such line)", error, self._refused.total())
            self._refused.clear()
