"""The three services' APIs, in surroundings that are played."""

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from evacuation_world import World
from fastapi import FastAPI
from resource_manager_site import Site

from failavoid.controller.api import build_app as controller_app
from failavoid.monitor.service import Monitor
from failavoid.monitor.service import build_app as monitor_app
from failavoid.monitor.settings import Settings
from failavoid.shared.messages import Membership
from failavoid.shared.tokens import ROLES, mint

SECRET = b"s" * 48
SERVICES = ("monitor", "resource manager", "controller")
DOCS = Path(__file__).parents[2] / "docs/architecture.md"
ROLE_OF = {"agent": "host", "rank's agent": "guest"}  # where the table's word is not the token's


def read_table():
    """The roles of each route, by service: {"monitor": {("GET", "/samples"): {"reader", ...}}}."""
    lines = DOCS.read_text().split("| route |")[1].split("\n\n")[0].splitlines()
    roles = [ROLE_OF.get(word, word) for word in cells(f"| route |{lines[0]}")[1:]]
    assert set(roles) == set(ROLES)
    table = {}
    for line in lines[2:]:
        first, *marks = cells(line)
        if first.startswith("**"):
            routes = table.setdefault(first.strip("*"), {})
        else:
            method, path = first.strip("`").split()
            routes[method, path] = {role for role, mark in zip(roles, marks) if mark}
    return table


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


TABLE = read_table()


@dataclass
class Service:
    """An app; ``world`` is what it acts on.

    ``state`` tells whether anything of that has changed, ``membership`` what there is.
    """

    name: str
    app: FastAPI
    world: Any
    state: Callable[[], Any]
    membership: Callable[[], Membership] = lambda: Membership(0, [], [], [])

    @property
    def table(self):
        """The roles of each route, as the documentation has them."""
        return TABLE[self.name]

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
        unknown = httpx.Response(404, json={"detail": "there is no such evacuation"})  # the controller's own answer
        monkeypatch.setattr(monitor.evacuations, "order", lambda *_order: unknown)
        monitor.start()
        try:
            yield Service(name, monitor_app(monitor, SECRET), monitor, lambda: list(monitor.evaluator.alarms))
        finally:
            monitor.stop()
    elif name == "resource manager":
        site = Site(folder, monkeypatch)
        yield Service(
            name, site.api.app, site, lambda: (site.store.membership(), list(site.calls)), site.store.membership
        )
    else:
        world = World(folder)
        world.around.cluster.refresh()
        yield Service(
            name,
            controller_app(world.controller, SECRET),
            world,
            lambda: [(one.id, one.state) for one in world.controller.evacuations()],
            lambda: world.manager.membership,
        )
        world.alive.clear()
