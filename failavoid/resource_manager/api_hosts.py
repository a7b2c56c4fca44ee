"""The resource manager's API, as in docs/architecture.md: leases of spares, and hosts."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, HTTPException

from failavoid.documents import Document, Nothing
from failavoid.resource_manager import background, leases
from failavoid.resource_manager.hosts import who
from failavoid.resource_manager.manager import Manager
from failavoid.resource_manager.requests import LONGEST_TEXT
from failavoid.services import require
from failavoid.shared.messages import (
    Cause,
    Commit,
    Host,
    Lease,
    LeaseRequest,
    Placement,
    PlacementRequest,
    Reason,
    to_dict,
)
from failavoid.shared.names import check_name
from failavoid.shared.tokens import Identity


def add(app: FastAPI, manager: Manager) -> None:
    """Add the routes to ``app``."""
    _add_leases(app, manager)
    _add_hosts(app, manager)


def _add_leases(app: FastAPI, manager: Manager) -> None:
    store, settings = manager.store, manager.settings

    @app.post("/leases", response_model=Lease)
    def lease(request: Document[LeaseRequest], caller: Identity = require("service")) -> dict[str, Any]:
        check_name("evacuation", request.evacuation)
        number = store.next_number("lease")
        with store.change() as state:
            taken = leases.take(state, request, settings, number)
            new = taken.id == f"lease-{number}"
            if new:
                state.note(who(caller), "lease taken", lease=taken.id, host=taken.host, evacuation=taken.evacuation)
            answer = to_dict(taken)
        if new and manager.guests.idle_on({taken.host}):
            background.start(f"clear {taken.host}", manager.guests.remove_idle, taken.host)
        return answer

    @app.delete("/leases/{ident}", response_model=Nothing)
    def give_back(ident: str, caller: Identity = require("service")) -> dict[str, Any]:
        with store.change() as state:
            if ident not in state.leases:
                raise HTTPException(404, f"there is no lease {ident}")
            state.note(who(caller), "lease given back", lease=ident, host=state.leases[ident].host)
            leases.give_back(state, state.leases[ident])
        return {}

    @app.post("/placements", response_model=list[Placement])
    def place(asked: Document[PlacementRequest], caller: Identity = require("service")) -> list[dict[str, Any]]:
        with store.change() as state:
            placed = [to_dict(one) for one in leases.reserve(state, asked.guests, asked.host, settings)]
            state.note(who(caller), "places reserved", guests=asked.guests, host=asked.host)
            return placed

    @app.post("/leases/{ident}/commit", response_model=Nothing)
    def commit(ident: str, said: Document[Commit], caller: Identity = require("service")) -> dict[str, Any]:
        with store.change() as state:
            if ident not in state.leases:
                raise HTTPException(404, f"there is no lease {ident}")
            moved = {placed.guest: placed.host for placed in said.placements}
            state.note(who(caller), "lease committed", lease=ident, guests=moved)
            leases.commit(state, state.leases[ident], said.placements, who(caller))
        return {}


def _add_hosts(app: FastAPI, manager: Manager) -> None:
    hosts = manager.hosts

    def cause(said: Cause) -> tuple[str, str, str]:
        return said.reason[:LONGEST_TEXT], said.evacuation[:LONGEST_TEXT], said.job[:LONGEST_TEXT]

    @app.post("/hosts/{name}/drain", response_model=Host)
    def drain(name: str, said: Document[Reason], caller: Identity = require("service", "operator")) -> dict[str, Any]:
        return to_dict(hosts.drain(name, said.reason[:LONGEST_TEXT], caller))

    @app.post("/hosts/{name}/suspect", response_model=Host)
    def suspect(name: str, said: Document[Cause], caller: Identity = require("service", "operator")) -> dict[str, Any]:
        return to_dict(hosts.suspect(name, *cause(said), caller))

    @app.delete("/hosts/{name}/suspect", response_model=Host)
    def trust(name: str, caller: Identity = require("service", "operator")) -> dict[str, Any]:
        return to_dict(hosts.trust(name, caller))

    @app.post("/hosts/{name}/retire", response_model=Nothing)
    def retire(name: str, said: Document[Cause], caller: Identity = require("service", "operator")) -> dict[str, Any]:
        hosts.retire(name, *cause(said), caller)
        return {}

    @app.post("/hosts/{name}/restore", response_model=Nothing)
    def restore(name: str, caller: Identity = require("operator")) -> dict[str, Any]:
        hosts.restore(name, caller)
        return {}
