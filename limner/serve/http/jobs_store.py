"""Jobs on the disk: SQLite, which one thread reads and writes, and a folder of images for each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from limner import files
from limner.serve.http.errors import ApiError
from limner.serve.http.jobs_database import claim, open_database
from limner.settings import LimnerError

T = TypeVar("T")
FINAL = "completed", "failed", "cancelled"
ID = re.compile(r"job-[0-9a-f]{8}-[0-9a-f]{32}")


class Used(NamedTuple):
    """What a client has used of a model."""

    model: str
    client: str  # the name of its token; empty: the server has none
    images: int
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """A row. Times are seconds since 1970; ``result`` and ``error`` are JSON."""

    id: str
    owner: str  # the name of its token; empty: the server has none
    client: str  # whose turn it takes
    key: str | None  # of idempotency
    digest: str  # of what it says
    route: str
    model: str
    images: int  # or pictures
    format: str
    status: str
    created: float
    started: float | None = None
    finished: float | None = None
    result: str | None = None
    error: str | None = None

    def check(self, digest: str) -> None:
        """Raises ApiError 422 unless another request with this job's key says the same."""
        if self.digest != digest:
            message = "This Idempotency-Key was used for another body: choose a new key."
            raise ApiError(422, message, "idempotency_key_reused")


def disk_error(error: Exception) -> ApiError:
    """The answer where something cannot be kept."""
    words = str(error)
    full = "full" in words or "No space" in words or "quota" in words
    if full:
        message = "The server's disk is full: ask who runs it to free space, and send this again."
        return ApiError(507, message, "disk_full", headers={"Retry-After": "60"})
    message = "The server cannot keep jobs now: try again, or ask who runs it."
    return ApiError(503, message, "disk_failed", headers={"Retry-After": "10"})


