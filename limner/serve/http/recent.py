"""Works under way and those that listen to them; a request that is sent again listens to its first.

Clients send a request again after a timeout or an error of the server, without any key, but they count the tries in a
header. So what may come again is found by who asks and what the request says.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from limner.serve.http.asked import Answers, Asked
from limner.serve.http.errors import ApiError
from limner.serve.http.mailbox import Mailbox
from limner.serve.http.places import Place
from limner.serve.messages import Event

SECONDS = 60.0  # for which the answer to a request is kept, after it is whole
BYTES = 2**26  # of all answers that are kept
GRACE = 5.0  # seconds after its own deadline in which the engine must have ended a work

Key = tuple[str, str]  # who asks, and the digest of what is asked


class Flight:
    """A work, told to all of its listeners; it is cancelled when the last of them has left."""

    def __init__(self, asked: Asked, answers: Answers, place: Place):
        self.work, self.seconds, self.place = asked.work.id, asked.work.seconds, place
        self.answers: Answers | None = answers  # until it is over: they know what was asked, pictures too
        self.kept: list[Event] = []  # all but partial images, for those who join
        self.listeners: set[Listener] = set()
        self.over, self.whole, self.ended, self.joins = False, True, 0.0, 0
        self.task = asyncio.ensure_future(self._pump(answers))

    @property
    def size(self) -> int:
        """Bytes, about: a number of an embedding takes 32."""
        return sum(len(event.data) + 32 * len(event.value or ()) for event in self.kept)

    async def _pump(self, answers: Answers) -> None:
        try:
            async with asyncio.timeout(self.seconds + GRACE if self.seconds else None):
                async for event in answers:
                    self._tell(event)
        except TimeoutError:
            self._fail(504, "The request took too long: ask for less.", "timeout")
        except Exception:
            self._fail(500, "The server made a mistake: try again, or ask who runs it.", "server_error")
            await self._close()
            raise
        if not self.over:
            self._fail(503, "The engine ended: try again.", "engine_died")
        await self._close()

    async def _close(self) -> None:
        answers, self.answers = self.answers, None
        if answers:
            await answers.aclose()

    def _fail(self, status: int, message: str, code: str) -> None:
        self._tell(Event(self.work, "failed", status=status, message=message, code=code))
        self._tell(Event(self.work, "ended"))

    def _tell(self, event: Event) -> None:
        self.place.saw(event)
        self.whole = self.whole and event.kind != "failed" and not event.cancelled
        if event.kind == "ended":
            self.over, self.ended = True, time.monotonic()
        if event.kind != "partial":
            self.kept.append(event)
        for listener in self.listeners:
            listener.put(event)

    def listen(self) -> Listener:
        """One who is told everything from the beginning."""
        listener = Listener(self)
        for event in self.kept:
            listener.put(event)
        self.listeners.add(listener)
        return listener

    async def leave(self, listener: Listener) -> None:
        self.listeners.discard(listener)
        if not self.listeners and not self.over:
            await self.cancel()

    async def cancel(self) -> None:
        self.over, self.whole, self.ended = True, False, time.monotonic()
        self.place.leave(cancelled=True)
        await self._stop()

    async def end(self, error: ApiError) -> None:
        """At the end of the server: tell the listeners, and cancel the work."""
        if not self.over:
            self._fail(error.status, error.message, error.code)
            await self._stop()

    async def _stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        await self._close()


class Listener(Mailbox):
    """``Answers`` of a flight."""

    def __init__(self, flight: Flight):
        super().__init__()
        self.flight = flight

    async def aclose(self) -> None:
        self.shut()
        await self.flight.leave(self)


class Recent:
    """Flights that a request sent again may join: under way, or just done."""

    def __init__(self, seconds: float = SECONDS, largest: int = BYTES):
        self.seconds, self.largest = seconds, largest
        self._flights: OrderedDict[int, tuple[Key, Flight]] = OrderedDict()
        self._number = 0

    def add(self, key: Key, flight: Flight) -> None:
        self.forget()
        self._number += 1
        self._flights[self._number] = key, flight

    def find(self, key: Key) -> Flight | None:
        """The one to join: of several alike, the one that has the fewest listeners and was joined least."""
        self.forget()
        alike = [flight for other, flight in self._flights.values() if other == key and flight.whole]
        found = min(alike, key=lambda flight: (len(flight.listeners), flight.joins), default=None)
        if found is not None:
            found.joins += 1
        return found

    def forget(self) -> None:
        """What was cancelled, failed or is too long ago, and the oldest answers where they are too large."""
        now, size = time.monotonic(), 0
        for number, (_, flight) in reversed(list(self._flights.items())):
            if not flight.over:
                continue
            size += flight.size
            if not flight.whole or now - flight.ended > self.seconds or size > self.largest:
                del self._flights[number]
