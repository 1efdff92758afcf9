"""A request that is sent again joins its first, and nothing is drawn twice."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from limner.serve.http.answers import Drawn
from limner.serve.http.asked import Asked
from limner.serve.http.mailbox import PARTIALS
from limner.serve.http.metrics import Meters
from limner.serve.http.places import Places
from limner.serve.http.recent import Flight, Recent
from limner.serve.messages import Event, Work
from tests.serve.fake_engine import PLAIN, FakeEngine
from tests.serve.server.running import DRAW, Client, Running, wait_for
from tests.serve.server.test_admission import Held, let_go, waiting


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path / "state", engine=Held()) as running:
        yield running


def post(running: Running, tries: int | None, said: dict | None = None, **headers: str) -> Client:
    client = running.client()
    again = {} if tries is None else {"x_stainless_retry_count": str(tries)}
    client.ask_only("POST", "/v1/images/generations", said or DRAW, **again, **headers)
    return client


def seeds(client: Client) -> list[int]:
    with contextlib.closing(client):
        answer = client.read()
        assert answer.status == 200
        return [entry["seed"] for entry in answer.json["data"]]


def test_while_it_waits_and_when_it_is_done(held: Running) -> None:
    first = post(held, 0)
    wait_for(lambda: waiting(held) == 1)
    again = post(held, 1)
    wait_for(lambda: held.front.meters.joined)
    let_go(held)
    drawn = seeds(first)
    assert seeds(again) == drawn and len(held.engine.works) == 1
    assert seeds(post(held, 2)) == drawn and len(held.engine.works) == 1
    assert 'limner_joined_total{model="plain",client=""} 2' in held.ask("GET", "/metrics").body.decode()


def test_the_first_may_leave(held: Running) -> None:
    """Once the second has joined, since then somebody still wants it."""
    first = post(held, 0)
    wait_for(lambda: waiting(held) == 1)
    again = post(held, 1)
    wait_for(lambda: held.front.meters.joined)
    first.close()
    let_go(held)
    assert seeds(again) and not held.engine.cancelled
    assert len(held.engine.works) == 1


def test_who_leaves_before_is_asked_anew(held: Running) -> None:
    post(held, 0).close()
    wait_for(lambda: held.engine.cancelled == [1])
    let_go(held)
    assert seeds(post(held, 1)) and len(held.engine.works) == 2


def test_what_is_another_request(held: Running) -> None:
    """Another body, a first try, and clients that do not count."""
    let_go(held)
    seeds(post(held, 0))
    for tries, said in ((1, {**DRAW, "n": 2}), (0, DRAW), (None, DRAW)):
        before = len(held.engine.works)
        seeds(post(held, tries, said))
        assert len(held.engine.works) == before + 1


def test_the_same_written_otherwise(held: Running) -> None:
    let_go(held)
    drawn = seeds(post(held, 0, {"model": "plain", "prompt": "", "n": 1}))
    assert seeds(post(held, 1, {"n": 1, "prompt": "", "model": "plain"})) == drawn


def test_two_that_are_alike_are_not_mixed(held: Running) -> None:
    """Each of two tries again joins a first of its own."""
    firsts = [post(held, 0)]
    wait_for(lambda: waiting(held) == 1)
    firsts.append(post(held, 0))
    wait_for(lambda: waiting(held) == 2)
    again = [post(held, 1), post(held, 1)]
    wait_for(lambda: sum(held.front.meters.joined.values()) == 2)
    let_go(held)
    one, two = map(seeds, firsts)
    assert one != two and sorted([one, two]) == sorted(map(seeds, again))


def test_a_failed_one_is_drawn_again(tmp_path: Path) -> None:
    failed = Event(0, "failed", status=500, code="out_of_memory", message="There is too little memory.")
    with Running(tmp_path / "state", engine=FakeEngine(fails=failed)) as running:
        with contextlib.closing(post(running, 0)) as client:
            assert client.read().status == 500
        running.engine.fails = None
        assert seeds(post(running, 1)) and len(running.engine.works) == 2


def test_a_stream_joins_too(held: Running) -> None:
    said = {**DRAW, "stream": True, "seed": 5}
    first = post(held, 0, said)
    wait_for(lambda: waiting(held) == 1)
    again = post(held, 1, said)
    wait_for(lambda: held.front.meters.joined)
    let_go(held)
    for client in (first, again):
        with contextlib.closing(client):
            body = client.read().body
        assert b"event: image_generation.completed" in body
    assert len(held.engine.works) == 1


def test_tokens_keep_them_apart(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("ann ann-token\nbob bob-token")
    file.chmod(0o600)
    with Running(tmp_path / "state", {"token_file": str(file)}) as running:
        ask = [running.ask("POST", "/v1/images/generations", DRAW, token, X_Stainless_Retry_Count=tries)
               for token, tries in (("ann-token", "0"), ("bob-token", "1"), ("ann-token", "1"))]  # fmt: skip
        one, other, again = (answer.json["data"][0]["seed"] for answer in ask)
        assert one == again != other


class Given:
    """Answers that are there at once; like an engine's, they know their work."""

    def __init__(self, work: Work, events: list[Event]) -> None:
        self.work, self.events = work, events

    def __aiter__(self) -> Given:
        return self

    async def __anext__(self) -> Event:
        if not self.events:
            raise StopAsyncIteration
        return self.events.pop(0)

    async def aclose(self) -> None:
        pass


def test_what_was_asked_is_kept_no_longer_than_it_is_drawn() -> None:
    """Prompts and uploads, of up to 20 MB each, while the answer is kept for a minute."""

    async def live() -> None:
        places, recent = Places(100, 100, Meters()), Recent()
        work = Work(1, "plain", "x", seeds=(1,), prompt="x", pictures=(bytes(100),))
        asked = Asked("edit", work, PLAIN, Drawn(work, PLAIN, "image_edit", "medium").body)
        events = [Event(1, "image", 0, data=bytes(10)), Event(1, "ended")]
        flight = Flight(asked, Given(work, events), places.enter(work, "", 1.0))
        recent.add(("a", "edit"), flight)
        await asyncio.wait({flight.task})
        kept = weakref.ref(work)
        del work, asked
        gc.collect()
        again = recent.find(("a", "edit"))
        assert again and [event.kind async for event in again.listen()] == ["image", "ended"]
        assert kept() is None

    asyncio.run(live())


def test_what_is_kept_is_bounded() -> None:
    """In time and in bytes; a slow listener gets the last partial images and all whole ones."""

    async def live() -> None:
        places, recent = Places(100, 100, Meters()), Recent(seconds=60, largest=25)
        work = Work(1, "plain", "x", seeds=(1,))
        asked = Asked("generation", work, PLAIN, lambda events: {})
        for number in range(4):
            events = [Event(1, "partial", 0, part) for part in range(20)]
            events += [Event(1, "image", 0, data=bytes(10)), Event(1, "ended")]
            flight = Flight(asked, Given(work, events), places.enter(work, "", 1.0))
            recent.add(("a", str(number)), flight)
            listener = flight.listen()
            await asyncio.wait({flight.task})
            heard = [event async for event in listener]
            assert [e.number for e in heard if e.kind == "partial"] == list(range(20 - PARTIALS, 20))
            assert [e.kind for e in heard[-2:]] == ["image", "ended"]
        assert [bool(recent.find(("a", str(number)))) for number in range(4)] == [False, False, True, True]
        assert not recent.find(("b", "3")) and places.waiting == 0
        recent.seconds = -1
        assert not recent.find(("a", "3"))

    asyncio.run(live())
