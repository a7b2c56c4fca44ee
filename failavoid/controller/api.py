"""The controller's API, as in docs/architecture.md."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from failavoid.controller.controller import Controller, RequestError
from failavoid.controller.manager import ManagerError
from failavoid.documents import After, Document, Nothing, Timeout
from failavoid.services import make_app, require
from failavoid.shared.messages import (
    Alarm,
    Evacuation,
    EvacuationRequest,
    Gate,
    Guest,
    GuestReport,
    Notice,
    to_dict,
)
from failavoid.shared.names import check_name
from failavoid.shared.tokens import Identity

_LONGEST_POLL_S = 60.0
_LONGEST_REASON = 500


def build_app(controller: Controller, secret: bytes) -> FastAPI:
    """Make the API of ``controller``. Polls are asynchronous, so that all guests can wait at once."""
    app = make_app("failavoid controller", secret)
    around = controller.around

    @app.exception_handler(RequestError)
    async def not_granted(_request: Request, error: RequestError) -> Response:
        return JSONResponse({"detail": str(error)}, status_code=error.status)

    @app.exception_handler(ManagerError)
    async def no_membership(_request: Request, error: ManagerError) -> Response:
        return JSONResponse({"detail": f"{error}; try again later"}, status_code=503)

    def shown(evacuation: Evacuation | None) -> dict[str, Any]:
        with around.changed:
            return to_dict(evacuation) if evacuation else {}

    def this_guest(name: str, caller: Identity) -> Guest:
        if caller.subject != name:
            raise HTTPException(403, f"this token is {caller.subject}'s: it can't speak for {name}")
        if around.cluster.membership is None:
            raise HTTPException(503, "the guests are not known yet: try again later")
        guest = around.cluster.guest(name)
        if guest is None or guest.uuid != caller.nonce:
            raise HTTPException(403, f"this token is of a guest {name} that is not there, or not any more")
        return guest

    @app.post("/alarms", response_model=Evacuation | Nothing)
    def alarm(taken: Document[Alarm], _caller: Identity = require("service")) -> dict[str, Any]:
        for kind, name in (("alarm", taken.id), ("host", taken.host), ("job", taken.job)):
            check_name(kind, name)
        return shown(controller.take_alarm(taken))

    @app.post("/evacuations", response_model=Evacuation)
    def order(asked: Document[EvacuationRequest], caller: Identity = require("operator")) -> dict[str, Any]:
        host = check_name("host", asked.host)
        return shown(controller.order(host, asked.reason[:_LONGEST_REASON], caller.subject))

    @app.get("/evacuations", response_model=list[Evacuation], dependencies=[require()])
    def evacuations() -> list[dict[str, Any]]:
        return [shown(evacuation) for evacuation in controller.evacuations()]

    @app.get("/evacuations/{name}", response_model=Evacuation, dependencies=[require()])
    def evacuation(name: str) -> dict[str, Any]:
        return shown(controller.run(name).evacuation)

    @app.post("/evacuations/{name}/cancel", response_model=Evacuation)
    def cancel(name: str, caller: Identity = require("operator")) -> dict[str, Any]:
        return shown(controller.cancel(name, caller.subject))

    @app.get("/evacuations/{name}/gate", response_model=Gate)
    async def gate(
        name: str, timeout: Timeout = 25.0, _caller: Identity = require("host", "service", "operator")
    ) -> dict[str, Any]:
        run = controller.run(name)
        end = time.monotonic() + min(timeout, _LONGEST_POLL_S)
        while True:
            version = around.news.version
            answer = Gate(name, run.gate_open, run.gate_closed)
            left = end - time.monotonic()
            if answer.open or answer.cancelled or left <= 0:
                return to_dict(answer)
            await around.news.wait(version, left)

    @app.get("/guests/{name}/notice", response_model=Notice | Nothing)
    async def notice(
        name: str, after: After = 0, timeout: Timeout = 25.0, caller: Identity = require("guest")
    ) -> dict[str, Any]:
        end = time.monotonic() + min(timeout, _LONGEST_POLL_S)
        while True:
            version = around.news.version
            job = this_guest(name, caller).job
            answer = around.board.notice(job) if job else None
            news = answer.serial > after if answer else after > 0
            left = end - time.monotonic()
            if news or left <= 0:
                return to_dict(answer) if answer else {}
            await around.news.wait(version, left)

    @app.post("/guests/{name}/report", response_model=Nothing)
    def report(name: str, said: Document[GuestReport], caller: Identity = require("guest")) -> dict[str, Any]:
        guest = this_guest(name, caller)
        if said.job != guest.job:
            raise HTTPException(409, f"{name} belongs to job {guest.job}, not to {said.job}")
        if not 1 <= said.epoch <= around.board.notice(said.job).epoch:
            raise HTTPException(409, f"there was no notice with epoch {said.epoch} for job {said.job}")
        around.board.report(name, said)
        return {}

    return app