class Store:
    """The state's folder. Its methods are coroutines; whatever they write is on the disk when they return.

    Raises LimnerError for a folder that another server uses, or that is not one of jobs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = claim(folder)
        try:
            files.clear_unfinished(folder / "jobs", own=True)
            self._database = open_database(folder)
            self.replica = self._replica()
        except BaseException:
            os.close(self._lock)
            raise
        self._thread = ThreadPoolExecutor(1, "jobs")

    def _replica(self) -> str:
        with self._database:
            self._database.execute(
                "INSERT OR IGNORE INTO about VALUES ('replica', ?)", (secrets.token_hex(4),)
            )
        found = self._database.execute("SELECT value FROM about WHERE name = 'replica'").fetchone()
        return str(found[0])

    def close(self) -> None:
        self._thread.shutdown()
        self._database.close()
        os.close(self._lock)

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One transaction. Raises ApiError 507 or 503 where the disk is full or fails; then nothing has changed."""

        def transact() -> T:
            with self._database:
                return work(self._database)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, transact)
        except (sqlite3.Error, LimnerError, OSError) as error:
            raise disk_error(error) from None

    def new_id(self) -> str:
        """It names its replica, so that a balancer can find it again."""
        return f"job-{self.replica}-{secrets.token_hex(16)}"

    # Jobs -----------------------------------------------------------------------------------------------------

    async def accept(self, job: Job, request: bytes) -> tuple[Job, bool]:
        """Keep a job, or find the one that has its key; whether it is new. Raises ApiError 422 for another body."""

        def work(database: sqlite3.Connection) -> tuple[Job, bool]:
            same = _one(database, "owner = ? AND key = ?", (job.owner, job.key)) if job.key else None
            if same is None:
                values = tuple(vars(job).values())
                database.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * len(values))})", values)
                database.execute("INSERT INTO requests VALUES (?, ?)", (job.id, request))
                _event(database, job.id, "job.queued", {})
                return job, True
            same.check(job.digest)
            return same, False

        return await self._do(work)

    async def find(self, id: str, owner: str | None = None) -> Job | None:
        """``owner``: only if it is theirs."""
        if not ID.fullmatch(id):
            return None
        job = await self._do(lambda database: _one(database, "id = ?", (id,)))
        return job if job is None or owner is None or job.owner == owner else None

    async def with_key(self, owner: str, key: str) -> Job | None:
        return await self._do(lambda database: _one(database, "owner = ? AND key = ?", (owner, key)))

    async def unfinished(self) -> list[Job]:
        """In the order in which they came."""
        query = "SELECT * FROM jobs WHERE status IN ('queued', 'in_progress') ORDER BY created, rowid"
        return await self._do(lambda database: [Job(*row) for row in database.execute(query)])

    async def counts(self) -> dict[str, int]:
        query = "SELECT status, count(*) FROM jobs GROUP BY status"
        return await self._do(lambda database: dict(database.execute(query).fetchall()))

    async def request(self, id: str) -> bytes:
        query = "SELECT data FROM requests WHERE job = ?"
        found = await self._do(lambda database: database.execute(query, (id,)).fetchone())
        return bytes(found[0]) if found else b""

    async def begin(self, id: str) -> None:
        def work(database: sqlite3.Connection) -> None:
            query = "UPDATE jobs SET status = 'in_progress', started = ? WHERE id = ? AND status = 'queued'"
            if database.execute(query, (time.time(), id)).rowcount:
                _event(database, id, "job.in_progress", {})

        await self._do(work)

    async def finish(
        self, id: str, status: str, result: dict[str, Any] | None = None, error: dict[str, Any] | None = None
    ) -> None:
        """Its end, unless it has ended before."""

        def work(database: sqlite3.Connection) -> None:
            query = (
                "UPDATE jobs SET status = ?, finished = ?, result = ?, error = ? "
                "WHERE id = ? AND status IN ('queued', 'in_progress')"
            )
            said = [None if value is None else json.dumps(value) for value in (result, error)]
            if database.execute(query, (status, time.time(), *said, id)).rowcount:
                _event(database, id, f"job.{status}", {"error": error} if error else {})

        await self._do(work)

    async def events(self, id: str, after: int) -> list[tuple[int, str, dict[str, Any]]]:
        query = "SELECT number, name, data FROM events WHERE job = ? AND number > ? ORDER BY number"
        rows = await self._do(lambda database: database.execute(query, (id, after)).fetchall())
        return [(number, name, json.loads(data)) for number, name, data in rows]

    # Images ---------------------------------------------------------------------------------------------------

    def path(self, job: Job, place: int) -> Path:
        return self.folder / "jobs" / job.id / f"{place}.{job.format}"

    async def add_image(self, job: Job, place: int, data: bytes, about: dict[str, Any]) -> None:
        """The file first, whole, then its row: an image that has a row is there."""

        def work(database: sqlite3.Connection) -> None:
            files.write_bytes(self.path(job, place), data)
            query = "INSERT OR IGNORE INTO images VALUES (?, ?, ?)"
            if database.execute(query, (job.id, place, json.dumps(about))).rowcount:
                said = {"index": place, "url": f"/v1/jobs/{job.id}/images/{place}", "seed": about.get("seed")}
                _event(database, job.id, "job.image", said)

        await self._do(work)

    async def images(self, id: str) -> dict[int, dict[str, Any]]:
        """What is known of each image that is there, by its place."""
        query = "SELECT place, about FROM images WHERE job = ? ORDER BY place"
        rows = await self._do(lambda database: database.execute(query, (id,)).fetchall())
        return {place: json.loads(about) for place, about in rows}

    async def read_image(self, job: Job, place: int) -> bytes:
        """Raises ApiError 503 if it cannot be read."""
        return await self._do(lambda _: self.path(job, place).read_bytes())

    # Usage ----------------------------------------------------------------------------------------------------

    async def used(self) -> tuple[int, list[Used]]:
        """Since when it is counted, in seconds since 1970, and what has been used since then."""

        def work(database: sqlite3.Connection) -> tuple[int, list[Used]]:
            (since,) = database.execute("SELECT value FROM about WHERE name = 'used since'").fetchone()
            return int(since), [Used(*row) for row in database.execute("SELECT * FROM used")]

        return await self._do(work)

    async def add_used(self, more: Sequence[Used]) -> None:
        query = (
            "INSERT INTO used VALUES (?, ?, ?, ?, ?) ON CONFLICT(model, client) DO UPDATE SET "
            "images = images + excluded.images, evaluations = evaluations + excluded.evaluations, "
            "seconds = seconds + excluded.seconds"
        )
        await self._do(lambda database: database.executemany(query, more))

    # Removal --------------------------------------------------------------------------------------------------

    async def remove_old(self, before: float) -> int:
        """Remove jobs that ended before a time, with all that they hold; how many."""

        def work(database: sqlite3.Connection) -> list[str]:
            query = "DELETE FROM jobs WHERE finished < ? RETURNING id"
            return [id for (id,) in database.execute(query, (before,)).fetchall()]

        removed = await self._do(work)
        if removed:
            await self._do(self._remove_folders)
            with contextlib.suppress(sqlite3.Error):
                await asyncio.get_running_loop().run_in_executor(self._thread, self._empty_log)
        return len(removed)

    def _empty_log(self) -> None:
        """What was deleted stands in the log of writing until then. No transaction can end before this is read."""
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    async def remove_orphans(self) -> None:
        """Folders of jobs that are not known, as after a kill between two steps."""
        await self._do(self._remove_folders)

    def _remove_folders(self, database: sqlite3.Connection) -> None:
        folder = self.folder / "jobs"
        known = {id for (id,) in database.execute("SELECT id FROM jobs")}
        for entry in os.scandir(folder) if folder.is_dir() else ():
            if ID.fullmatch(entry.name) and entry.name not in known:
                files.remove_folder(Path(entry.path))


def _one(database: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> Job | None:
    row = database.execute(f"SELECT * FROM jobs WHERE {where}", values).fetchone()
    return Job(*row) if row else None


def _event(database: sqlite3.Connection, job: str, name: str, said: dict[str, Any]) -> None:
    query = "INSERT INTO events SELECT ?, coalesce(max(number), 0) + 1, ?, ? FROM events WHERE job = ?"
    database.execute(query, (job, name, json.dumps(said), job))
