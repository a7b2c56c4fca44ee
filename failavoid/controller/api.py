"""The controller's API, as in docs/architecture.md."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Body, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from failavoid.controller import metrics
from failavoid.controller.controller import Controller, RequestError
from failavoid.controller.manager import ManagerError
from failavoid.exposition import registry_of, serve_metrics
from failavoid.services import make_app, require
from failavoid.shared.messages import Alarm, Evacuation, Events, Guest, GuestReport, from_dict, to_dict
from failavoid.shared.names import check_domain, check_name
from failavoid.shared.tokens import Identity

_LONGEST_POLL_S = 60.0
_LONGEST_REASON = 500


def build_app(controller: Controller, secret: bytes) -> FastAPI:
    """Make the API of ``controller``. Polls are asynchronous, so that all guests can wait at once."""
    app = make_app("failavoid controller", secret)
    serve_metrics(app, registry_of(lambda: metrics.collect(controller)))
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

    def reason_in(document: Any) -> str:
        """The optional reason of a request; free text, which never becomes a variable of a playbook."""
        if not isinstance(document, dict) or not isinstance(document.get("reason", ""), str):
            raise ValueError('this is asked for with {"reason": TEXT}')
        return str(document.get("reason", ""))[:_LONGEST_REASON]

    def this_guest(name: str, caller: Identity) -> Guest:
        if caller.subject != name:
            raise HTTPException(403, f"this token is {caller.subject}'s: it can't speak for {name}")
        if around.cluster.membership is None:
            raise HTTPException(503, "the guests are not known yet: try again later")
        guest = around.cluster.guest(name)
        if guest is None or guest.uuid != caller.nonce:
            raise HTTPException(403, f"this token is of a guest {name} that is not there, or not any more")
        return guest

    @app.get("/status")
    def status() -> dict[str, Any]:
        return to_dict(controller.status)

    @app.post("/stop")
    def stop(document: Any = Body(default={}), caller: Identity = require("operator")) -> dict[str, Any]:
        return to_dict(controller.stop_evacuations(caller.subject, reason_in(document)))

    @app.post("/allow")
    def allow(document: Any = Body(default={}), caller: Identity = require("operator")) -> dict[str, Any]:
        return to_dict(controller.allow_evacuations(caller.subject, reason_in(document)))

    @app.get("/events")
    async def events(after: int = 0, timeout: float = 0.0) -> dict[str, Any]:
        journal, end = around.journal, time.monotonic() + min(timeout, _LONGEST_POLL_S)
        while True:
            version = journal.news.version
            found = await run_in_threadpool(journal.events, after)
            left = end - time.monotonic()
            if found or left <= 0:
                return to_dict(Events(found, found[-1].number if found else after))
            await journal.news.wait(version, left)

    # -- alarms ------------------------------------------------------------------------------------------------

    @app.post("/alarms")
    def alarm(document: Any = Body(), caller: Identity = require("service")) -> dict[str, Any]:
        taken = from_dict(Alarm, document)
        check_name("alarm", taken.id)
        if taken.domain:
            check_domain(taken.domain)
        else:
            check_name("host", taken.host)
            if taken.job:  # a host may be about to fail whatever it does
                check_name("job", taken.job)
        return shown(controller.take_alarm(taken, caller.subject))

    @app.post("/alarms/{name}/withdraw")
    def withdraw(name: str, document: Any = Body(default={}), caller: Identity = require("service")) -> dict[str, Any]:
        return shown(controller.withdraw(check_name("alarm", name), reason_in(document), caller.subject))

    # -- evacuations -------------------------------------------------------------------------------------------

    @app.get("/plan")
    def plan(host: str) -> list[dict[str, Any]]:
        return [to_dict(one) for one in controller.plans(check_place(host))]

    @app.post("/evacuations")
    def order(document: Any = Body(), caller: Identity = require("operator")) -> list[dict[str, Any]]:
        reason = reason_in(document)
        where = check_place(document.get("host", ""))
        return [shown(evacuation) for evacuation in controller.order(where, reason, caller.subject)]

    @app.get("/evacuations")
    def evacuations() -> list[dict[str, Any]]:
        return [shown(evacuation) for evacuation in controller.evacuations()]

    @app.get("/evacuations/{name}")
    def evacuation(name: str) -> dict[str, Any]:
        return shown(controller.run(name).evacuation)

    @app.get("/evacuations/{name}/progress")
    def progress(name: str) -> list[dict[str, Any]]:
        return [to_dict(one) for one in controller.progress(name)]

    @app.post("/evacuations/{name}/cancel")
    def cancel(name: str, document: Any = Body(default={}), caller: Identity = require("operator")) -> dict[str, Any]:
        return shown(controller.cancel(name, caller.subject, reason_in(document)))

    @app.post("/evacuations/{name}/confirm")
    def confirm(name: str, caller: Identity = require("operator")) -> dict[str, Any]:
        return shown(controller.confirm(name, caller.subject))

    @app.get("/evacuations/{name}/gate/{attempt}")
    async def gate(
        name: str, attempt: int, timeout: float = 25.0, _caller: Identity = require("host", "service", "operator")
    ) -> dict[str, Any]:
        run = controller.run(name)
        end = time.monotonic() + min(timeout, _LONGEST_POLL_S)
        while True:
            version = around.news.version
            answer = run.gate(attempt)
            left = end - time.monotonic()
            if answer.open or answer.cancelled or left <= 0:
                return to_dict(answer)
            await around.news.wait(version, left)

    # -- guests ------------------------------------------------------------------------------------------------

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


def check_place(word: Any) -> str:
    """Return the name of a host or of a failure domain. Raises ValueError."""
    return check_domain(word) if isinstance(word, str) and "=" in word else check_name("host", word)
