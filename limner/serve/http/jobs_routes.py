"""The routes of jobs."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as Mounted

from limner.serve.http.admission import caller_of
from limner.serve.http.answers import text
from limner.serve.http.bodies import Limits, digest
from limner.serve.http.errors import ApiError
from limner.serve.http.jobs import Jobs, described
from limner.serve.http.jobs_request import JobRequest, route_of
from limner.serve.http.jobs_store import FINAL, Job
from limner.serve.http.routes import read_body
from limner.serve.http.streams import HEADERS
from limner.serve.http.values import bad

KEY = re.compile(r"[\x21-\x7e]{1,255}")
INDEX = re.compile(r"[0-9]{1,4}")
PATHS = {
    "/v1/jobs": {"post": {"operationId": "create_job", "summary": "Keep a request, with its type, and draw it later."}},
    "/v1/jobs/{id}": {
        "get": {"operationId": "get_job", "summary": "What has become of it, and its result."},
        "delete": {"operationId": "cancel_job", "summary": "Draw it no further."},
    },
    "/v1/jobs/{id}/events": {"get": {"operationId": "follow_job", "summary": "Its events, as they come."}},
    "/v1/jobs/{id}/images/{index}": {"get": {"operationId": "get_job_image", "summary": "One of its images."}},
}  # fmt: skip


class JobRoutes:
    def __init__(self, jobs: Jobs, limits: Limits):
        self.jobs, self.limits = jobs, limits

    def mounted(self) -> list[Mounted]:
        return [
            Mounted("/v1/jobs", self.create, methods=["POST"]),
            Mounted("/v1/jobs/{id}", self.one, methods=["GET", "DELETE"]),
            Mounted("/v1/jobs/{id}/events", self.follow, methods=["GET"]),
            Mounted("/v1/jobs/{id}/images/{index}", self.image, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        key = request.headers.get("idempotency-key")
        if key is not None and not KEY.fullmatch(key):
            raise bad("Idempotency-Key must be 1 to 255 visible characters of ASCII.", None)
        body, form = await read_body(request, self.limits, pictures=True)
        said = form.values() if form is not None else body or {}
        route = route_of(said)
        asked = JobRequest(route, body, form)
        said_digest = digest(f"job {route}", body, form)
        job, more = await self.jobs.create(asked, caller_of(request), key, said_digest)
        status = 200 if more is None and job.status in FINAL else 202
        headers = {"Location": f"/v1/jobs/{job.id}", **(more or {})}
        return JSONResponse(await self._object(job), status, headers)

    async def one(self, request: Request) -> Response:
        job = await self._job(request)
        if request.method == "DELETE":
            await self.jobs.cancel(job)
            job = await self._job(request)
        return JSONResponse(await self._object(job))

    async def follow(self, request: Request) -> Response:
        job = await self._job(request)
        last = request.headers.get("last-event-id", "") or "0"
        if not re.fullmatch(r"[0-9]{1,9}", last):
            raise bad("Last-Event-ID must be the id of an event of this job.", None)
        if job.status in FINAL and not await self.jobs.store.events(job.id, int(last)):
            return Response(status_code=204)  # which tells a browser not to ask again
        if request.method == "HEAD":  # else the connection would be busy until the job ends
            return Response(headers=HEADERS)
        return StreamingResponse(self.jobs.follow(job, int(last)), headers=HEADERS)

    async def image(self, request: Request) -> Response:
        job, index = await self._job(request), request.path_params["index"]
        place = int(index) if INDEX.fullmatch(index) else -1
        if place not in await self.jobs.store.images(job.id):
            raise ApiError(404, "There is no such image of this job yet: ask for its state.", "not_found")
        return Response(await self.jobs.store.read_image(job, place), media_type=f"image/{job.format}")

    async def _job(self, request: Request) -> Job:
        """The one that is named, if it is the caller's. Raises ApiError 404."""
        job = await self.jobs.store.find(request.path_params["id"], caller_of(request).name)
        if job is None:
            raise ApiError(
                404, "There is no such job: it may have expired, or be another client's.", "not_found"
            )
        return job

    async def _object(self, job: Job) -> dict[str, Any]:
        """With its images in base64, where it was asked to answer so."""
        images = await self.jobs.store.images(job.id)
        found = described(job, len(images), self.jobs.keep)
        for place, entry in enumerate((found["result"] or {}).get("data", [])):
            if "b64_json" in entry:
                entry["b64_json"] = text(await self.jobs.store.read_image(job, place))
        return found
