"""Images as server-sent events, by the real client; readers that are slow, and that leave."""

import asyncio
import base64
import io
import time

import openai
import pytest

from limner.serve.http import streams
from limner.serve.http.asked import Asked
from limner.serve.http.streams import EventStream, Outbox, collect
from limner.serve.messages import Event, Work
from tests.serve.fake_engine import PLAIN, TEXT, FakeEngine
from tests.serve.http.front import PICTURE, said


def test_generation(server):
    stream = server.client().images.generate(
        prompt="x", model="text", stream=True, partial_images=2, n=2, quality="high", safety_identifier="s",
        extra_body={"seed": 4},
    )  # fmt: skip
    events = list(stream)
    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * 2, "image_generation.completed",
    ] * 2  # fmt: skip
    assert [event.partial_image_index for event in events if "partial" in event.type] == [0, 1, 0, 1]
    assert [event.index for event in events] == [0, 0, 0, 1, 1, 1]
    for event in events:
        event.__class__.model_validate(event.to_dict(), strict=True)
        assert base64.b64decode(event.b64_json)[:4] == b"\x89PNG"
        assert (event.size, event.quality, event.background, event.output_format) == (
            "8x8",
            "high",
            "opaque",
            "png",
        )
        assert abs(event.created_at - time.time()) < 60
    done = [event for event in events if event.type.endswith("completed")]
    assert [event.seed for event in done] == [4, 5] and done[0].safety_identifier == "s"
    assert done[0].usage.evaluations == 16 and done[0].usage.total_tokens == 0
    assert done[0].system_fingerprint == TEXT.fingerprint


def test_edit_by_the_async_client(server):
    async def ask():
        async with server.client(openai.AsyncOpenAI) as client:
            stream = await client.images.edit(
                image=io.BytesIO(PICTURE), prompt="x", model="text", stream=True, partial_images=1
            )
            return [event async for event in stream]

    events = asyncio.run(ask())
    for event in events:
        event.__class__.model_validate(event.to_dict(), strict=True)
    assert [event.type for event in events] == [
        "image_edit.partial_image",
        "image_edit.completed",
    ]


def test_no_partial_images(server):
    events = list(server.client().images.generate(prompt="x", model="text", stream=True))
    assert [event.type for event in events] == ["image_generation.completed"]


def test_headers(server):
    body = {"prompt": "x", "model": "plain", "stream": True, "response_format": "url"}
    response = server.post("/v1/images/generations", body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert set(response.headers["x-limner-ignored"].split(", ")) == {"prompt", "response_format"}


def test_a_failure_at_once_is_the_status(server):
    server.engine.fails = Event(
        0, "failed", status=400, code="invalid_image", message="It is cut: send it whole."
    )
    with pytest.raises(openai.BadRequestError, match="It is cut"):
        server.client().images.generate(prompt="x", model="text", stream=True)
    said(server.post("/v1/images/generations", {"prompt": "x", "model": "text", "n": 0, "stream": True}), 400)


def test_a_failure_later_is_an_event(server):
    server.engine.fails = Event(
        0, "failed", status=503, code="engine_died", message="The engine ended: ask again."
    )
    server.engine.fails_at = 1
    events = []
    with pytest.raises(openai.APIError, match="The engine ended") as caught:
        for event in server.client().images.generate(prompt="x", model="text", stream=True, n=2):
            events.append(event.type)
    assert events == ["image_generation.completed"] and caught.value.code == "engine_died"


def test_a_reader_that_leaves_cancels(server):
    server.engine.seconds = 0.2
    stream = server.client().images.generate(prompt="x", model="text", stream=True, n=10)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 5
    while server.engine.cancelled != [server.work.id]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(server.engine.drawn) < 5


# ---- without a socket


def asked(work):
    def event(event):
        if event.kind not in ("partial", "image"):
            return None
        name = "partial_image" if event.kind == "partial" else "image"
        return name, {"n": event.number, "i": event.index}

    return Asked("generation", work, PLAIN, lambda events: {}, True, event)


def drawing(engine=None, **work):
    """A work of the fake engine, what was asked, and its answers."""
    work = Work(1, "plain", "x", **({"seeds": (1,)} | work))
    return asked(work), (engine or FakeEngine()).submit(work)


def test_eight_events_are_kept_for_a_slow_reader():
    async def read():
        outbox = Outbox(*drawing(seeds=(1, 2, 3, 4, 5), partials=3))
        while not outbox.over:
            await asyncio.sleep(0.001)
        found = []
        while (data := await outbox.take()) is not None:
            found.append(data.decode())
        await outbox.close()
        return found

    found = asyncio.run(read())
    assert sum("event: image\n" in frame for frame in found) == 5
    assert len([frame for frame in found if "partial" in frame]) <= 8
    assert 'data: {"n": 2, "i": 4}' in [frame for frame in found if "partial" in frame][-1]


def test_silence_is_broken_by_pings(monkeypatch):
    monkeypatch.setattr(streams, "PING", 0.02)

    async def read():
        engine = FakeEngine(held=asyncio.Event())
        outbox = Outbox(*drawing(engine))
        found = [await outbox.take(), await outbox.take()]
        engine.held.set()
        while (data := await outbox.take()) is not None:
            found.append(data)
        return found

    found = asyncio.run(read())
    assert found[:2] == [b": ping\n\n"] * 2 and b"event: image" in found[-1]


def test_a_reader_that_reads_nothing_is_cut_off(monkeypatch):
    monkeypatch.setattr(streams, "READ", 0.05)
    aborted, sent = [], []

    async def run():
        engine = FakeEngine(seconds=10)
        stream = EventStream(Outbox(*drawing(engine, seeds=(1, 2))))

        async def send(message):
            sent.append(message["type"])
            await asyncio.sleep(60)

        async def receive():
            await asyncio.sleep(60)

        scope = {"type": "http", "extensions": {"limner.abort": lambda: aborted.append(True)}}
        await asyncio.wait_for(stream(scope, receive, send), 5)
        return engine

    engine = asyncio.run(run())
    assert aborted == [True] and engine.cancelled == [1] and sent == ["http.response.start"]


def test_a_deadline_is_told():
    class Late:
        events = iter([Event(1, "accepted"), Event(1, "ended", cancelled=True)])

        def __aiter__(self):
            return self

        async def __anext__(self):
            for event in self.events:
                return event
            raise StopAsyncIteration

        async def aclose(self):
            pass

    work = Work(1, "plain", "x", seeds=(1,), seconds=5)
    with pytest.raises(streams.ApiError, match="took more than 5 seconds") as caught:
        asyncio.run(collect(asked(work), Late()))
    assert caught.value.status == 504 and caught.value.headers["x-should-retry"] == "false"


def test_no_task_is_left():
    async def run():
        engine = FakeEngine(seconds=0.01)
        for _ in range(5):
            await collect(*drawing(engine))
        outbox = Outbox(*drawing(engine))
        await outbox.take()
        await outbox.close()
        await asyncio.sleep(0.05)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()
