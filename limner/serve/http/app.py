"""The server as an ASGI app: all routes, and what every request passes before them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Mounted
from starlette.types import ASGIApp

from limner.files import cache_folder
from limner.serve.http.admission import Admission, Gate, caller_of
from limner.serve.http.asked import Engine
from limner.serve.http.errors import ApiError
from limner.serve.http.guards import Guard, broken, own_origins, plain_error
from limner.serve.http.jobs import Jobs
from limner.serve.http.jobs_routes import PATHS, JobRoutes
from limner.serve.http.jobs_store import Store
from limner.serve.http.links import PATH, Links
from limner.serve.http.metrics import CONTENT_TYPE, Meters, Page, engine_page, front_page
from limner.serve.http.reading import Defaults
from limner.serve.http.routes import Routes
from limner.serve.http.tokens import Door, Failures, read_tokens
from limner.serve.http.usage import Usage
from limner.serve.options import ServeOptions

OURS: Mapping[str, Any] = {
    path: {"get": {"operationId": name, "summary": help}}
    for path, name, help in (
        ("/health", "health", "Whether the server lives."),
        ("/ready", "ready", "Whether it takes work."),
        ("/metrics", "metrics", "Its counts, as Prometheus reads them."),
        ("/v1/usage", "usage", "Images, network evaluations and seconds of the caller."),
    )
}


def state_folder(options: ServeOptions, port: int) -> Path:
    """Of jobs: without --state one for each port, so that two servers do not meet."""
    return Path(options.state).expanduser() if options.state else cache_folder() / "serve" / str(port)


class Front:
    """All that one server holds beside its engine. Raises LimnerError for its tokens and its state's folder."""

    def __init__(self, engine: Engine, options: ServeOptions, port: int = 0):
        self.engine, self.options = engine, options
        self.tokens = read_tokens(options.token_file) if options.token_file else {}
        self.failures, self.meters = Failures(), Meters()
        self.links = Links()
        self.admission = Admission(engine, options.max_queue, options.max_client, self.meters)
        defaults = Defaults(
            self.links.keep, options.resize, options.metadata == "on", options.request_seconds
        )
        self.routes = Routes(engine, self.admission.submit, caller_of, defaults, {**OURS, **PATHS})
        self.store = Store(state_folder(options, port or options.port))
        self.usage = Usage(self.meters, self.store)
        self.jobs = Jobs(self.store, engine, self.admission, defaults, options.keep_seconds)
        self.job_routes = JobRoutes(self.jobs, defaults.limits)

    def app(self, port: int) -> ASGIApp:
        """The app as it listens at a port."""
        inner = Starlette(
            routes=[
                Mounted("/health", self.health, methods=["GET"]),
                Mounted("/ready", self.ready, methods=["GET"]),
                Mounted("/metrics", self.metrics, methods=["GET"]),
                Mounted("/v1/usage", self.used, methods=["GET"]),
                Mounted(f"{PATH}/{{name}}", self.links.get, methods=["GET"]),
                *self.job_routes.mounted(),
                *self.routes.mounted(),
            ],
            exception_handlers={
                ApiError: _told,
                HTTPException: _told,
                ClientDisconnect: _left,
                Exception: _told,
            },
        )
        inner.router.redirect_slashes = False
        origins = own_origins(self.options.host, port, self.options.host_name)
        self.gate = Gate(inner, self.admission)
        door = Door(self.gate, self.tokens, self.failures)
        return Guard(door, origins, self.meters.answered)

    async def start(self) -> None:
        """Go on with what an earlier server kept."""
        await self.usage.start()
        await self.jobs.start()

    async def drain(self) -> None:
        """Take nothing more, and take back the jobs that have not begun."""
        self.admission.draining = True
        await self.jobs.drain()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self.admission.flights and not self.jobs.runs

    async def close(self) -> None:
        """Stop what is under way; jobs stay in the store."""
        self.admission.draining = True
        await self.jobs.close()
        await self.admission.aclose()
        await self.usage.close()

    # Routes ---------------------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        admission, headers = self.admission, {"Retry-After": "1"}
        if admission.draining:
            raise ApiError(503, "The server is ending: ask another one.", "shutting_down", headers=headers)
        if not self.engine.ready:
            raise ApiError(503, "The engine is starting: ask again.", "engine_starting", headers=headers)
        if admission.places.full:
            headers = {"Retry-After": str(admission.places.wait())}
            raise ApiError(503, "The queue is full: ask another server.", "queue_full", headers=headers)
        return JSONResponse({"status": "ready", "models": list(self.engine.cards)})

    async def used(self, request: Request) -> Response:
        await self.usage.loaded.wait()  # else the first requests after a start would be told of no use at all
        return JSONResponse(self.usage.of(caller_of(request).name))

    async def metrics(self, request: Request) -> Response:
        page, places = Page(), self.admission.places
        page.add("limner_ready", "gauge", "1: it takes work.", [
            ({}, int(self.engine.ready and not self.admission.draining and not places.full))
        ])  # fmt: skip
        page.add("limner_queue_images", "gauge", "Images that wait.", [
            ({"model": model}, places.by_model[model]) for model in self.engine.cards
        ])  # fmt: skip
        page.add("limner_jobs", "gauge", "Jobs that are kept.", [
            ({"status": status}, count) for status, count in (await self.store.counts()).items()
        ])  # fmt: skip
        front_page(page, self.meters)
        engine_page(page, getattr(self.engine, "reports", {}), getattr(self.engine, "restarts", 0))
        return Response(page.text(), media_type=CONTENT_TYPE)


async def _told(request: Request, error: Exception) -> Response:
    """The answer that an error is."""
    if isinstance(error, HTTPException):
        error = plain_error(error.status_code, (error.headers or {}).get("Allow"))
    known = error if isinstance(error, ApiError) else broken()
    return JSONResponse(known.body(), known.status, known.headers)


async def _left(request: Request, error: Exception) -> Response:
    """Nobody reads it."""
    return Response(status_code=499)
