"""The server's life: it listens at once, starts its engine, and ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp
from uvicorn import Config, Server

from limner.serve.heap import share_one_heap
from limner.serve.http.app import Front
from limner.serve.http.engine_client import EngineClient, Spawn
from limner.serve.http.protocol import Bounds, connections, watch
from limner.serve.options import ServeOptions
from limner.settings import LimnerError

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
LAST = 2  # seconds in which connections may end after everything else has


def serve(options: ServeOptions, runs: Mapping[str, str], spawn: Spawn) -> int:
    """Answer requests until a signal; the exit code. Raises LimnerError for what a person can fix."""
    share_one_heap()
    with bound(options.host, options.port) as listening:
        engine = EngineClient(spawn)
        front = Front(engine, options, listening.getsockname()[1])
        try:
            return asyncio.run(Life(front, engine, listening).live())
        finally:
            front.store.close()


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens. Raises LimnerError where it cannot."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, number)
    except OSError as error:
        raise LimnerError(f"--host {host} is no address here ({error.strerror}): try 127.0.0.1.") from None
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(1024)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LimnerError(
                    f"Port {port} is in use, perhaps by another server: end it, or choose another --port."
                ) from None
            raise LimnerError(
                f"The server cannot listen at --host {host} --port {port} ({error.strerror}): choose others."
            ) from None
        listening.setblocking(False)
        yield listening


class _Uvicorn(Server):
    """uvicorn's server, which leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        yield


def uvicorn_server(app: ASGIApp, bounds: Bounds) -> Server:
    """One that says nothing: requests hold what people wrote."""
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    config = Config(
        app, http=connections(bounds), ws="none", lifespan="off", log_config=None, access_log=False,  # type: ignore[arg-type]
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=LAST, interface="asgi3",
    )  # fmt: skip
    return _Uvicorn(config)


@dataclass
class Life:
    """Of one server."""

    front: Front
    engine: EngineClient
    listening: socket.socket
    bounds: Bounds = field(default_factory=Bounds)
    number: int = 0  # of the signal that ends it
    told: asyncio.Event = field(default_factory=asyncio.Event)  # to end

    async def live(self) -> int:
        """Until a signal, or until the engine cannot be started (LimnerError)."""
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in SIGNALS}
        ignored = {number for number in SIGNALS if before[number] == signal.SIG_IGN}  # as by nohup
        for number in {*SIGNALS} - ignored:
            loop.add_signal_handler(number, self._end, number)
        name, port = self.listening.getsockname()[:2]
        server = uvicorn_server(self.front.app(port), self.bounds)
        answering = asyncio.create_task(server.serve(sockets=[self.listening]), name="http")
        watching = asyncio.create_task(watch(server.server_state.connections, self.bounds), name="deadlines")
        say(f"Listening at {address(name, port)}; models are being loaded.")
        try:
            await self.engine.start()
            await self.front.start()
            await self._until_end(asyncio.create_task(self._say_ready(name, port), name="ready"))
            return 128 + self.number
        finally:
            await self.front.close()
            server.should_exit = True
            await asyncio.wait({answering})
            watching.cancel()
            await asyncio.wait({watching})
            await self.engine.aclose()
            for number in {*SIGNALS} - ignored:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    async def _until_end(self, saying: asyncio.Task[None]) -> None:
        telling = asyncio.create_task(self.told.wait(), name="signals")
        failing = asyncio.create_task(self.engine.wait(), name="engine's end")
        try:
            await asyncio.wait({telling, failing}, return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                failing.result()
            await self._drain(failing)
        finally:
            for task in (saying, telling, failing):
                task.cancel()
            await asyncio.wait({saying, telling, failing})

    async def _say_ready(self, name: str, port: int) -> None:
        while not self.engine.ready:
            await asyncio.sleep(0.05)
        models = ", ".join(self.engine.cards)
        say(f"Ready at {address(name, port)}/v1 with {models}. Ctrl-C ends it.")

    async def _drain(self, failing: asyncio.Task[None]) -> None:
        """Let what has begun land, for a while."""
        seconds = self.front.options.drain_seconds
        await self.front.drain()
        if not self.front.idle:
            say(
                f"Ending: what is being drawn may go on for {seconds:g} s; the same signal again ends it at once."
            )
        end = time.monotonic() + seconds
        while not self.front.idle and time.monotonic() < end and not failing.done():
            await asyncio.sleep(0.02)

    def _end(self, number: int) -> None:
        """At the first signal in order, at a second one at once. What was accepted is on the disk."""
        if self.told.is_set():
            if self.engine.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.engine.pid, signal.SIGKILL)
            os._exit(128 + number)
        self.number = number
        self.told.set()


def address(name: str, port: int) -> str:
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def say(text: str) -> None:
    """To who runs the server, who may have closed the terminal."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)
        sys.stdout.flush()
