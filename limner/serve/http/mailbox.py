"""The events of one work on their way to one reader."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

from limner.serve.messages import Event

PARTIALS = 8  # intermediate images that are kept for a slow reader; older ones are dropped


class Mailbox:
    """Events in the order in which they came; iterated, it ends after ``ended`` or once it is shut."""

    def __init__(self) -> None:
        self._events, self._arrived = deque[Event](), asyncio.Event()
        self.over = False  # whether ``ended`` has come, or nobody reads

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self.over:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()

    def put(self, event: Event) -> None:
        if event.kind == "partial":
            partials = [index for index, kept in enumerate(self._events) if kept.kind == "partial"]
            if len(partials) >= PARTIALS:
                del self._events[partials[0]]
        self._events.append(event)
        self.over = event.kind == "ended"
        self._arrived.set()

    def shut(self) -> None:
        """Nobody reads any more."""
        self.over = True
        self._events.clear()
        self._arrived.set()
