"""The store of jobs by itself: what its thread does for several callers at once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from limner.serve.http.jobs_store import Job, Store


def job(id: str) -> Job:
    return Job(id, "", "at:x", None, "digest", "generation", "plain", 1, "png", "queued", 1.0)


def test_jobs_are_accepted_while_old_ones_are_removed(tmp_path: Path) -> None:
    """A statement that has not ended would keep the next transaction from ending."""

    async def live() -> None:
        old, accepting = store.new_id(), []
        await store.accept(job(old), b"")
        await store.finish(old, "cancelled")
        removing = asyncio.create_task(store.remove_old(time.time() + 1))
        while not removing.done():
            await asyncio.sleep(0)
            accepting.append(asyncio.ensure_future(store.accept(job(store.new_id()), b"")))
            await asyncio.sleep(0)
            time.sleep(0.01)  # the store's thread goes on before this one sees what it has done
        assert await removing == 1 and all(new for _, new in await asyncio.gather(*accepting))
        assert await store.counts() == {"queued": len(accepting)}

    store = Store(tmp_path / "state")
    try:
        asyncio.run(live())
    finally:
        store.close()
