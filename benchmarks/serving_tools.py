"""A real `limner serve` and small clients of it, for the benchmarks of the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Server:
    """A server in a process group of its own; ``port`` is known once it listens."""

    def __init__(self, runs: Sequence[str | Path], *options: str, threads: int = 0, port: int = 0):
        command = [
            sys.executable,
            "-m",
            "limner.cli",
            "serve",
            *map(str, runs),
            "--port",
            str(port),
            *options,
        ]
        command += ["--threads", str(threads)] if threads else []
        if "--state" not in options:  # that of the cache is for one server at a time
            command += ["--state", tempfile.mkdtemp()]
        self.lines: list[str] = []
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.port = self._listens()
        threading.Thread(target=self._read, daemon=True).start()

    def _listens(self) -> int:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if found := re.search(r"http://[\w.\[\]:]+?:(\d+)", line):
                return int(found[1])
        raise SystemExit("\n".join(["The server did not start:", *self.lines]))

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def wait_ready(self, seconds: float = 120) -> float:
        """Seconds from the start of the process until it is ready."""
        end = time.perf_counter() + seconds
        while self.get("/ready")[0] != 200:
            if self.process.poll() is not None or time.perf_counter() > end:
                raise SystemExit("\n".join(["The server is not ready:", *self.lines[-20:]]))
            time.sleep(0.02)
        return time.perf_counter() - self.began

    @property
    def engine(self) -> int:
        """The process that draws; 0 while there is none."""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            return int((children.split() or ["0"])[-1])
        return 0

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def kill(self) -> None:
        """All of it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()


def resident(pid: int) -> float:
    """MB that a process has in memory, without what it shares with files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1000  # type: ignore[index]


def handles(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def thread_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    first: float  # seconds to the first event of a stream, or to the whole answer
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int):
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Raises OSError or EOFError where the connection is lost."""
        began = time.perf_counter()
        await self.send(method, path, body, headers)
        answer = await self._answer(began)
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer

    async def send(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Host": f"127.0.0.1:{self.port}", "Content-Length": str(len(content)), **(headers or {})}
        if content:
            given.setdefault("Content-Type", "application/json")
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content)
        await self.writer.drain()

    async def _answer(self, began: float) -> Answer:
        assert self.reader
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
        }
        first, parts = 0.0, list[bytes]()
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                parts.append(await self.reader.readexactly(size))
                if (not first and b"event:" in parts[-1]) or b"data:" in parts[-1]:
                    first = first or time.perf_counter() - began
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        else:
            parts.append(await self.reader.readexactly(int(headers.get("content-length", 0))))
        took = time.perf_counter() - began
        return Answer(int(head[0].split()[1]), headers, b"".join(parts), first or took, took)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


def metric(text: str, name: str) -> float:
    """The sum of a metric over its labels."""
    found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? ([-\d.e+]+)$", text, re.MULTILINE)
    return sum(map(float, found))
