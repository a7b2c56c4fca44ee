"""The display's pages, which are for everybody, and what they ask for, which needs a token.

The pages' script holds the token and sends it with each request. A cookie would be sent to every service on the head,
whatever its port and owner, and EventSource can't send a header: so the script reads the stream of events itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from failavoid.documents import Document, Since
from failavoid.monitor.display.display import Display
from failavoid.monitor.display.values import NAMES
from failavoid.monitor.evacuations import EvacuationFollower
from failavoid.monitor.store import Store
from failavoid.services import require
from failavoid.shared.messages import Evacuation, HostCores, HostHistory, Reason, Recording, to_dict
from failavoid.shared.names import check_name

PAGES = "/display/"
QUIET_S = 15.0  # after so long without news a sign of life is sent
_FIRST_S = 2.0  # to bring the board up to date, if nobody looked before
_NO_REASON = Reason()
_MANY = 500  # hosts, whose cores are asked for at once
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class _Pages(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, which may load nothing from elsewhere, and is asked for anew after an update."""
        response = await super().get_response(path, scope)
        response.headers.update(_SAFE)
        return response


def add(app: FastAPI, display: Display, store: Store, evacuations: EvacuationFollower) -> None:
    """Add the pages and the routes."""
    app.mount(PAGES.rstrip("/"), _Pages(directory=Path(__file__).parent / "pages", html=True))

    def shown(metric: str) -> str:
        if metric and metric not in NAMES:
            raise ValueError(f"there is no metric {metric!r} to show; use one of {', '.join(NAMES)}")
        return metric or display.settings.metric

    @app.get("/live/stream", dependencies=[require()], include_in_schema=False)
    async def stream(metric: str = "", last_event_id: str = Header(default="")) -> StreamingResponse:
        events = _events(display, shown(metric), last_event_id)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/live/hosts/{name}/history", response_model=HostHistory, dependencies=[require()])
    def history(name: str, metric: str = "", since: Since = 0.0) -> dict[str, Any]:
        return to_dict(display.history(check_name("host", name), shown(metric), since))

    @app.get("/live/cores", response_model=list[HostCores], dependencies=[require()])
    def cores(hosts: str) -> list[dict[str, Any]]:
        names = hosts.split(",")
        if len(names) > _MANY:
            raise ValueError(f"{len(names)} hosts are asked for at once; ask for at most {_MANY}")
        return [to_dict(HostCores(host, found)) for host, found in store.cores(names).items()]

    @app.get("/live/evacuations/{name}/recording", response_model=Recording, dependencies=[require()])
    def recording(name: str, metric: str = "") -> dict[str, Any]:
        try:
            return to_dict(display.recording(name, shown(metric)))
        except KeyError:
            raise HTTPException(404, f"there is no evacuation {name} among the last ones") from None

    def hand_on(name: str, act: str, request: Request, document: Any) -> Response:
        try:
            answer = evacuations.order(check_name("evacuation", name), act, request.headers["Authorization"], document)
        except httpx.HTTPError as error:
            raise HTTPException(503, f"the controller does not answer ({error}): try again later") from error
        return Response(answer.content, answer.status_code, media_type="application/json")

    @app.post("/live/evacuations/{name}/confirm", response_model=Evacuation, dependencies=[require("operator")])
    def confirm(name: str, request: Request) -> Response:
        return hand_on(name, "confirm", request, {})

    @app.post("/live/evacuations/{name}/cancel", response_model=Evacuation, dependencies=[require("operator")])
    def cancel(name: str, request: Request, said: Document[Reason] = _NO_REASON) -> Response:
        return hand_on(name, "cancel", request, to_dict(said))


async def _events(display: Display, metric: str, place: str) -> AsyncIterator[str]:
    """Bring a browser's copy up to date, from ``place`` on, and send it each collection."""
    version = display.news.version
    display.watch(1)
    try:
        version = await display.news.wait(version, _FIRST_S)
        sent = ""
        while display.running:
            text = ""
            place, documents = await run_in_threadpool(display.board.since, place)
            if documents:
                text += f"id: {place}\nevent: documents\ndata: {documents}\n\n"
            values = display.frame(metric)
            if values != sent:
                sent = values
                text += f"event: values\ndata: {values}\n\n"
            yield text or ": nothing new\n\n"
            version = await display.news.wait(version, QUIET_S)
    finally:
        display.watch(-1)
