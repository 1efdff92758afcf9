"""Jobs: work that outlives its request, its client and the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from limner.serve.http.admission import Admission
from limner.serve.http.answers import failure
from limner.serve.http.asked import Asked, Caller, Engine
from limner.serve.http.errors import ApiError
from limner.serve.http.jobs_request import JobRequest
from limner.serve.http.jobs_store import FINAL, Job, Store
from limner.serve.http.places import Place, price
from limner.serve.http.reading import Defaults
from limner.serve.http.requests import parse
from limner.serve.http.streams import KEPT, PING, frame
from limner.serve.messages import Event, Work

T = TypeVar("T")
LOSSES = 4  # times that the engine may die on a job, one after another without an image in between
GONE = "engine_died", "engine_starting", "engine_busy", "shutting_down"  # codes of what is worth another try
WAIT = 0.05, 5.0  # seconds between two tries, at first and at most


@dataclass
class Run:
    """A job that waits or is being drawn by this server."""

    job: Job
    place: Place
    task: asyncio.Task[None] | None = None
    begun: bool = False
    # images under way, numbered; they are not kept, and a slow follower misses the older ones
    partials: deque[tuple[int, str, dict[str, Any]]] = field(default_factory=lambda: deque(maxlen=KEPT))
    told: int = 0


class Jobs:
    """All jobs of a store, drawn by an engine. ``keep`` is how many seconds they are kept after their end."""

    def __init__(self, store: Store, engine: Engine, admission: Admission, defaults: Defaults, keep: float):
        self.store, self.engine, self.admission, self.keep = store, engine, admission, keep
        # A job has no deadline, and its images have paths of their own.
        self.defaults = replace(defaults, seconds=0.0, keep=lambda data, format: "")
        self.runs: dict[str, Run] = {}
        self.changed: dict[str, asyncio.Event] = {}
        self.closing = False
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on with what an earlier server left."""
        await self.store.remove_orphans()
        for job in await self.store.unfinished():
            work = Work(0, job.model, job.client, "apply", pictures=(b"",) * job.images)
            self._run(job, self.admission.places.enter(work, job.owner, 1.0, force=True))
        self._sweeping = asyncio.create_task(self._sweep(), name="old jobs")

    async def create(
        self, request: JobRequest, caller: Caller, key: str | None, digest: str
    ) -> tuple[Job, bool]:
        """A job that is on the disk when this returns, and whether it is new. Raises ApiError."""
        if key and (same := await self.store.with_key(caller.name, key)):
            same.check(digest)
            return same, False
        self.admission.check_open()
        asked = parse(request.route, request.body, request.form, self.engine, caller, self.defaults)
        work = asked.work
        place = self.admission.places.enter(work, caller.name, price(work, asked.card))
        number = len(work.seeds) if work.kind == "draw" else len(work.pictures)
        job = Job(
            self.store.new_id(), caller.name, work.client, key, digest, request.route, asked.card.id, number,
            work.form.format, "queued", time.time(),
        )  # fmt: skip
        try:
            kept, new = await asyncio.shield(self.store.accept(job, request.settled(asked).pack()))
        except BaseException:
            place.leave()
            raise
        if new and not self.closing:
            self._run(job, place)
        else:
            place.leave()
        return kept, new

    async def cancel(self, job: Job) -> None:
        """Nothing happens to one that has ended."""
        run = self.runs.get(job.id)
        if run and run.task:
            run.place.leave(cancelled=True)
            run.task.cancel()
            await asyncio.wait({run.task})
        await self.store.finish(job.id, "cancelled")
        self._notify(job.id)

    async def drain(self) -> None:
        """Take back what has not begun: it stays queued in the store. The rest goes on."""
        waiting = [run.task for run in self.runs.values() if run.task and not run.begun]
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)

    async def close(self) -> None:
        """Stop all; what was drawn so far is kept, and the rest is drawn by the next server."""
        self.closing = True
        tasks = [task for task in (*(run.task for run in self.runs.values()), self._sweeping) if task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for id in list(self.changed):
            self._notify(id)

    # Drawing --------------------------------------------------------------------------------------------------

    def _run(self, job: Job, place: Place) -> None:
        run = self.runs[job.id] = Run(job, place, begun=job.status == "in_progress")

        def ended(task: asyncio.Task[None]) -> None:
            place.leave()
            self.runs.pop(job.id, None)
            self._notify(job.id)
            if not task.cancelled() and task.exception():
                print(
                    f"limner: {job.id} ended by {type(task.exception()).__name__}",
                    file=sys.stderr,
                    flush=True,
                )

        run.task = asyncio.create_task(self._draw(run), name=job.id)
        run.task.add_done_callback(ended)

    async def _draw(self, run: Run) -> None:
        """From where it is to its end."""
        job = run.job
        packed = await self._persist(lambda: self.store.request(job.id))
        wait = WAIT[0]
        while not self.engine.ready:
            await asyncio.sleep(wait)
        try:
            try:
                request = JobRequest.unpack(packed)
                caller = Caller(job.owner)
                asked = parse(request.route, request.body, request.form, self.engine, caller, self.defaults)
                asked = replace(asked, work=replace(asked.work, client=job.client))
                result = await self._result(run, asked, await self._images(run, asked))
            except ApiError:
                raise
            except Exception as error:
                print(f"limner: {job.id} ended by {type(error).__name__}", file=sys.stderr, flush=True)
                raise ApiError(500, "The server made a mistake: try again, or ask who runs it.") from None
        except ApiError as error:
            said = error.body()["error"]
            await self._persist(lambda: self.store.finish(job.id, "failed", error=said))
        else:
            await self._persist(lambda: self.store.finish(job.id, "completed", result))

    async def _images(self, run: Run, asked: Asked) -> dict[int, Event]:
        """What the engine said of each picture. Raises ApiError."""
        answers: dict[int, Event] = {}
        losses, wait = 0, WAIT[0]
        while True:
            have = await self._persist(lambda: self.store.images(run.job.id))
            work, places = _rest(asked.work, have, self.engine.number())
            if not places:
                return answers
            try:
                if await self._once(run, replace(asked, work=work), places, answers):
                    return answers
            except ApiError as error:
                if error.code not in GONE:
                    raise
                more = len(await self._persist(lambda: self.store.images(run.job.id))) > len(have)
                losses = 0 if more else losses + (error.code == "engine_died")
                if losses >= LOSSES:
                    raise
            await asyncio.sleep(wait)
            wait = min(2 * wait, WAIT[1])

    async def _once(self, run: Run, asked: Asked, places: list[int], answers: dict[int, Event]) -> bool:
        """Ask the engine once; whether it answered in full. Raises ApiError."""
        events = self.engine.submit(asked.work)
        try:
            async for event in events:
                if event.kind != "ended":
                    index = places[event.index] if event.index >= 0 else -1
                    run.place.saw(replace(event, index=index))
                if event.kind == "failed":
                    raise failure(event)
                if event.kind == "ended":
                    return not event.cancelled
                await self._take(run, asked, event, places, answers)
        finally:
            await events.aclose()
        return False

    async def _take(
        self, run: Run, asked: Asked, event: Event, places: list[int], answers: dict[int, Event]
    ) -> None:
        if event.kind == "begun" and not run.begun:
            run.begun = True
            await self._persist(lambda: self.store.begin(run.job.id))
        elif event.kind == "answer":
            answers[places[event.index]] = replace(event, index=places[event.index])
        elif event.kind == "image":
            about = {
                "seed": event.seed, "fingerprint": event.fingerprint, "evaluations": event.evaluations,
                "seconds": event.seconds,
            }  # fmt: skip
            place = places[event.index]
            await self._persist(lambda: self.store.add_image(run.job, place, event.data, about))
        elif event.kind == "partial" and asked.streamed:
            said = asked.streamed(replace(event, index=places[event.index]))
            if said:
                run.told += 1
                run.partials.append((run.told, *said))
        else:
            return
        self._notify(run.job.id)

    async def _result(self, run: Run, asked: Asked, answers: dict[int, Event]) -> dict[str, Any]:
        """The body that the request's own route would have answered, without the images, which are files."""
        job, events = run.job, list(answers.values())
        for place, about in (await self._persist(lambda: self.store.images(job.id))).items():
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

    # Telling --------------------------------------------------------------------------------------------------

    def _notify(self, id: str) -> None:
        """Wake those that follow a job."""
        if changed := self.changed.pop(id, None):
            changed.set()

    async def follow(self, job: Job, after: int) -> AsyncIterator[bytes]:
        """Server-sent events from the one with the number ``after`` on, until the job ends."""
        partial = 0
        while True:
            changed = self.changed.setdefault(job.id, asyncio.Event())
            run = self.runs.get(job.id)
            for number, name, said in await self.store.events(job.id, after):
                yield frame(name, {"type": name, "job": job.id, **said}, number)
                after = number
                if name.removeprefix("job.") in FINAL:
                    return
            for number, name, said in list(run.partials) if run else ():
                if number > partial:
                    yield frame(name, {**said, "job": job.id})
                    partial = number
            if self.closing or (run is None and await self._is_over(job, after)):
                return
            try:
                await asyncio.wait_for(changed.wait(), PING)
            except TimeoutError:
                yield b": ping\n\n"

    async def _is_over(self, job: Job, after: int) -> bool:
        """Whether no further event will come, as of one that ended, or was removed."""
        found = await self.store.find(job.id)
        if found is None:
            return True
        return found.status in FINAL and not await self.store.events(job.id, after)

    async def _sweep(self) -> None:
        """Remove old jobs, for ever."""
        while True:
            with contextlib.suppress(ApiError):
                await self.store.remove_old(time.time() - self.keep)
            await asyncio.sleep(min(60.0, max(0.2, self.keep / 10)))


def _rest(work: Work, have: Mapping[int, Any], number: int) -> tuple[Work, list[int]]:
    """The work of what is not there yet, and the place of each of its pictures in the whole."""
    if work.kind == "draw" and work.between is None:
        places = [place for place in range(len(work.seeds)) if place not in have]
        return replace(work, id=number, seeds=tuple(work.seeds[place] for place in places)), places
    count = len(work.seeds) if work.kind == "draw" else len(work.pictures)
    # The way from one seed to another depends on how many images lie on it.
    complete = len(have) == count and work.kind in ("draw", "apply")
    return replace(work, id=number), [] if complete else list(range(count))


def described(job: Job, done: int, keep: float) -> dict[str, Any]:
    """The job's object, without what its result holds of images."""
    return {
        "id": job.id,
        "object": "job",
        "type": job.route,
        "model": job.model,
        "status": job.status,
        "created_at": int(job.created),
        "started_at": None if job.started is None else int(job.started),
        "finished_at": None if job.finished is None else int(job.finished),
        "expires_at": None if job.finished is None else int(job.finished + keep),
        "images": job.images,
        "images_done": done,
        "result": None if job.result is None else json.loads(job.result),
        "error": None if job.error is None else json.loads(job.error),
    }
