"""The resource manager's API, as in docs/architecture.md: leases of spares, and hosts."""

from __future__ import annotations

from typing import Any

from fastapi import Body, FastAPI, HTTPException

from failavoid.resource_manager import background, leases
from failavoid.resource_manager.hosts import who
from failavoid.resource_manager.manager import Manager
from failavoid.resource_manager.requests import names, text
from failavoid.resource_manager.state import held
from failavoid.services import require
from failavoid.shared.messages import LeaseRequest, Placement, from_dict, to_dict
from failavoid.shared.names import check_name
from failavoid.shared.tokens import Identity

Document = dict[str, Any]


def add(app: FastAPI, manager: Manager) -> None:
    """Add the routes to ``app``."""
    _add_leases(app, manager)
    _add_hosts(app, manager)


def _add_leases(app: FastAPI, manager: Manager) -> None:
    store, settings = manager.store, manager.settings

    @app.post("/leases")
    def lease(body: Document = Body(), caller: Identity = require("service")) -> Document:
        request = from_dict(LeaseRequest, body)
        check_name("evacuation", request.evacuation)
        number = store.next_number("lease")
        with store.change() as state:
            taken = leases.take(state, request, settings, number)
            new = taken.id == f"lease-{number}"
            if new:
                state.note(who(caller), "lease taken", lease=taken.id, hosts=held(taken), evacuation=taken.evacuation)
            answer, hosts = to_dict(taken), held(taken)
        for host in hosts if new else []:
            if manager.guests.idle_on({host}):
                background.start(f"clear {host}", manager.guests.remove_idle, host)
        return answer

    @app.delete("/leases/{ident}")
    def give_back(ident: str, caller: Identity = require("service")) -> Document:
        with store.change() as state:
            if ident not in state.leases:
                raise HTTPException(404, f"there is no lease {ident}")
            state.note(who(caller), "lease given back", lease=ident, host=state.leases[ident].host)
            leases.give_back(state, state.leases[ident])
        return {}

    @app.post("/placements")
    def place(body: Document = Body(), _caller: Identity = require("service")) -> list[Document]:
        guests, host = names(body, "guests"), text(body, "host")
        with store.change() as state:
            return [to_dict(placed) for placed in leases.reserve(state, guests, host, settings)]

    @app.post("/leases/{ident}/commit")
    def commit(ident: str, body: Document = Body(), caller: Identity = require("service")) -> Document:
        placements = from_dict(list[Placement], body.get("placements"))
        with store.change() as state:
            if ident not in state.leases:
                raise HTTPException(404, f"there is no lease {ident}")
            moved = {placed.guest: placed.host for placed in placements}
            state.note(who(caller), "lease committed", lease=ident, guests=moved)
            leases.commit(state, state.leases[ident], placements, who(caller))
        return {}


def _add_hosts(app: FastAPI, manager: Manager) -> None:
    hosts = manager.hosts

    def cause(body: Document) -> tuple[str, str, str]:
        return text(body, "reason"), text(body, "evacuation"), text(body, "job")

    @app.post("/hosts/{name}/drain")
    def drain(name: str, body: Document = Body(), caller: Identity = require("service", "operator")) -> Document:
        return to_dict(hosts.drain(name, text(body, "reason"), caller))

    @app.post("/hosts/{name}/suspect")
    def suspect(name: str, body: Document = Body(), caller: Identity = require("service", "operator")) -> Document:
        return to_dict(hosts.suspect(name, *cause(body), caller))

    @app.delete("/hosts/{name}/suspect")
    def trust(name: str, caller: Identity = require("service", "operator")) -> Document:
        return to_dict(hosts.trust(name, caller))

    @app.post("/hosts/{name}/retire")
    def retire(name: str, body: Document = Body(), caller: Identity = require("service", "operator")) -> Document:
        hosts.retire(name, *cause(body), caller)
        return {}

    @app.post("/hosts/{name}/restore")
    def restore(name: str, caller: Identity = require("operator")) -> Document:
        hosts.restore(name, caller)
        return {}
