"""The client of the engine, with a process that stands in for it; and the engine's process itself."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limner.serve.http import engine_client
from limner.serve.http.engine_client import Answers, EngineClient
from limner.serve.http.errors import ApiError
from limner.serve.messages import Event, Frames, Ready, Work, encode
from limner.settings import LimnerError
from tests.serve.toys import COMMAND, ROOT, painter
from tests.test_frozen import unpack

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


def test_counters_do_not_fall_when_an_engine_dies(tmp_path: Path):
    async def act() -> None:
        async with started(child(tmp_path)) as client:
            await all_of(client.submit(Work(client.number(), "m", "c", seeds=(7,) * 2)))
            counted = client.reports["m"]
            assert (counted.images, counted.calls, counted.rows) == (2, 3, {4: 3})
            await all_of(client.submit(Work(client.number(), "m", "c", seeds=(1, 2), prompt="die")))
            await until(lambda: client.ready and client.restarts == 2)
            assert client.reports["m"] == counted
            await all_of(client.submit(Work(client.number(), "m", "c", seeds=(7,) * 3)))
            both = client.reports["m"]
            assert (both.images, both.calls, both.rows) == (5, 6, {4: 6})

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


def test_a_process_that_cannot_be_made_is_given_up():
    def spawn(fd: int) -> subprocess.Popen[bytes]:
        raise OSError(12, "Cannot allocate memory")

    async def act() -> None:
        client = EngineClient(spawn)
        await client.start()
        with pytest.raises(LimnerError, match="Cannot allocate memory"):
            await client.wait()
        await client.aclose()

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


# The engine's process ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of the toy family that draws, of one that denoises, and of one that describes."""
    folder = tmp_path_factory.mktemp("runs")
    names = {"flow": "flow-label", "vit": "vit"}
    return {"painter": painter(folder)} | {name: unpack(file, folder / name) for name, file in names.items()}


def engine(*arguments: object) -> Callable[[int], subprocess.Popen[bytes]]:
    """Starts the real engine, as the command does."""

    def spawn(fd: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "LIMNER_ENGINE": str(fd), "OMP_NUM_THREADS": "1"}
        command = [*COMMAND, "serve", *map(str, arguments), "--threads", "1", "--device", "cpu"]
        return subprocess.Popen(command, pass_fds=(fd,), cwd=ROOT, env=environment)

    return spawn


def noise_png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def mask_png(alpha: int, side: int = 20) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (side, side), (255, 255, 255, alpha)).save(file, "PNG")
    return file.getvalue()


def test_the_engine_answers_everything(runs: dict[str, Path]):
    """One process for all that it is asked, since it takes seconds to start."""

    async def act() -> None:
        spawn = engine(f"toys/p={runs['painter']}", runs["flow"], runs["vit"], "--precision", "float32")
        async with started(spawn) as client:
            await _cards(client)
            await _draws(client)
            await _refuses(client)
            await _describes(client)
            await _cancels(client)
            await _counts(client)
            await _idles(client)
            process = client._process
        assert process is not None and process.returncode == 0  # a clean exit

    within(120, act())


async def _cards(client: EngineClient) -> None:
    assert list(client.cards) == ["toys/p", "flow", "vit"]
    painter = client.cards["toys/p"]
    assert (painter.family, painter.height, painter.can) == ("painter", 16, ("draw",))
    assert [knob.name for knob in painter.knobs][:3] == ["steps", "left", "tone"]
    assert client.cards["vit"].can == ("embed", "classify")
    assert all(card.fingerprint for card in client.cards.values() if "draw" in card.can)


def drawing(client: EngineClient, model: str = "toys/p", **more: Any) -> Work:
    return Work(client.number(), model, "c", seeds=more.pop("seeds", (1, 2)), **more)


async def _draws(client: EngineClient) -> None:
    for model in ("toys/p", "flow"):
        works = [drawing(client, model, settings={"steps": 4}) for _ in range(3)]
        found = [images(await all_of(client.submit(work))) for work in works[:1]]
        found += [images(e) for e in await asyncio.gather(*[all_of(client.submit(w)) for w in works[1:]])]
        assert found[0] == found[1] == found[2]  # alone and together
        card = client.cards[model]
        assert [i for i, _ in sorted(found[0])] == [0, 1] and found[0][0][1] != found[0][1][1]
        assert Image.open(io.BytesIO(found[0][0][1])).size == (card.width, card.height)
        given = await all_of(client.submit(drawing(client, model, pictures=(noise_png(),))))
        assert len(images(given)) == 2 and images(given) != found[0]


