"""Jobs: work that outlives its request, its client and the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from limner.serve.http.admission import Admission
from limner.serve.http.asked import Caller, Engine
from limner.serve.http.errors import ApiError
from limner.serve.http.jobs_request import JobRequest
from limner.serve.http.jobs_run import Run
from limner.serve.http.jobs_store import FINAL, Job, Store
from limner.serve.http.places import Place, price
from limner.serve.http.reading import Defaults
from limner.serve.http.requests import parse
from limner.serve.http.streams import PING, frame
from limner.serve.messages import Work


class Jobs:
    """All jobs of a store, drawn by an engine. ``keep`` is how many seconds they are kept after their end."""

    def __init__(self, store: Store, engine: Engine, admission: Admission, defaults: Defaults, keep: float):
        self.store, self.engine, self.admission, self.keep = store, engine, admission, keep
        # A job has no deadline, and its images have paths of their own.
        self.defaults = replace(defaults, seconds=0.0, keep=lambda data, format: "")
        self.runs: dict[str, Run] = {}
        # Told when something happens to a job, as long as somebody waits for that.
        self.changed: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
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
    ) -> tuple[Job, Mapping[str, str] | None]:
        """A job that is on the disk when this returns, and headers of the answer; None: it was there before.

        Raises ApiError.
        """
        if key and (same := await self.store.with_key(caller.name, key)):
            same.check(digest)
            return same, None
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
            kept, new = await asyncio.shield(
                self.store.accept(job, request.settled(asked, self.defaults).pack())
            )
        except BaseException:
            place.leave()
            raise
        if new and not self.closing:
            self._run(job, place)
        else:
            place.leave()
        return kept, asked.headers if new else None

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

    def _run(self, job: Job, place: Place) -> None:
        """Begin to draw, as soon as the engine can."""
        run = Run(job, place, self.store, self.engine, self.defaults, self._notify)
        self.runs[job.id] = run

        def ended(task: asyncio.Task[None]) -> None:
            place.leave()
            self.runs.pop(job.id, None)
            self._notify(job.id)

        run.task = asyncio.create_task(run.draw(), name=job.id)
        run.task.add_done_callback(ended)

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
                async with asyncio.timeout(PING):
                    await changed.wait()
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
