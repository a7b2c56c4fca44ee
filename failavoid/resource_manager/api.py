"""The resource manager's API, as in docs/architecture.md: the picture, jobs, guests."""

from __future__ import annotations

import logging
import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool

from failavoid import services
from failavoid.documents import After, Document, Nothing, Timeout, refusal
from failavoid.exposition import registry_of, serve_metrics
from failavoid.resource_manager import api_hosts, background, metrics, placement
from failavoid.resource_manager.guests import GuestError
from failavoid.resource_manager.hosts import HostError, who
from failavoid.resource_manager.image import ImageError
from failavoid.resource_manager.jobs import Jobs
from failavoid.resource_manager.manager import Manager
from failavoid.resource_manager.picture import Picture
from failavoid.resource_manager.requests import LONGEST_TEXT, check_request, shortened, shortened_command
from failavoid.resource_manager.state import ENDED
from failavoid.services import require
from failavoid.shared.messages import (
    Assigned,
    Assignment,
    Events,
    Guest,
    Job,
    JobAlive,
    JobEnded,
    JobRequest,
    JobStarted,
    Membership,
    from_dict,
    to_dict,
)
from failavoid.shared.names import check_name
from failavoid.shared.tokens import Identity

log = logging.getLogger(__name__)

_LONGEST_POLL_S = 60.0
_BEATS = 4  # so many polls of a client end within the time after which its job is ended


def make_api(manager: Manager) -> FastAPI:
    """Make the API. Polls are asynchronous, so that all clients and guests can wait at once."""
    app = services.make_app("failavoid resource manager", manager.secret)

    @app.exception_handler(placement.NoRoomError)
    async def no_room(_request: Request, error: placement.NoRoomError) -> Response:
        return refusal(409, str(error))

    @app.exception_handler(HostError)
    async def not_done(_request: Request, error: HostError) -> Response:
        return refusal(error.status, str(error))

    @app.exception_handler(ImageError)
    async def no_image(_request: Request, error: ImageError) -> Response:
        return refusal(503, str(error))

    serve_metrics(app, registry_of(lambda: metrics.collect(manager.store)))
    _add_picture(app, manager)
    _add_jobs(app, manager)
    _add_guests(app, manager)
    api_hosts.add(app, manager)
    return app


def _add_picture(app: FastAPI, manager: Manager) -> None:
    store = manager.store
    picture = Picture(store, {host.name: host.machine for host in manager.settings.hosts})

    @app.get("/membership", response_model=Membership)
    async def membership(after: After = -1, timeout: Timeout = 0.0, _caller: Identity = require()) -> Response:
        # a number from another life of this service is answered at once
        if store.changes.version >= after >= 0 and timeout > 0:
            await store.changes.wait(after, min(timeout, _LONGEST_POLL_S))
        return Response(await run_in_threadpool(picture.text), media_type="application/json")

    @app.get("/events", response_model=Events)
    async def events(
        after: After = 0, timeout: Timeout = 0.0, _caller: Identity = require("service", "operator", "reader")
    ) -> dict[str, Any]:
        if store.news.version >= after >= 0 and timeout > 0:
            await store.news.wait(after, min(timeout, _LONGEST_POLL_S))
        return to_dict(store.events(after))


