"""How the services' documents get into their OpenAPI, and what is said of those that can't be taken.

A document is a dataclass of messages.py. It is read by from_dict, whose errors name the field at fault; FastAPI and
pydantic only describe it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from starlette.exceptions import HTTPException

from failavoid.shared.messages import from_dict

log = logging.getLogger(__name__)
T = TypeVar("T")

_LAST_VERSION = 2**62


@dataclass
class Problem:
    """Why a request was refused: what, where, and the way out."""

    detail: str


@dataclass
class Nothing:
    """`{}`: it was done and there is nothing to say, or there is nothing yet."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # what pydantic reads; else it would pass for any document


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": meaning}
    for status, meaning in (
        (400, "The body can't be read."),
        (401, "There is no token, or it was not made with this site's secret."),
        (403, "The token's role, or its subject, may not do this."),
        (404, "There is no such thing."),
        (409, "It can't be done as things stand; the detail says what is in the way."),
        (411, "The body comes without its length."),
        (413, "The body is too long."),
        (422, "A name, number or document that makes no sense; the detail names the field."),
        (502, "A host did not do what it was asked to."),
        (503, "Not now: ask again later."),
    )
}


class _ByFromDict:
    """Has pydantic leave a document's reading to from_dict."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(lambda data, _: from_dict(source, data), handler(source))


Document = Annotated[T, Body(), _ByFromDict()]
"""A request's body: ``request: Document[JobRequest]``."""

After = Annotated[int, Query(ge=-_LAST_VERSION, le=_LAST_VERSION, description="Answer when there is more than this.")]
Timeout = Annotated[
    float, Query(ge=0, allow_inf_nan=False, description="Seconds to wait for news at most; a service may wait less.")
]

Since = Annotated[float, Query(allow_inf_nan=False, description="Seconds since the epoch.")]


def describe(app: FastAPI) -> None:
    """Say in the OpenAPI that documents have the fields that are described and no others: from_dict refuses those."""
    described = app.openapi

    def strictly() -> dict[str, Any]:
        document = described()
        for schema in document["components"]["schemas"].values():
            if "properties" in schema:
                schema["additionalProperties"] = False
        return document

    app.openapi = strictly  # type: ignore[method-assign]  # as FastAPI's own documentation has it


def explain_refusals(app: FastAPI) -> None:
    """Answer whatever can't be done with a Problem, and log whose token did not do."""

    @app.exception_handler(ValueError)
    async def bad_value(_request: Request, error: ValueError) -> Response:
        return refusal(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def bad_request(_request: Request, error: RequestValidationError) -> Response:
        return refusal(422, _sentence(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        act, detail = f"{request.method} {request.url.path}", error.detail
        if error.status_code == 403:
            caller = request.state.identity
            log.warning("%r was refused to %s %s: %s", act, caller.role, caller.subject, detail)
        elif "endpoint" not in request.scope or error.status_code == 405:  # no route took it
            detail = f"there is no {act} here: /openapi.json lists what there is"
        return refusal(error.status_code, detail, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, _error: Exception) -> Response:
        return refusal(
            500,
            f"{app.title} failed at {request.method} {request.url.path}. This is a defect: please report it with what "
            "its journal says (journalctl, on the head)",
        )


def refusal(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A Problem as an answer."""
    return JSONResponse({"detail": detail}, status_code=status, headers=dict(headers or {}))


def _sentence(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])  # from_dict's own
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error['ctx']['error']} at character {error['loc'][-1]}"
    kind, *where = error["loc"]
    if kind == "body" and error["type"] == "missing":
        return "a body is needed: send a JSON object; /openapi.json describes it"
    given = "" if error["type"] == "missing" else f", not {error['input']!r}"
    return f"{'.'.join(str(word) for word in where) or kind}: {error['msg']}{given}"
