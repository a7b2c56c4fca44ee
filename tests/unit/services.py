"""The three services' APIs, in surroundings that are played."""

import contextlib
import socket
from dataclasses import dataclass
from typing import Any

from evacuation_world import World
from fastapi import FastAPI
from resource_manager_site import Site

from failavoid.controller.api import build_app as controller_app
from failavoid.monitor.service import Monitor
from failavoid.monitor.service import build_app as monitor_app
from failavoid.monitor.settings import Settings
from failavoid.shared.tokens import mint

SECRET = b"s" * 48
SERVICES = ("monitor", "resource manager", "controller")
CHANGING = ("POST", "PUT", "PATCH", "DELETE")


@dataclass
class Service:
    """An app; ``world`` is what it acts on, and ``state`` tells whether anything of that has changed."""

    app: FastAPI
    world: Any
    state: Any

    def routes(self):
        """(method, path) of every route, but the one of the description itself."""
        paths = self.app.openapi()["paths"]
        return sorted((method.upper(), path) for path, methods in paths.items() for method in methods)


def bearer(role, subject="someone", nonce="0"):
    return {"Authorization": f"Bearer {mint(SECRET, role, subject, nonce)}"}


@contextlib.contextmanager
def started(name, folder, monkeypatch):
    """The app of one of SERVICES."""
    if name == "monitor":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        neighbour = "http://127.0.0.1:1"
        settings = Settings(listen="127.0.0.1", port=port, resource_manager=neighbour, controller=neighbour)
        monitor = Monitor(settings, SECRET)
        monitor.start()
        try:
            yield Service(monitor_app(monitor, SECRET), monitor, lambda: list(monitor.evaluator.alarms))
        finally:
            monitor.stop()
    elif name == "resource manager":
        site = Site(folder, monkeypatch)
        yield Service(site.api.app, site, lambda: (site.store.membership(), list(site.calls)))
    else:
        world = World(folder)
        world.around.cluster.refresh()
        yield Service(
            controller_app(world.controller, SECRET),
            world,
            lambda: [(one.id, one.state) for one in world.controller.evacuations()],
        )
        world.alive.clear()
