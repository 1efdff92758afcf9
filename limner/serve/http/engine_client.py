"""The engine as the front sees it: a process that is started, spoken to over a socket, and started again if it dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from limner.serve.http.errors import ApiError
from limner.serve.http.mailbox import Mailbox
from limner.serve.messages import (
    Cancel,
    Card,
    Event,
    Frames,
    Message,
    Ready,
    Report,
    Stop,
    Work,
    added,
    encode,
)
from limner.serve.options import ServeOptions
from limner.settings import LimnerError

LOST = "The engine ended while drawing this: ask again, or fewer images at once."
UNSENT = 2**28  # bytes that may wait for the engine to read them
STARTS = 3  # that may fail one after another
BACKOFF = 0.2, 5.0  # seconds before the first of such starts, and at most
PATIENCE = 5.0  # seconds in which an engine that was told to end does

Spawn = Callable[[int], "subprocess.Popen[bytes]"]


def spawn(options: ServeOptions, socket: int) -> subprocess.Popen[bytes]:
    """An engine of these options, where no command line is there to be repeated."""
    code = (
        "import sys; from limner.serve.engine import process; from limner.serve.options import ServeOptions; "
    )
    command = [sys.executable, "-c", f"{code}sys.exit(process.run({socket}, {options!r}))"]
    return subprocess.Popen(command, pass_fds=(socket,), stdin=subprocess.DEVNULL, process_group=0)


class Answers(Mailbox):
    """The events of one work, in order, until ``ended``. Closing it before then cancels the work."""

    def __init__(self, work: Work, client: EngineClient):
        super().__init__()
        self.work, self.lost = work, 0
        self._client, self._begun = client, time.monotonic()
        self._seen = set[tuple[str, int, int]]()  # of what was delivered, so that nothing comes twice

    async def aclose(self) -> None:
        if not self.over:
            self._client.cancel(self.work.id)
        self.shut()

    def put(self, event: Event) -> None:
        """An event from the engine."""
        key = event.kind, event.index, event.number
        if self.over or (event.kind != "ended" and (key in self._seen or self._is_done(event))):
            return
        self._seen.add(key)
        super().put(event)

    def _is_done(self, event: Event) -> bool:
        """Whether it is an intermediate image of one that was delivered before."""
        return event.kind == "partial" and ("image", event.index, 0) in self._seen

    def fail(self, message: str, code: str) -> None:
        self.put(Event(self.work.id, "failed", status=503, code=code, message=message))
        self.put(Event(self.work.id, "ended"))

    def again(self) -> Work:
        """The work as it is asked once more, in what is left of its time."""
        if not self.work.seconds:
            return self.work
        left = self.work.seconds - (time.monotonic() - self._begun)
        return replace(self.work, seconds=max(left, 1e-3))


@dataclass
class EngineClient:
    """Starts the engine with ``spawn``, which is given the number of a socket for the child, and keeps it alive.

    Works under way when an engine dies are asked once more of the next one. Cards stay known meanwhile.
    """

    spawn: Spawn
    cards: Mapping[str, Card] = field(default_factory=dict)  # by id; empty until the first Ready
    reports: dict[str, Report] = field(default_factory=dict)  # of each model, counted over all engines so far
    restarts: int = 0  # engines that were started in place of one that died

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._works: dict[int, Answers] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ready, self._closing = False, False
        self._before: dict[str, Report] = {}  # what the engines before this one counted
        self._reason = ""  # why the last engine ended, as far as it said
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def pid(self) -> int | None:
        """Of the engine's process, if there is one."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Begin to start the engine; ``ready`` says when it has loaded its runs."""
        self._task = asyncio.create_task(self._keep(), name="engine")

    async def wait(self) -> None:
        """Until this client is closed. Raises LimnerError once the engine cannot be started."""
        assert self._task is not None
        await asyncio.wait({self._task})
        self.check()

    def check(self) -> None:
        """Raises LimnerError once the engine cannot be started; until then it is started again where it dies."""
        if self._task and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def aclose(self) -> None:
        """End the engine, with what it does."""
        self._closing, self._ready = True, False
        if self._task:
            self._send(Stop())
            if self._writer:
                self._writer.close()
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, LimnerError):
                await self._task
        await self._reap()
        for answers in list(self._works.values()):
            answers.fail("The server is ending: ask again in a moment.", "shutting_down")
        self._works.clear()

    def number(self) -> int:
        return next(self._numbers)

    def submit(self, work: Work) -> Answers:
        """Raises ApiError 503 with Retry-After while there is no engine, and where it takes nothing more in."""
        if not self._ready or self._writer is None:
            raise ApiError(
                503, "The engine is starting: ask again in a moment.", "engine_starting",
                headers={"Retry-After": "2"},
            )  # fmt: skip
        if self._writer.transport.get_write_buffer_size() > UNSENT:
            raise ApiError(
                503, "The engine is behind with reading: ask again in a moment.", "engine_busy",
                headers={"Retry-After": "1"},
            )  # fmt: skip
        answers = Answers(work, self)
        self._works[work.id] = answers
        self._send(work)
        return answers

    def cancel(self, work: int) -> None:
        """Nothing more of this work is wanted."""
        if self._works.pop(work, None):
            self._send(Cancel(work))

    def _send(self, message: Message) -> None:
        """Never waits: what the socket does not take yet is kept in memory."""
        if self._writer and not self._writer.is_closing():
            self._writer.write(encode(message))

    # The engine's life --------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Start the engine again and again. Raises LimnerError where that fails several times in a row."""
        failed, wait = 0, BACKOFF[0]
        while True:
            was_ready = await self._live()
            failed = 0 if was_ready else failed + 1
            # What the first engine says of a mistake in its runs holds for the next one too.
            if failed >= STARTS or (failed and self._reason and not self.cards):
                for answers in list(self._works.values()):
                    answers.fail(LOST, "engine_died")
                raise LimnerError(self._reason or f"The engine cannot be started ({self._how()}).")
            if was_ready:
                wait = BACKOFF[0]
            await asyncio.sleep(wait)
            wait = min(2 * wait, BACKOFF[1])
            self.restarts += 1

    async def _live(self) -> bool:
        """One engine, from its start to its end; whether it was ready in between."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process, self._reason = self.spawn(theirs.fileno()), ""
            reader, self._writer = await asyncio.open_connection(sock=ours)
        except OSError as error:  # no memory for a process, or no file left to open
            ours.close()
            self._reason = (
                f"The engine cannot be started ({error.strerror}): end other programs, and try again."
            )
            return False
        except BaseException:
            ours.close()
            raise
        try:
            await self._read(reader)
        finally:
            was_ready, self._ready = self._ready, False
            self._writer.close()
            self._writer = None
        await self._reap()
        if was_ready:
            # A counter never falls, though what an engine had not yet told is lost.
            self.reports = {name: replace(one, flying=0, waiting=0) for name, one in self.reports.items()}
            self._before = dict(self.reports)
            for answers in list(self._works.values()):
                answers.lost += 1
                if answers.lost > 1:
                    answers.fail(LOST, "engine_died")
                    self._works.pop(answers.work.id, None)
        return was_ready

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """What the engine says, until it says no more."""
        frames = Frames()
        while True:
            try:
                data = await reader.read(2**20)
            except ConnectionError:
                return
            if not data:
                return
            for message in frames.feed(data):
                self._take(message)

    def _take(self, message: Message) -> None:
        if isinstance(message, Event):
            answers = self._works.get(message.work)
            if answers:
                answers.put(message)
                if message.kind == "ended":
                    del self._works[message.work]
            elif not message.work and message.kind == "failed":
                self._reason = message.message
        elif isinstance(message, Report):
            before = self._before.get(message.model)
            self.reports[message.model] = added(before, message) if before else message
        elif isinstance(message, Ready):
            self.cards = {card.id: card for card in message.cards}
            if not self._ready and not self._closing:
                self._ready = True
                for answers in list(self._works.values()):
                    self._send(answers.again())

    async def _reap(self) -> None:
        """Wait for the end of the engine's process, whose socket is closed; it is killed if it does not end."""
        process, deadline = self._process, time.monotonic() + PATIENCE
        while process and process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
            await asyncio.sleep(0.01)

    def _how(self) -> str:
        """How the last engine ended."""
        code = self._process.poll() if self._process else None
        if code is not None and code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"exit code {code}"