def _add_jobs(app: FastAPI, manager: Manager) -> None:
    store, jobs = manager.store, manager.jobs

    def job_of(ident: str, caller: Identity | None = None) -> Job:
        """The job; a user who wants to change it must be its own. Raises HTTPException."""
        with store.view() as state:
            if ident not in state.jobs:
                raise HTTPException(404, f"there is no job {ident}")
            job = from_dict(Job, to_dict(state.jobs[ident]))
        if caller is not None and caller.role == "user" and caller.subject != job.request.user:
            raise HTTPException(403, f"job {ident} is {job.request.user}'s")
        return job

    @app.post("/jobs", response_model=Job)
    def submit(request: Document[JobRequest], caller: Identity = require("user", "operator")) -> dict[str, Any]:
        check_request(request, caller, manager.account_of)
        ident = check_name("job", f"{request.name}-{store.next_number('job')}")
        job = jobs.allocate(ident, request, who(caller))
        manager.heartbeats.hear(ident)
        log.info("job %s of %s: %d guests, %d hosts", ident, request.user, len(job.guests), len(job.hosts))
        launch(jobs, ident)
        return to_dict(job_of(ident))

    @app.get("/jobs/{ident}", response_model=Job)
    def show_job(ident: str, _caller: Identity = require()) -> dict[str, Any]:
        return to_dict(job_of(ident))

    @app.post("/jobs/{ident}/alive", response_model=Job)
    async def alive(
        ident: str, said: Document[JobAlive], caller: Identity = require("user", "operator")
    ) -> dict[str, Any]:
        end = time.monotonic() + min(said.timeout, manager.settings.silence_s / _BEATS)
        while True:
            version = store.changes.version
            job = job_of(ident, caller)
            manager.heartbeats.hear(ident)
            left = end - time.monotonic()
            if job.state != said.state or left <= 0:
                return to_dict(job)
            await store.changes.wait(version, left)

    @app.post("/jobs/{ident}/started", response_model=Job)
    def started(
        ident: str, said: Document[JobStarted], caller: Identity = require("user", "operator")
    ) -> dict[str, Any]:
        job_of(ident, caller)
        with store.change() as state:
            job = state.jobs[ident]
            if job.state not in ("ready", "running"):
                raise HTTPException(409, f"job {ident} is {job.state} {job.message}".strip())
            if job.state == "ready":
                state.note(who(caller), "job started", job=ident)
            job.state, job.started = "running", time.time()
            job.command = shortened_command(said.command)
            return to_dict(job)

    @app.post("/jobs/{ident}/ended", response_model=Job)
    def ended(ident: str, said: Document[JobEnded], caller: Identity = require("user", "operator")) -> dict[str, Any]:
        job = job_of(ident, caller)
        status, message = said.exit_status, shortened(said.message)
        if status != 0 and job.state not in ENDED:
            message = manager.watch.why_ended(ident) or message
        jobs.end(ident, "completed" if status == 0 else "failed", status, message, who(caller))
        return to_dict(job_of(ident))


def launch(jobs: Jobs, ident: str) -> None:
    """Launch a job: at once if all it needs is there."""
    if jobs.waits(ident):
        background.start(f"launch {ident}", jobs.launch, ident)
    else:
        jobs.launch(ident)


def _add_guests(app: FastAPI, manager: Manager) -> None:
    store, jobs = manager.store, manager.jobs

    def this_guest(name: str, caller: Identity) -> Guest:
        """The guest that calls; a token ends with its guest. Raises HTTPException."""
        with store.view() as state:
            guest = state.guests.get(name)
            if guest is None or (caller.subject, caller.nonce) != (name, guest.uuid):
                raise HTTPException(403, f"this token is not that of a guest {name} that is there")
            return guest

    @app.get("/guests/{name}/assignment", response_model=Assignment | Nothing)
    async def assignment(name: str, timeout: Timeout = 25.0, caller: Identity = require("guest")) -> dict[str, Any]:
        end = time.monotonic() + min(timeout, _LONGEST_POLL_S)
        while True:
            version = store.changes.version
            told = jobs.assignment(this_guest(name, caller))
            left = end - time.monotonic()
            if told or left <= 0:
                return to_dict(told) if told else {}
            await store.changes.wait(version, left)

    @app.post("/guests/{name}/assigned", response_model=Nothing)
    def assigned(name: str, said: Document[Assigned], caller: Identity = require("guest")) -> dict[str, Any]:
        this_guest(name, caller)
        jobs.assigned(name, said.error[:LONGEST_TEXT])
        return {}

    @app.delete("/guests/{name}", response_model=Nothing)
    def remove_guest(name: str, caller: Identity = require("operator")) -> dict[str, Any]:
        with store.change() as state:
            if name not in state.guests:
                raise HTTPException(404, f"there is no guest {name}")
            if state.guests[name].job:
                raise HTTPException(409, f"guest {name} belongs to job {state.guests[name].job}: end the job first")
            state.note(who(caller), "guest removal asked for", guest=name)
        try:
            manager.guests.remove([name])
        except GuestError as error:
            raise HTTPException(502, str(error)) from error
        return {}
