"""The server as a Ray Serve application: Ray's proxies listen, and each replica draws with an engine of its own."""

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

from limner.serve.options import ServeOptions, named_runs
from limner.settings import need


def app(*runs: str, deployment: dict[str, Any] | None = None, **options: Any) -> Any:
    """For ``ray.serve.run``: runs and options are those of the command, ``host`` and ``port`` those of Ray's proxies.

    ``deployment``: options of ``ray.serve.deployment``. Raises LimnerError without the extra, and for wrong options.
    """
    serve = need("ray.serve", "A Ray Serve application needs the ray extra", "ray")
    given = ServeOptions(runs=runs, **options)
    named_runs(runs)

    class Limner(Replica):
        async def __serve_build_asgi_app__(self) -> Any:
            return await self.start(serve.get_replica_context().rank.rank)

        async def __del__(self) -> None:
            await self.stack.aclose()

    # What waits is bounded by the server; Ray's own bound, 5 requests a replica, leaves little to draw together.
    ours = {"max_ongoing_requests": 1024, "graceful_shutdown_timeout_s": given.drain_seconds + 10}
    return serve.deployment(**ours | (deployment or {}))(serve.ingress()(Limner)).bind(given)


class Replica:
    def __init__(self, options: ServeOptions):
        self.options, self.stack = options, contextlib.AsyncExitStack()  # the stack ends what was started

    async def start(self, number: int) -> Any:
        """The ASGI app, once the engine can draw; jobs of a replica of this number go on. Raises LimnerError."""
        from limner.serve.http.app import Front, state_folder
        from limner.serve.http.engine_client import EngineClient, spawn

        port = self.options.port
        options = replace(self.options, state=str(state_folder(self.options, port) / f"replica-{number}"))
        async with contextlib.AsyncExitStack() as stack:
            self.engine = EngineClient(lambda socket: spawn(options, socket))
            front = Front(self.engine, options)
            stack.callback(front.store.close)
            stack.push_async_callback(self.engine.aclose)
            stack.push_async_callback(front.close)
            await self.engine.start()
            await front.start()
            while not self.engine.ready:
                self.engine.check()
                await asyncio.sleep(0.02)
            self.stack = stack.pop_all()
        return front.app(port)

    async def check_health(self) -> None:
        self.engine.check()
