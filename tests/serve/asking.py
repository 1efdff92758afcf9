"""The clients of the `openai` package, sync and async, asked in one way."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import openai

TOKEN = "ann-0123456789"


class Asking:
    """A client of either kind: ``ask("images.generate", ...)`` gives what the call returns, of a stream its events."""

    def __init__(self, kind: Callable[..., Any], url: str, **settings: Any):
        self.client = kind(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0, timeout=60, **settings)
        self.url, self.runner = url, asyncio.Runner()

    def __call__(
        self, name: str, *arguments: Any, with_options: dict[str, Any] | None = None, **named: Any
    ) -> Any:
        client = self.client.with_options(**with_options) if with_options else self.client
        found = attrgetter(name)(client)(*arguments, **named)
        if inspect.isawaitable(found):
            return self.runner.run(_waited(found))
        return list(found) if isinstance(found, openai.Stream) else found

    def close(self) -> None:
        closing = self.client.close()
        if inspect.isawaitable(closing):
            self.runner.run(_waited(closing))
        self.runner.close()


async def _waited(what: Any) -> Any:
    found = await what
    return [event async for event in found] if isinstance(found, openai.AsyncStream) else found
