"""What a client has used: images, evaluations of networks and seconds, by model."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from limner.serve.http.errors import ApiError
from limner.serve.http.jobs_store import Store, Used
from limner.serve.http.metrics import Meters

EVERY = 2.0  # seconds between two times that it is kept; a kill loses no more than what came between them

Key = tuple[str, str]  # model, name of the token


class Usage:
    """Of each token's name, over all servers of one store; without tokens all have one name.

    What this server adds is counted by its meters, and kept in batches.
    """

    def __init__(self, meters: Meters, store: Store):
        self.meters, self.store = meters, store
        self.since, self.before = int(time.time()), dict[Key, Used]()
        self.loaded = asyncio.Event()  # set by start
        self._kept = dict[Key, Used]()  # of the meters
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on from what earlier servers kept."""
        self.since, used = await self.store.used()
        self.before = {(one.model, one.client): one for one in used}
        self.loaded.set()
        self._task = asyncio.create_task(self._keep(), name="usage")

    async def close(self) -> None:
        """Keep the rest."""
        self._ending.set()
        if self._task:
            await asyncio.wait({self._task})

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), EVERY)
            ending = self._ending.is_set()
            now = self._counted()
            more = [_plus(one, self._kept[key], -1) if key in self._kept else one for key, one in now.items()]
            more = [one for one in more if one.images]
            with contextlib.suppress(ApiError):  # as on a full disk; the next time adds this too
                if more:
                    await self.store.add_used(more)
                self._kept = now
            if ending:
                return

    def _counted(self) -> dict[Key, Used]:
        """What this server has added so far."""
        meters = self.meters
        return {
            key: Used(*key, images, meters.evaluations[key], meters.seconds.get(key, 0.0))
            for key, images in meters.images.items()
        }

    def of(self, name: str) -> dict[str, Any]:
        """The answer of /v1/usage."""
        found, added = self.before, self._counted()
        found = found | {key: _plus(one, found[key]) if key in found else one for key, one in added.items()}
        mine = sorted(one for one in found.values() if one.client == name)
        return {
            "object": "usage",
            "client": name,
            "since": self.since,
            "data": [{"model": one.model, **_amounts([one])} for one in mine],
            **_amounts(mine),
        }


def _plus(one: Used, other: Used, sign: int = 1) -> Used:
    """The sum of two of the same model and client, or their difference."""
    return Used(
        one.model, one.client, one.images + sign * other.images, one.evaluations + sign * other.evaluations,
        one.seconds + sign * other.seconds,
    )  # fmt: skip


def _amounts(used: list[Used]) -> dict[str, Any]:
    return {
        "images": sum(one.images for one in used),
        "evaluations": sum(one.evaluations for one in used),
        "seconds": round(sum(one.seconds for one in used), 4),
    }
