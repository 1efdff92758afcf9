"""One job, drawn from where it is to its end."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from limner.serve.http.answers import failure
from limner.serve.http.asked import Asked, Caller, Engine
from limner.serve.http.errors import ApiError
from limner.serve.http.jobs_request import JobRequest
from limner.serve.http.jobs_store import Job, Store
from limner.serve.http.places import Place
from limner.serve.http.reading import Defaults
from limner.serve.http.requests import parse
from limner.serve.http.streams import KEPT
from limner.serve.messages import Event, Work

T = TypeVar("T")
LOSSES = 4  # times that the engine may die on a job, one after another without an image in between
GONE = "engine_died", "engine_starting", "engine_busy", "shutting_down"  # codes of what is worth another try
WAIT = 0.05, 5.0  # seconds between two tries, at first and at most


@dataclass
class Run:
    """A job that waits or is being drawn. ``notify`` wakes those that follow it."""

    job: Job
    place: Place
    store: Store
    engine: Engine
    defaults: Defaults
    notify: Callable[[str], None]
    task: asyncio.Task[None] | None = None
    # images under way, numbered; they are not kept, and a slow follower misses the older ones
    partials: deque[tuple[int, str, dict[str, Any]]] = field(default_factory=lambda: deque(maxlen=KEPT))
    told: int = 0

    def __post_init__(self) -> None:
        self.begun = self.job.status == "in_progress"
        self.answers: dict[int, Event] = {}  # what the engine said of each picture, where that is no image

    async def draw(self) -> None:
        """To its end, which the store then knows."""
        job = self.job
        packed = await self._persist(lambda: self.store.request(job.id))
        while not self.engine.ready:
            await asyncio.sleep(WAIT[0])
        try:
            asked = self._read(packed)
            await self._draw_all(asked)
            result = await self._result(asked)
        except Exception as error:
            known = error
            if not isinstance(known, ApiError):
                print(f"limner: {job.id} ended by {type(error).__name__}", file=sys.stderr, flush=True)
                known = ApiError(500, "The server made a mistake: try again, or ask who runs it.")
            said = known.body()["error"]
            await self._persist(lambda: self.store.finish(job.id, "failed", error=said))
        else:
            await self._persist(lambda: self.store.finish(job.id, "completed", result))

    def _read(self, packed: bytes) -> Asked:
        """What was asked, by the models that are served now. Raises ApiError."""
        request = JobRequest.unpack(packed)
        caller, defaults = Caller(self.job.owner), request.defaults(self.defaults)
        asked = parse(request.route, request.body, request.form, self.engine, caller, defaults)
        return replace(asked, work=replace(asked.work, client=self.job.client))

    async def _draw_all(self, asked: Asked) -> None:
        """Ask the engine, more than once if it dies. Raises ApiError."""
        losses, wait = 0, WAIT[0]
        while True:
            have = await self._images()
            work, places = rest(asked.work, have, self.engine.number())
            if not places:
                return
            try:
                if await self._ask(replace(asked, work=work), places):
                    return
            except ApiError as error:
                if error.code not in GONE:
                    raise
                more = len(await self._images()) > len(have)
                losses = 0 if more else losses + (error.code == "engine_died")
                if losses >= LOSSES:
                    raise
            await asyncio.sleep(wait)
            wait = min(2 * wait, WAIT[1])

    async def _ask(self, asked: Asked, places: list[int]) -> bool:
        """Ask the engine once; whether it answered in full. ``places`` are those in the whole. Raises ApiError."""
        events = self.engine.submit(asked.work)
        try:
            async for event in events:
                if event.kind == "ended":
                    return not event.cancelled
                if event.index >= 0:
                    event = replace(event, index=places[event.index])
                self.place.saw(event)
                if event.kind == "failed":
                    raise failure(event)
                await self._take(asked, event)
        finally:
            await events.aclose()
        return False

    async def _take(self, asked: Asked, event: Event) -> None:
        """Keep what the engine says."""
        if event.kind == "begun" and not self.begun:
            self.begun = True
            await self._persist(lambda: self.store.begin(self.job.id))
        elif event.kind == "answer":
            self.answers[event.index] = event
        elif event.kind == "image":
            about = {
                "seed": event.seed, "fingerprint": event.fingerprint, "evaluations": event.evaluations,
                "seconds": event.seconds,
            }  # fmt: skip
            await self._persist(lambda: self.store.add_image(self.job, event.index, event.data, about))
        elif event.kind == "partial" and asked.streamed and (said := asked.streamed(event)):
            self.told += 1
            self.partials.append((self.told, *said))
        else:
            return
        self.notify(self.job.id)

    async def _images(self) -> dict[int, dict[str, Any]]:
        return await self._persist(lambda: self.store.images(self.job.id))

    async def _result(self, asked: Asked) -> dict[str, Any]:
        """The body that the request's own route would have answered, without the images, which are files."""
        job, events = self.job, list(self.answers.values())
        for place, about in (await self._images()).items():
            data = await self.store.read_image(job, place)
            events.append(Event(asked.work.id, "image", place, data=data, **about))
        result = asked.answer(events)
        for place, entry in enumerate(result.get("data", [])):
            if "b64_json" in entry:
                entry["b64_json"] = None
            if "url" in entry:
                entry["url"] = f"/v1/jobs/{job.id}/images/{place}"
        return result

    async def _persist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Try until the disk takes it: what has been drawn is not lost for a disk that is full."""
        wait = WAIT[0]
        while True:
            try:
                return await work()
            except ApiError:
                await asyncio.sleep(wait)
                wait = min(2 * wait, WAIT[1])


def rest(work: Work, have: Mapping[int, Any], number: int) -> tuple[Work, list[int]]:
    """The work of what is not there yet, and the place of each of its pictures in the whole."""
    if work.kind == "draw" and work.between is None:
        places = [place for place in range(len(work.seeds)) if place not in have]
        return replace(work, id=number, seeds=tuple(work.seeds[place] for place in places)), places
    count = len(work.seeds) if work.kind == "draw" else len(work.pictures)
    # The way from one seed to another depends on how many images lie on it.
    complete = len(have) == count and work.kind in ("draw", "apply")
    return replace(work, id=number), [] if complete else list(range(count))
