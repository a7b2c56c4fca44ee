"""The agent's process: ``python3 -m failavoid.agent --settings FILE``."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from failavoid.agent.sampler import Sampler
from failavoid.agent.settings import Settings, SettingsError, load
from failavoid.shared.samples import Encoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from failavoid.agent.sampler import Plugin

SETTINGS = "/etc/failavoid/agent.json"


class Outlet:
    """Sends datagrams to the monitor; that this fails is said once, and again when it works."""

    def __init__(self, host: str, port: int) -> None:
        self._where = (host, port)
        self._socket: socket.socket | None = None
        self._address: tuple[object, ...] = ()
        self._troubled = False

    def send(self, datagram: bytes) -> None:
        """Send, or drop the datagram: a sample that is late is worth nothing."""
        try:
            if self._socket is None:
                family, _, _, _, self._address = socket.getaddrinfo(*self._where, type=socket.SOCK_DGRAM)[0]
                # not connected: an absent monitor's refusals would come back as errors of later samples
                self._socket = socket.socket(family, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto(datagram, self._address)
        except BlockingIOError:
            return
        except OSError as error:
            if not self._troubled:
                say(f"samples cannot be sent to {self._where[0]}:{self._where[1]}: {error}; trying on")
            self._troubled = True
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            return
        if self._troubled:
            say("samples are sent again")
            self._troubled = False


def sample_for_ever(settings: Settings, sampler: Sampler) -> None:
    """Collect and send every ``interval_s`` by the monotonic clock; a missed beat is not made up for."""
    encoder = Encoder(settings.token)
    outlet = Outlet(*settings.monitor)
    beat = time.monotonic()
    ready = troubled = False
    while True:
        try:
            metrics, cores = sampler.collect()
            outlet.send(encoder.encode(time.time(), metrics, cores))
            troubled = False
        except (OSError, ValueError, IndexError) as error:
            if not troubled:
                say(f"a collection failed: {error}; trying on")
            troubled = True
        if not ready:
            notify("READY=1")
            ready = True
        beat += settings.interval_s
        now = time.monotonic()
        if beat <= now:
            beat = now + settings.interval_s
        time.sleep(beat - now)


def open_plugins(names: tuple[str, ...]) -> list[Plugin]:
    """Make each module's `Plugin`. Raises SettingsError for one that cannot be had."""
    plugins = []
    for name in names:
        try:
            plugins.append(__import__(name, fromlist=["Plugin"]).Plugin())
        except (ImportError, AttributeError) as error:
            raise SettingsError(f"setting 'plugins': {name!r} is no plug-in of the agent: {error}") from error
    return plugins


def notify(state: str) -> None:
    """Tell systemd, where the agent was started by it (sd_notify(3))."""
    where = os.environ.get("NOTIFY_SOCKET")
    if where:
        address = "\0" + where[1:] if where.startswith("@") else where
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notification:
            notification.sendto(state.encode(), address)


def say(text: str) -> None:
    """Write to the journal."""
    print(f"failavoid agent: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run until SIGTERM; return the exit status."""
    path = SETTINGS
    if len(arguments) == 2 and arguments[0] == "--settings":
        path = arguments[1]
    elif arguments:
        say("usage: python3 -m failavoid.agent [--settings FILE]")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = load(path)
        # before any thread speaks: settings that are no good get this one sentence and nothing beside it
        sampler = Sampler(settings.kind, settings.metrics, plugins=open_plugins(settings.plugins))
        import threading

        if settings.kind == "guest" or settings.controller:  # a guest without one is badly deployed, and says so
            from failavoid.agent import ranks

            threading.Thread(target=ranks.run, args=(settings,), name="ranks", daemon=True).start()
        if settings.resource_manager:
            from failavoid.agent import assignment

            threading.Thread(target=assignment.run, args=(settings,), name="assignment", daemon=True).start()
        sample_for_ever(settings, sampler)
    except SettingsError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
