"""The controller's API, as in docs/architecture.md."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Body, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from failavoid.controller.controller import Controller, RequestError
from failavoid.controller.manager import ManagerError
from failavoid.services import make_app, require
from failavoid.shared.messages import Alarm, Evacuation, Gate, Guest, GuestReport, from_dict, to_dict
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

    @app.post("/alarms")
    def alarm(document: Any = Body(), _caller: Identity = require("service")) -> dict[str, Any]:
        taken = from_dict(Alarm, document)
        for kind, name in (("alarm", taken.id), ("host", taken.host), ("job", taken.job)):
            check_name(kind, name)
        return shown(controller.take_alarm(taken))

    @app.post("/evacuations")
    def order(document: Any = Body(), caller: Identity = require("operator")) -> dict[str, Any]:
        if not isinstance(document, dict) or not isinstance(document.get("reason", ""), str):
            raise ValueError('an evacuation is asked for with {"host": NAME, "reason": TEXT}')
        host = check_name("host", document.get("host", ""))
        reason = str(document.get("reason", ""))[:_LONGEST_REASON]
        return shown(controller.order(host, reason, caller.subject))

    @app.get("/evacuations")
    def evacuations() -> list[dict[str, Any]]:
        return [shown(evacuation) for evacuation in controller.evacuations()]

    @app.get("/evacuations/{name}")
    def evacuation(name: str) -> dict[str, Any]:
        return shown(controller.run(name).evacuation)

    @app.post("/evacuations/{name}/cancel")
    def cancel(name: str, caller: Identity = require("operator")) -> dict[str, Any]:
        return shown(controller.cancel(name, caller.subject))

    @app.get("/evacuations/{name}/gate")
    async def gate(
        name: str, timeout: float = 25.0, _caller: Identity = require("host", "service", "operator")
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

    @app.get("/guests/{name}/notice")
    async def notice(
        name: str, after: int = 0, timeout: float = 25.0, caller: Identity = require("guest")
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

    @app.post("/guests/{name}/report")
    def report(
        name: str,
        document: Any = Body(),
        caller: Identity = require("guest"),
    ) -> dict[str, Any]:
        guest = this_guest(name, caller)
        said = from_dict(GuestReport, document)
        if said.job != guest.job:
            raise HTTPException(409, f"{name} belongs to job {guest.job}, not to {said.job}")
        if not 1 <= said.epoch <= around.board.notice(said.job).epoch:
            raise HTTPException(409, f"there was no notice with epoch {said.epoch} for job {said.job}")
        around.board.report(name, said)
        return {}

    return app
