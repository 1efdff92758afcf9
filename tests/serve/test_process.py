"""The client of the engine, with a process that stands in for it; and the engine's process itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from limner.serve.http import engine_client
from limner.serve.http.engine_client import Answers, EngineClient
from limner.serve.http.errors import ApiError
from limner.serve.messages import Event, Work
from limner.settings import LimnerError

ROOT = Path(__file__).parents[2]
CHILD = str(Path(__file__).with_name("engine_child.py"))


def child(folder: Path, way: str = "well") -> Callable[[int], subprocess.Popen[bytes]]:
    """Starts the process that stands in for an engine."""

    def spawn(fd: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, CHILD, str(fd), way, str(folder)]
        return subprocess.Popen(
            command, pass_fds=(fd,), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    return spawn


@asynccontextmanager
async def started(spawn: Callable[[int], subprocess.Popen[bytes]]) -> AsyncIterator[EngineClient]:
    client = EngineClient(spawn)
    await client.start()
    try:
        await until(lambda: client.ready)
        yield client
    finally:
        await client.aclose()


async def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


async def all_of(answers: Answers) -> list[Event]:
    return [event async for event in answers]


def within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    async def run() -> None:
        async with asyncio.timeout(seconds):
            await work

    asyncio.run(run())


def images(events: list[Event]) -> list[tuple[int, bytes]]:
    return [(event.index, event.data) for event in events if event.kind == "image"]


# The client -------------------------------------------------------------------------------------------------


def test_a_work_is_answered_in_order(tmp_path: Path):
    async def act() -> None:
        async with started(child(tmp_path)) as client:
            assert client.cards["m"].family == "toy"
            works = [Work(client.number(), "m", "c", seeds=(i, i + 1)) for i in range(5)]
            found = await asyncio.gather(*[all_of(client.submit(work)) for work in works])
            for i, events in enumerate(found):
                assert [event.kind for event in events] == ["accepted", "begun", "image", "image", "ended"]
                assert images(events) == [(0, b"%d" % i), (1, b"%d" % (i + 1))]
            assert client.reports["m"].rows == {4: 3}
            process = client._process
        assert process is not None and process.returncode == 0  # it was told to end, and did

    within(30, act())


def test_closing_answers_cancels_the_work(tmp_path: Path):
    async def act() -> None:
        async with started(child(tmp_path)) as client:
            answers = client.submit(Work(client.number(), "m", "c", prompt="wait"))
            assert (await anext(answers)).kind == "accepted"
            await answers.aclose()
            await answers.aclose()
            assert await all_of(answers) == []
            await until((tmp_path / f"cancel-{answers.work.id}").exists)
            done = client.submit(Work(client.number(), "m", "c", seeds=(1,)))
            await all_of(done)
            await done.aclose()
            await all_of(client.submit(Work(client.number(), "m", "c", seeds=(1,))))
            assert not (tmp_path / f"cancel-{done.work.id}").exists()  # it was over

    within(30, act())


def test_a_slow_reader_keeps_the_images_and_the_last_partials(tmp_path: Path):
    async def act() -> None:
        async with started(child(tmp_path)) as client:
            answers = client.submit(Work(client.number(), "m", "c", seeds=tuple(range(10)), partials=3))
            await until(lambda: not client._works)
            events = await all_of(answers)
            assert len(images(events)) == 10 and events[-1].kind == "ended"
            assert [event.index for event in events if event.kind == "partial"] == [7, 7, 8, 8, 8, 9, 9, 9]

    within(30, act())


def test_a_work_is_done_again_once_when_the_engine_dies(tmp_path: Path):
    async def act() -> None:
        async with started(child(tmp_path)) as client:
            once = client.submit(
                Work(client.number(), "m", "c", seeds=(5, 6, 7), prompt="die once", partials=1)
            )
            events = await all_of(once)
            assert images(events) == [(0, b"5"), (1, b"6"), (2, b"7")]  # none twice, none lost
            kinds = [event.kind for event in events]
            assert kinds.count("accepted") == kinds.count("begun") == kinds.count("ended") == 1
            assert client.restarts == 1 and client.cards

            lost = await all_of(client.submit(Work(client.number(), "m", "c", seeds=(1, 2), prompt="die")))
            assert images(lost) == [(0, b"1")]
            assert (lost[-2].kind, lost[-2].status, lost[-2].code) == ("failed", 503, "engine_died")
            assert lost[-1].kind == "ended"
            await until(lambda: client.ready)
            assert images(await all_of(client.submit(Work(client.number(), "m", "c", seeds=(9,)))))

    within(60, act())


def test_what_is_left_of_its_time_counts_when_a_work_is_done_again(tmp_path: Path):
    async def act() -> None:
        async with started(child(tmp_path)) as client:
            work = Work(client.number(), "m", "c", seeds=(5, 6), prompt="die once", seconds=50.0)
            await all_of(client.submit(work))
            first, second = (float((tmp_path / f"work-{work.id}-{n}").read_text()) for n in (1, 2))
            assert first == 50.0 and 0 < second < 50.0 - 0.05

    within(30, act())


def test_there_is_no_engine_while_it_starts(tmp_path: Path):
    async def act() -> None:
        client = EngineClient(child(tmp_path))
        await client.start()
        with pytest.raises(ApiError) as refused:
            client.submit(Work(client.number(), "m", "c"))
        assert refused.value.status == 503 and refused.value.headers["Retry-After"]
        await client.aclose()
        assert client._process is None or client._process.poll() is not None

    within(30, act())


def test_what_the_engine_waits_for_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_client, "UNSENT", 2**16)

    async def act() -> None:
        async with started(child(tmp_path)) as client:
            assert client.pid is not None
            os.kill(client.pid, 19)  # SIGSTOP
            try:
                with pytest.raises(ApiError, match="behind"):
                    for _ in range(100):
                        client.submit(Work(client.number(), "m", "c", pictures=(bytes(2**16),)))
            finally:
                os.kill(client.pid, 18)

    within(30, act())


@pytest.mark.parametrize(("way", "said", "starts"), [("mistake", "damaged", 1), ("crash", "exit code 3", 3)])
def test_an_engine_that_cannot_start_is_given_up(way: str, said: str, starts: int, tmp_path: Path):
    async def act() -> None:
        client = EngineClient(child(tmp_path, way))
        await client.start()
        with pytest.raises(LimnerError, match=said):
            await client.wait()
        await client.aclose()
        assert len(list(tmp_path.glob("start-*"))) == starts

    within(30, act())


def test_nothing_is_left_behind(tmp_path: Path):
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def act() -> None:
        async with started(child(tmp_path)) as client:
            waits = client.submit(Work(client.number(), "m", "c", prompt="wait"))
        events = await all_of(waits)
        assert [event.kind for event in events][-2:] == ["failed", "ended"] and events[-2].status == 503
        assert len(asyncio.all_tasks()) == 1

    before = open_files()
    within(30, act())
    assert open_files() <= before


def test_the_front_imports_no_torch():
    names = [path.stem for path in (ROOT / "limner/serve/http").glob("*.py") if path.stem != "__init__"]
    code = "import sys, limner.commands.serve\n"
    code += "".join(f"import limner.serve.http.{name}\n" for name in names)
    code += "sys.exit('torch' in sys.modules or 'limner.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
