"""A real server on a free port of this machine, with an engine that has no network; and plain sockets to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limner.serve.http.app import Front
from limner.serve.http.protocol import Bounds, watch
from limner.serve.http.server import bound, uvicorn_server
from limner.serve.options import ServeOptions
from tests.serve.fake_engine import FakeEngine

DRAW = {"model": "plain", "prompt": ""}
ROOT = Path(__file__).parents[3]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/json" and self.headers["x-request-id"]
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) < 200
        assert not re.search(r"(^|\W)(/\w|\w:\\)|\.py|etc.passwd", error["message"])
        assert "Traceback" not in error["message"]
        return error


class Client:
    """One connection."""

    def __init__(self, port: int, token: str = "", receive: int = 0):
        self.port, self.token = port, token
        self.socket = socket.socket()
        if receive:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        self.file = self.socket.makefile("rb")

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request and read its answer."""
        self.ask_only(method, path, body, **headers)
        return self.read()

    def ask_only(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = {"Host": f"127.0.0.1:{self.port}"}
        if body is not None:
            lines |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        if self.token:
            lines["Authorization"] = f"Bearer {self.token}"
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        self.send(head.encode("latin-1") + data)

    def read(self) -> Answer:
        """The next answer, or AssertionError where the connection ends."""
        status, headers = self.read_head()
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join(self.chunks())
        else:
            body = self.file.read(int(headers.get("content-length", "0")))
        return Answer(status, headers, body)

    def read_head(self) -> tuple[int, dict[str, str]]:
        first = self.file.readline()
        assert first.startswith(b"HTTP/1.1 "), first
        headers: dict[str, str] = {}
        while (line := self.file.readline().strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return int(first.split()[1]), headers

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.file.readline(), 16):
            yield self.file.read(size)
            self.file.readline()
        self.file.readline()

    def ended(self) -> bool:
        """Whether the other end has closed the connection; waits for that."""
        try:
            return self.file.read(1) == b""
        except ConnectionError:
            return True


@dataclass
class Running:
    """A server in a thread of this process."""

    state: Path
    options: dict[str, Any] = field(default_factory=dict)
    bounds: Bounds = field(default_factory=Bounds)
    engine: FakeEngine = field(default_factory=FakeEngine)
    port: int = 0

    def __enter__(self) -> Running:
        self.started, self.stop = threading.Event(), None
        self.failed: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert self.started.wait(10)
        if self.failed:
            raise self.failed
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(20)
        assert not self.thread.is_alive() and not self.left, self.left

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:
            self.failed = error
            self.started.set()

    async def _live(self) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        options = ServeOptions(**{"runs": ("run",), "port": 0, "state": str(self.state), **self.options})
        with bound(options.host, options.port) as listening:
            self.port = listening.getsockname()[1]
            self.front = Front(self.engine, options)
            self.server = uvicorn_server(self.front.app(self.port), self.bounds)
            tasks = [
                asyncio.create_task(self.server.serve(sockets=[listening])),
                asyncio.create_task(watch(self.server.server_state.connections, self.bounds)),
            ]
            await self.front.start()
            while not self.server.started:
                await asyncio.sleep(0.005)
            self.started.set()
            await self.stop.wait()
            await self.front.close()
            self.server.should_exit = True
            await tasks[0]
            tasks[1].cancel()
            await asyncio.wait({tasks[1]})
            self.front.store.close()
            await asyncio.sleep(0)
            self.left = asyncio.all_tasks() - {asyncio.current_task()}

    def client(self, token: str = "", receive: int = 0) -> Client:
        return Client(self.port, token, receive)

    def ask(self, method: str, path: str, body: Any = None, token: str = "", **headers: str) -> Answer:
        with contextlib.closing(self.client(token)) as client:
            return client.ask(method, path, body, **headers)

    def raw(self, data: bytes) -> Answer:
        """The answer to these bytes."""
        with contextlib.closing(self.client()) as client:
            client.send(data)
            return client.read()

    def do(self, function: Callable[[], Any]) -> Any:
        """Call in the server's thread."""
        done, found = threading.Event(), []

        def call() -> None:
            found.append(function())
            done.set()

        self.loop.call_soon_threadsafe(call)
        assert done.wait(10)
        return found[0]


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What the condition gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)
    return found


class Child:
    """A server in a process of its own."""

    def __init__(self, state: Path, *arguments: object, port: int = 0):
        command = [
            sys.executable,
            "-m",
            "tests.serve.server.child",
            str(state),
            str(port),
            *map(str, arguments),
        ]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdout
        first = self.process.stdout.readline()
        assert "Listening at" in first, first + self.process.communicate()[1]
        self.port = int(first.split(";")[0].rpartition(":")[2])

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        with contextlib.closing(Client(self.port)) as client:
            return client.ask(method, path, body, **headers)

    def wait_ready(self) -> Child:
        wait_for(lambda: self.ask("GET", "/ready").status == 200)
        return self

    def end(self, number: int) -> tuple[int, str, str]:
        """Send a signal; the exit code and what was said."""
        self.process.send_signal(number)
        said, errors = self.process.communicate(timeout=20)
        return self.process.returncode, said, errors
