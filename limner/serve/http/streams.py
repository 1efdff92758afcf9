"""Answers while they are made: events for a reader who may be slow, and what becomes of one who has gone."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from limner.serve.http.answers import failure
from limner.serve.http.asked import Answers, Asked
from limner.serve.http.errors import ApiError
from limner.serve.messages import Event

KEPT = 8  # events for a slow reader; then old partial images go
PING = 10.0  # seconds of silence
READ = 30.0  # seconds without reading that end a stream
FIRST = 2.0  # seconds that a failure may take to become the status of the answer, rather than an event

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no",
}  # fmt: skip


def frame(name: str, said: Mapping[str, Any], number: int | None = None) -> bytes:
    """A server-sent event; ``number`` is its id."""
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {name}\ndata: {json.dumps(said)}\n\n".encode()


def error_event(error: ApiError) -> tuple[str, dict[str, Any]]:
    """The event of a failure, which the client raises."""
    return "error", {"type": "error", **error.body()}


def ending(event: Event, asked: Asked) -> ApiError | None:
    """The error of a work that ended without what was asked; None where it was not cancelled."""
    if not event.cancelled:
        return None
    if asked.work.seconds:
        message = (
            f"The request was cancelled, or took more than {asked.work.seconds:g} seconds: ask for less."
        )
        return ApiError(504, message, "cancelled", headers={"x-should-retry": "false"})
    return ApiError(503, "The request was cancelled: ask again.", "cancelled", headers={"Retry-After": "1"})


async def gone(receive: Receive) -> None:
    """Returns when the client has gone; its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def collect(asked: Asked, answers: Answers, receive: Receive | None = None) -> list[Event]:
    """All events of a work but partial images. Raises ApiError, or ClientDisconnect; then the work is cancelled."""

    async def read() -> list[Event]:
        events = []
        async for event in answers:
            if event.kind == "failed":
                raise failure(event)
            if event.kind == "ended" and (error := ending(event, asked)):
                raise error
            if event.kind != "partial":
                events.append(event)
        return events

    reading = asyncio.ensure_future(read())
    leaving = asyncio.ensure_future(gone(receive)) if receive else None
    try:
        await asyncio.wait({task for task in (reading, leaving) if task}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise ClientDisconnect
        return reading.result()
    finally:
        await _stop(reading, leaving)
        await answers.aclose()


async def _stop(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancel tasks and wait for their ends."""
    left = [task for task in tasks if task is not None]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def _happens(what: asyncio.Event, seconds: float) -> bool:
    """Whether it happens within that time."""
    try:
        # Not wait_for, which in Python 3.11 may lose a cancel that comes as it ends.
        async with asyncio.timeout(seconds):
            await what.wait()
    except TimeoutError:
        return False
    return True


async def _in_time(sent: Awaitable[None]) -> None:
    """Raises TimeoutError where the client has read nothing for 30 seconds."""
    async with asyncio.timeout(READ):
        await sent


class Outbox:
    """Events that wait for their reader."""

    def __init__(self, asked: Asked, answers: Answers):
        self.asked, self.answers = asked, answers
        self.waiting: deque[tuple[str, bytes]] = deque()
        self.error: ApiError | None = None
        self.begun = self.over = False
        self.changed, self.settled = asyncio.Event(), asyncio.Event()
        self.task = asyncio.ensure_future(self._feed())

    async def _feed(self) -> None:
        left = set(range(len(self.asked.work.seeds)))
        try:
            async for event in self.answers:
                if event.kind == "failed":
                    raise failure(event)
                if event.kind == "image":
                    left.discard(event.index)
                if event.kind == "ended" and left:
                    raise ending(event, self.asked) or ApiError(
                        500, "The engine did not answer in full: try again."
                    )
                if self.asked.streamed and (said := self.asked.streamed(event)):
                    self._put(*said)
                if event.kind != "accepted":
                    self.begun = True
                    self.settled.set()
                self.changed.set()
        except ApiError as error:
            self.error = error
            self._put(*error_event(error))
        finally:
            self.over = True
            self.changed.set()
            self.settled.set()

    def _put(self, name: str, said: Mapping[str, Any]) -> None:
        if len(self.waiting) >= KEPT:
            old = next((item for item in self.waiting if item[0].endswith("partial_image")), None)
            if old is not None:
                self.waiting.remove(old)
        self.waiting.append((name, frame(name, said)))

    async def first(self, receive: Receive) -> None:
        """Wait a moment for the work to begin. Raises ApiError where it fails before that, or ClientDisconnect."""
        leaving = asyncio.ensure_future(gone(receive))
        settling = asyncio.ensure_future(_happens(self.settled, FIRST))
        try:
            await asyncio.wait({leaving, settling}, return_when=asyncio.FIRST_COMPLETED)
            if not settling.done():
                raise ClientDisconnect
        finally:
            await _stop(leaving, settling)
        if self.error is not None and not self.begun:
            raise self.error

    async def take(self) -> bytes | None:
        """What to send next: an event, or a ping after silence; None: that was all."""
        while not self.waiting and not self.over:
            self.changed.clear()
            if not await _happens(self.changed, PING):
                return b": ping\n\n"
        return self.waiting.popleft()[1] if self.waiting else None

    async def close(self) -> None:
        """Nobody reads any more: the work is cancelled unless it has ended."""
        await _stop(self.task)
        await self.answers.aclose()


class EventStream(Response):
    """Sends what an outbox holds, until it is over, the client has gone, or has read nothing for 30 seconds.

    Then ``scope["extensions"]["limner.abort"]``, where the server gives one, is called: a connection whose other end
    reads nothing cannot be closed in order.
    """

    def __init__(self, outbox: Outbox):
        super().__init__(status_code=200, headers=HEADERS | dict(outbox.asked.headers))
        del self.headers["content-length"]
        self.outbox = outbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.ensure_future(gone(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({leaving, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except TimeoutError:
            if abort := (scope.get("extensions") or {}).get("limner.abort"):
                abort()
        finally:
            await _stop(leaving, sending)
            await self.outbox.close()

    async def _send(self, send: Send) -> None:
        start: Message = {
            "type": "http.response.start", "status": self.status_code, "headers": self.raw_headers,
        }  # fmt: skip
        await _in_time(send(start))
        while (data := await self.outbox.take()) is not None:
            await _in_time(send({"type": "http.response.body", "body": data, "more_body": True}))
        await _in_time(send({"type": "http.response.body", "body": b"", "more_body": False}))