async def _refuses(client: EngineClient) -> None:
    given = noise_png()
    for work, status, param, said in [
        (drawing(client, settings={"left": 2.0}), 400, "left", "left 2.0 is out of range"),
        (drawing(client, settings={"other": "/etc/passwd"}), 400, None, "names no model"),
        (drawing(client, pictures=(b"nothing",)), 400, "image", "cannot be used"),
        (drawing(client, "flow", pictures=(given,), mask=mask_png(255)), 400, "mask", "no transparent part"),
        (drawing(client, "flow", pictures=(given,), mask=given), 400, "mask", "no transparency"),
        (drawing(client, "flow", pictures=(given,), mask=mask_png(0, 9)), 400, "mask", "9x9"),
        (drawing(client, "flow", pictures=(given,), mask=b"nothing"), 400, "mask", "cannot be used"),
        (drawing(client, "none"), 404, None, "no such model"),
        (Work(client.number(), "vit", "c", "embed", pictures=(b"nothing",)), 400, None, "cannot be used"),
    ]:
        *_, failed, ended = await all_of(client.submit(work))
        assert (failed.kind, failed.status, ended.kind) == ("failed", status, "ended")
        assert failed.param == param
        assert said in failed.message and "/etc" not in failed.message and failed.message.endswith(".")


async def _describes(client: EngineClient) -> None:
    pictures = tuple(noise_png(i) for i in range(3))
    events = await all_of(client.submit(Work(client.number(), "vit", "c", "embed", pictures=pictures)))
    answers = [event for event in events if event.kind == "answer"]
    assert [event.index for event in answers] == [0, 1, 2]
    assert all(len(event.value) == client.cards["vit"].features for event in answers)
    events = await all_of(client.submit(Work(client.number(), "vit", "c", "classify", pictures=pictures[:1])))
    (answer,) = [event for event in events if event.kind == "answer"]
    assert {name for name, _ in answer.value} == set(client.cards["vit"].labels)


async def _cancels(client: EngineClient) -> None:
    long = client.submit(drawing(client, settings={"steps": 250}, seeds=tuple(range(10))))
    assert (await anext(long)).kind == "accepted"
    await long.aclose()
    late = await all_of(client.submit(drawing(client, settings={"steps": 250}, seconds=0.01)))
    assert late[-1].cancelled and not images(late)
    assert len(images(await all_of(client.submit(drawing(client))))) == 2  # all others go on


async def _counts(client: EngineClient) -> None:
    await until(lambda: client.reports["vit"].images == 4 and client.reports["flow"].images == 8, 5)
    assert client.reports["toys/p"].images >= 10
    await until(lambda: client.reports["toys/p"].flying == client.reports["toys/p"].waiting == 0, 5)


async def _idles(client: EngineClient) -> None:
    assert client.pid is not None

    def used() -> int:
        fields = Path(f"/proc/{client.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # hundredths of a second

    await asyncio.sleep(1.2)  # the last reports are sent
    before = used()
    await asyncio.sleep(1.5)
    assert used() - before <= 1


def test_the_engine_dies_and_its_works_are_drawn(runs: dict[str, Path]):
    async def act() -> None:
        async with started(engine(runs["painter"])) as client:
            work = drawing(client, "painter", settings={"steps": 5})
            wanted = images(await all_of(client.submit(work)))
            slow = drawing(client, "painter", settings={"steps": 250}, seeds=(1, 2, 3))
            first, again = (
                client.submit(slow),
                client.submit(drawing(client, "painter", settings={"steps": 5})),
            )
            os.kill(client.pid or 0, 9)
            found = await asyncio.gather(all_of(first), all_of(again))
            assert [i for i, _ in images(found[0])] == [0, 1, 2] and images(found[1]) == wanted
            assert client.restarts == 1

    within(120, act())


def test_the_engine_ends_with_its_front(runs: dict[str, Path]):
    """Also while it draws; and signals to the group of both leave it to the front."""
    ours, theirs = socket.socketpair()
    process = engine(runs["painter"])(theirs.fileno())
    theirs.close()
    ours.settimeout(60)
    frames = Frames()

    def heard(kind: type) -> None:
        """Wait for a message of a kind."""
        while True:
            data = ours.recv(2**16)
            assert data
            if any(isinstance(message, kind) for message in frames.feed(data)):
                return

    heard(Ready)
    for number in (2, 15, 1):
        process.send_signal(number)
    ours.sendall(encode(Work(1, "painter", "c", seeds=tuple(range(10)), settings={"steps": 250})))
    heard(Event)
    ours.close()
    assert process.wait(5) in (0, 1)


def test_a_damaged_run_is_said_by_the_engine(runs: dict[str, Path], tmp_path: Path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/model.safetensors").write_bytes(b"nothing")

    async def act() -> None:
        client = EngineClient(engine(runs["painter"], tmp_path / "bad"))
        await client.start()
        with pytest.raises(LimnerError, match=r"model\.safetensors"):
            await client.wait()
        await client.aclose()
        assert client._process is not None and client._process.returncode == 2

    within(60, act())
