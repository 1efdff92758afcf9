"""The routes that ask a model, and those that tell of models: what the app mounts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Mounted

from limner.serve.http.asked import Answers, Asked, Caller, Engine, Route
from limner.serve.http.bodies import Form, Limits, digest, read_form, read_json
from limner.serve.http.errors import ApiError
from limner.serve.http.models import models, one_model
from limner.serve.http.openapi import document
from limner.serve.http.reading import Defaults
from limner.serve.http.requests import parse
from limner.serve.http.streams import EventStream, Outbox, collect
from limner.serve.http.tables import TABLES


class Submit(Protocol):
    """Admits what is asked and gives its events. Raises ApiError, such as 429.

    ``request`` is there for its headers; ``asked.digest`` is the same when a body is sent again.
    """

    def __call__(self, asked: Asked, request: Request) -> Answers: ...


async def read_body(
    request: Request, limits: Limits, pictures: bool = False
) -> tuple[dict[str, Any] | None, Form | None]:
    """The JSON or the form of a request, by its content type; the other is None. ``pictures``: JSON may hold some.

    Raises ApiError 400, 413 or 415.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.split(";")[0].strip().lower()
    if kind == "application/json":
        return await read_json(request.stream(), limits.json_pictures if pictures else limits.json), None
    if kind == "multipart/form-data":
        return None, await read_form(request.stream(), content_type, limits)
    message = (
        "This request takes application/json or multipart/form-data: say which it is as its content type."
    )
    raise ApiError(415, message, "unsupported_media_type")


class Routes:
    """Answers requests by an engine, whose works go through ``submit``; ``who`` says who asks.

    All errors are raised as ApiError, or ClientDisconnect, for the app to write.
    """

    def __init__(
        self, engine: Engine, submit: Submit, who: Callable[[Request], Caller], defaults: Defaults,
        paths: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self.engine, self.submit, self.who, self.defaults = engine, submit, who, defaults
        self.paths = paths  # further ones of /openapi.json

    def mounted(self) -> list[Mounted]:
        """For a Starlette app."""
        return [
            *(
                Mounted(table.path, partial(self.answer, route), methods=["POST"])
                for route, table in TABLES.items()
            ),
            Mounted("/v1/models", self.models, methods=["GET"]),
            Mounted("/v1/models/{id:path}", self.model, methods=["GET"]),
            Mounted("/openapi.json", self.openapi, methods=["GET"]),
        ]

    async def answer(self, route: Route, request: Request) -> Response:
        table = TABLES[route]
        wanted = "application/json" if table.pictures is None else "multipart/form-data"
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != wanted:
            raise ApiError(
                415, f"This request takes {wanted}: say so as its content type.", "unsupported_media_type"
            )
        body, form = await read_body(request, self.defaults.limits, table.inputs)
        asked = parse(route, body, form, self.engine, self.who(request), self.defaults, job=False)
        asked = replace(asked, digest=digest(route, body, form))
        answers = self.submit(asked, request)
        if asked.stream:
            outbox = Outbox(asked, answers)
            try:
                await outbox.first(request.receive)
            except BaseException:  # it failed, or the server ends
                await outbox.close()
                raise
            return EventStream(outbox)
        events = await collect(asked, answers, request.receive)
        return JSONResponse(asked.answer(events), headers=dict(asked.headers))

    async def models(self, request: Request) -> Response:
        return JSONResponse(models(self.engine.cards))

    async def model(self, request: Request) -> Response:
        return JSONResponse(one_model(self.engine.cards, request.path_params["id"]))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(document(self.engine.cards, self.paths))
