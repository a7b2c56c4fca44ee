"""The controller's API, as in docs/architecture.md."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool

from failavoid.controller import metrics
from failavoid.controller.controller import Controller, RequestError
from failavoid.controller.manager import ManagerError
from failavoid.documents import After, Document, Nothing, Timeout, refusal
from failavoid.exposition import registry_of, serve_metrics
from failavoid.services import make_app, require
from failavoid.shared.messages import (
    Alarm,
    ControllerStatus,
    Evacuation,
    EvacuationRequest,
    Events,
    Gate,
    Guest,
    GuestReport,
    MoveProgress,
    Notice,
    Plan,
    Reason,
    Relocation,
    RelocationRequest,
    to_dict,
)
from failavoid.shared.names import check_domain, check_name
from failavoid.shared.tokens import Identity

_LONGEST_POLL_S = 60.0
_LONGEST_REASON = 500
_NO_REASON = Reason()


def build_app(controller: Controller, secret: bytes) -> FastAPI:
    """Make the API of ``controller``. Polls are asynchronous, so that all guests can wait at once."""
    app = make_app("failavoid controller", secret)
    serve_metrics(app, registry_of(lambda: metrics.collect(controller)))
    around = controller.around

    @app.exception_handler(RequestError)
    async def not_granted(_request: Request, error: RequestError) -> Response:
        return refusal(error.status, str(error))

    @app.exception_handler(ManagerError)
    async def no_membership(_request: Request, error: ManagerError) -> Response:
        return refusal(503, f"{error}; try again later")

    def shown(evacuation: Evacuation | None) -> dict[str, Any]:
        with around.changed:
            return to_dict(evacuation) if evacuation else {}

    def check_caller(name: str, caller: Identity) -> None:
        if caller.subject != name:
            raise HTTPException(403, f"this token is {caller.subject}'s: it can't speak for {name}")
        if around.cluster.membership is None:
            raise HTTPException(503, "hosts and guests are not known yet: try again later")

    def this_guest(name: str, caller: Identity) -> Guest:
        check_caller(name, caller)
        guest = around.cluster.guest(name)
        if guest is None or guest.uuid != caller.nonce:
            raise HTTPException(403, f"this token is of a guest {name} that is not there, or not any more")
        return guest

    @app.get("/status", response_model=ControllerStatus, dependencies=[require()])
    def status() -> dict[str, Any]:
        return to_dict(controller.status)

    @app.post("/stop", response_model=ControllerStatus)
    def stop(said: Document[Reason] = _NO_REASON, caller: Identity = require("operator")) -> dict[str, Any]:
        return to_dict(controller.stop_evacuations(caller.subject, said.reason[:_LONGEST_REASON]))

    @app.post("/allow", response_model=ControllerStatus)
    def allow(said: Document[Reason] = _NO_REASON, caller: Identity = require("operator")) -> dict[str, Any]:
        return to_dict(controller.allow_evacuations(caller.subject, said.reason[:_LONGEST_REASON]))

    @app.get("/events", response_model=Events, dependencies=[require()])
    async def events(after: After = 0, timeout: Timeout = 0.0) -> dict[str, Any]:
        journal, end = around.journal, time.monotonic() + min(timeout, _LONGEST_POLL_S)
        while True:
            version = journal.news.version
            found = await run_in_threadpool(journal.events, after)
            left = end - time.monotonic()
            if found or left <= 0:
                return to_dict(Events(found, found[-1].number if found else after))
            await journal.news.wait(version, left)

    # -- alarms ------------------------------------------------------------------------------------------------

    @app.post("/alarms", response_model=Evacuation | Nothing)
    def alarm(taken: Document[Alarm], caller: Identity = require("service")) -> dict[str, Any]:
        check_name("alarm", taken.id)
        if taken.domain:
            check_domain(taken.domain)
        else:
            check_name("host", taken.host)
            if taken.job:  # a host may be about to fail whatever it does
                check_name("job", taken.job)
        return shown(controller.take_alarm(taken, caller.subject))

    @app.post("/alarms/{name}/withdraw", response_model=Evacuation | Nothing)
    def withdraw(
        name: str, said: Document[Reason] = _NO_REASON, caller: Identity = require("service")
    ) -> dict[str, Any]:
        return shown(controller.withdraw(check_name("alarm", name), said.reason[:_LONGEST_REASON], caller.subject))

    # -- evacuations -------------------------------------------------------------------------------------------

    @app.get("/plan", response_model=list[Plan], dependencies=[require()])
    def plan(host: str) -> list[dict[str, Any]]:
        return [to_dict(one) for one in controller.plans(check_place(host))]

    @app.post("/evacuations", response_model=list[Evacuation])
    def order(asked: Document[EvacuationRequest], caller: Identity = require("operator")) -> list[dict[str, Any]]:
        ordered = controller.order(check_place(asked.host), asked.reason[:_LONGEST_REASON], caller.subject)
        return [shown(evacuation) for evacuation in ordered]

    @app.get("/evacuations", response_model=list[Evacuation], dependencies=[require()])
    def evacuations() -> list[dict[str, Any]]:
        return [shown(evacuation) for evacuation in controller.evacuations()]

    @app.get("/evacuations/{name}", response_model=Evacuation, dependencies=[require()])
    def evacuation(name: str) -> dict[str, Any]:
        return shown(controller.run(name).evacuation)

    @app.get("/evacuations/{name}/progress", response_model=list[MoveProgress], dependencies=[require()])
    def progress(name: str) -> list[dict[str, Any]]:
        return [to_dict(one) for one in controller.progress(name)]

    @app.post("/evacuations/{name}/cancel", response_model=Evacuation)
    def cancel(
        name: str, said: Document[Reason] = _NO_REASON, caller: Identity = require("operator")
    ) -> dict[str, Any]:
        return shown(controller.cancel(name, caller.subject, said.reason[:_LONGEST_REASON]))

    @app.post("/evacuations/{name}/confirm", response_model=Evacuation)
    def confirm(name: str, caller: Identity = require("operator")) -> dict[str, Any]:
        return shown(controller.confirm(name, caller.subject))

    @app.get("/evacuations/{name}/gate/{attempt}", response_model=Gate)
    async def gate(
        name: str, attempt: int, timeout: Timeout = 25.0, _caller: Identity = require("host", "service", "operator")
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

    # -- relocations -------------------------------------------------------------------------------------------

    @app.post("/relocations", response_model=Relocation)
    def relocate(asked: Document[RelocationRequest], caller: Identity = require("service")) -> dict[str, Any]:
        check_name("relocation", asked.id)
        check_name("job", asked.job)
        begun = controller.relocations.begin(asked, caller.subject)
        with around.changed:
            return to_dict(begun)

    @app.get("/relocations/{name}", response_model=Relocation, dependencies=[require()])
    async def relocation(name: str, timeout: Timeout = 0.0) -> dict[str, Any]:
        end = time.monotonic() + min(timeout, _LONGEST_POLL_S)
        while True:
            version = around.news.version
            found = controller.relocations.find(name)
            if found is None:
                raise HTTPException(404, f"there is no relocation {name}")
            left = end - time.monotonic()
            if found.ended is not None or left <= 0:
                with around.changed:
                    return to_dict(found)
            await around.news.wait(version, left)

    # -- guests, and hosts that a job has without guests ---------------------------------------------------------

    async def notice_of(current: Callable[[], Notice | None], after: int, timeout: float) -> dict[str, Any]:
        """Wait for a notice that is newer than ``after``, or for there being none any more."""
        end = time.monotonic() + min(timeout, _LONGEST_POLL_S)
        while True:
            version = around.news.version
            answer = current()
            news = answer.serial > after if answer else after > 0
            left = end - time.monotonic()
            if news or left <= 0:
                return to_dict(answer) if answer else {}
            await around.news.wait(version, left)

    def take_report(name: str, job: str | None, said: GuestReport) -> None:
        if said.job != job:
            raise HTTPException(409, f"{name} belongs to job {job}, not to {said.job}")
        if not 1 <= said.epoch <= around.board.notice(said.job).epoch:
            raise HTTPException(409, f"there was no notice with epoch {said.epoch} for job {said.job}")
        around.board.report(name, said)

    @app.get("/guests/{name}/notice", response_model=Notice | Nothing)
    async def guests_notice(
        name: str, after: After = 0, timeout: Timeout = 25.0, caller: Identity = require("guest")
    ) -> dict[str, Any]:
        def current() -> Notice | None:
            job = this_guest(name, caller).job
            return around.board.notice(job) if job else None

        return await notice_of(current, after, timeout)

    @app.get("/hosts/{name}/notice", response_model=Notice | Nothing)
    async def hosts_notice(
        name: str, after: After = 0, timeout: Timeout = 25.0, caller: Identity = require("host")
    ) -> dict[str, Any]:
        def current() -> Notice | None:
            check_caller(name, caller)
            job = around.cluster.job_on(name)
            owner = [job.request.uid, job.request.gid] if job else []
            return dataclasses.replace(around.board.notice(job.id), owner=owner) if job else None

        return await notice_of(current, after, timeout)

    @app.post("/guests/{name}/report", response_model=Nothing)
    def guests_report(name: str, said: Document[GuestReport], caller: Identity = require("guest")) -> dict[str, Any]:
        take_report(name, this_guest(name, caller).job, said)
        return {}

    @app.post("/hosts/{name}/report", response_model=Nothing)
    def hosts_report(name: str, said: Document[GuestReport], caller: Identity = require("host")) -> dict[str, Any]:
        check_caller(name, caller)
        job = around.cluster.job_on(name)
        take_report(name, job.id if job else None, said)
        return {}

    return app


def check_place(word: Any) -> str:
    """Return the name of a host or of a failure domain. Raises ValueError."""
    return check_domain(word) if isinstance(word, str) and "=" in word else check_name("host", word)
