"""`python -m tests.serve.server.child STATE PORT [SECONDS [DRAIN]]`: a server whose engine has no network."""

from __future__ import annotations

import asyncio
import sys

from limner.serve.http.app import Front
from limner.serve.http.server import Life, bound
from limner.serve.options import ServeOptions
from tests.serve.fake_engine import FakeEngine


class FakeClient(FakeEngine):
    """With what the server's life asks of an engine."""

    pid = None

    async def start(self) -> None:
        self.stops = False

    async def wait(self) -> None:
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        pass


def main(state: str, port: str, seconds: str = "0", drain: str = "5s") -> int:
    options = ServeOptions(runs=("run",), port=int(port), state=state, drain=drain)
    with bound(options.host, options.port) as listening:
        held = asyncio.Event() if seconds == "held" else None
        engine = FakeClient(seconds=0.0 if held else float(seconds), held=held)
        front = Front(engine, options)
        try:
            return asyncio.run(Life(front, engine, listening).live())
        finally:
            front.store.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
