"""Bounds of the queue, clients that leave, and what a flood costs."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import threading
import time
from pathlib import Path

import pytest

from limner.serve.http.metrics import Meters
from limner.serve.http.places import Places, Rate, price
from limner.serve.messages import Event, Work
from tests.serve.fake_engine import PLAIN, FakeEngine
from tests.serve.server.running import DRAW, Client, Running, wait_for


class Held(FakeEngine):
    """Draws nothing before it is let go."""

    def __init__(self, **given) -> None:
        super().__init__(**given)
        self.held = asyncio.Event()


def waiting(running: Running) -> int:
    return running.do(lambda: running.front.admission.places.waiting)


def let_go(running: Running) -> None:
    running.do(running.engine.held.set)


def post(running: Running, said: dict, **headers: str) -> Client:
    client = running.client()
    client.ask_only("POST", "/v1/images/generations", said, **headers)
    return client


def test_bounds_of_the_queue(tmp_path: Path) -> None:
    """Of one client, then of all; each is told when to come again, and all is free once the work is done."""
    with Running(tmp_path / "state", {"max_queue": 12, "max_client": 5}, engine=Held()) as running:
        clients = [post(running, {**DRAW, "n": 3, "user": "ann"})]
        wait_for(lambda: waiting(running) == 3)
        refused = running.ask("POST", "/v1/images/generations", {**DRAW, "n": 3, "user": "ann"})
        assert refused.status == 429 and refused.error["code"] == "rate_limit_exceeded"
        assert refused.error["type"] == "rate_limit_error" and 1 <= int(refused.headers["retry-after"]) <= 120
        clients += [
            post(running, {**DRAW, "n": n, "user": user}) for n, user in ((2, "ann"), (4, "bob"), (3, "eve"))
        ]
        wait_for(lambda: waiting(running) == 12)
        for path in ("/v1/images/generations", "/v1/images/edits", "/v1/jobs"):
            refused = running.ask("POST", path, DRAW)
            assert refused.status == 429 and refused.error["code"] == "queue_full"
        ready = running.ask("GET", "/ready")
        assert ready.status == 503 and ready.error["code"] == "queue_full" and ready.headers["retry-after"]
        assert running.ask("GET", "/health").status == 200 and running.ask("GET", "/v1/models").status == 200
        assert 'limner_queue_images{model="plain"} 12' in running.ask("GET", "/metrics").body.decode()
        let_go(running)
        assert [client.read().status for client in clients] == [200] * 4
        assert waiting(running) == 0 and running.ask("GET", "/ready").status == 200
        assert not running.front.admission.places.by_client and not running.front.admission.places.price
        for client in clients:
            client.close()


def test_jobs_count_too(tmp_path: Path) -> None:
    with Running(tmp_path / "state", {"max_client": 5}, engine=Held()) as running:
        job = running.ask("POST", "/v1/jobs", {**DRAW, "type": "generation", "n": 4})
        assert job.status == 202 and waiting(running) == 4
        assert running.ask("POST", "/v1/images/generations", {**DRAW, "n": 2}).status == 429
        assert running.ask("POST", "/v1/jobs", {**DRAW, "type": "generation", "n": 2}).status == 429
        assert running.ask("DELETE", job.headers["location"]).json["status"] == "cancelled"
        assert waiting(running) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_in_the_queue_or_in_flight_is_drawn_no_further(tmp_path: Path, stream: bool) -> None:
    engine = Held(seconds=0.05)
    with Running(tmp_path / "state", engine=engine) as running:
        client = post(running, {**DRAW, "n": 10, "stream": stream})
        wait_for(lambda: waiting(running) == 10)
        client.close()
        wait_for(lambda: engine.cancelled == [1])
        assert waiting(running) == 0 and not engine.drawn
        let_go(running)
        client = post(running, {**DRAW, "n": 10, "stream": stream})
        wait_for(lambda: len(engine.drawn) >= 2)
        client.close()
        wait_for(lambda: engine.cancelled == [1, 2])
        drawn = len(engine.drawn)
        time.sleep(0.15)
        assert len(engine.drawn) == drawn < 10 and running.do(lambda: running.front.idle)
        text = running.ask("GET", "/metrics").body.decode()
        assert f'limner_cancelled_total{{model="plain",client=""}} {20 - drawn}' in text


def test_others_are_drawn_on(tmp_path: Path) -> None:
    engine = Held(seconds=0.01)
    with Running(tmp_path / "state", {"max_client": 256}, engine=engine) as running:
        clients = [post(running, {**DRAW, "n": 2, "seed": 10 * number}) for number in range(20)]
        wait_for(lambda: waiting(running) == 40)
        for client in clients[::2]:
            client.close()
        wait_for(lambda: len(engine.cancelled) == 10)
        let_go(running)
        for number, client in list(enumerate(clients))[1::2]:
            answer = client.read()
            assert answer.status == 200 and [d["seed"] for d in answer.json["data"]] == [
                10 * number,
                10 * number + 1,
            ]
            client.close()


def test_a_request_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the engine not keep it, the front does."""
    monkeypatch.setattr("limner.serve.http.recent.GRACE", 0.1)
    engine = Held()
    with Running(tmp_path / "state", {"request_seconds": 0.2}, engine=engine) as running:
        answer = running.ask("POST", "/v1/images/generations", DRAW)
        assert answer.status == 504 and answer.error["code"] == "timeout"
        assert engine.cancelled == [1] and engine.works[0].seconds == 0.2 and waiting(running) == 0


def test_bodies_that_arrive_are_bounded_together(server: Running) -> None:
    """Not by what they say, but by what has come; a small one still passes."""
    server.front.gate.most = 1_000_000
    head = f"POST /v1/images/edits HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 9000000\r\n"
    head += 'Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: form-data; name="image"; '
    with contextlib.closing(server.client()) as one, contextlib.closing(server.client()) as two:
        for client in (one, two):
            client.send(f'{head}filename="a"\r\n\r\n'.encode() + bytes(600_000))
        statuses = []
        for client in (one, two):
            client.socket.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                answer = client.read()
                statuses.append((answer.status, answer.error["code"]))
        assert statuses == [(503, "too_many_bytes")]
        assert server.ask("POST", "/v1/images/generations", DRAW).status == 200
    wait_for(lambda: server.do(lambda: server.front.gate.arriving) == 0)


def test_no_engine_yet(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.stops = True
    with Running(tmp_path / "state", engine=engine) as running:
        assert running.ask("GET", "/health").status == 200
        for method, path in (("GET", "/ready"), ("POST", "/v1/images/generations")):
            answer = running.ask(method, path, DRAW if method == "POST" else None)
            assert (
                answer.status == 503
                and answer.headers["retry-after"]
                and answer.error["code"] == "engine_starting"
            )
        assert waiting(running) == 0
        engine.cards = {}
        for method, path in (("POST", "/v1/images/generations"), ("POST", "/v1/jobs"), ("GET", "/v1/models")):
            answer = running.ask(method, path, DRAW if method == "POST" else None)
            assert answer.status == 503 and answer.error["code"] == "engine_starting"


def test_what_fails_in_the_engine_is_told(tmp_path: Path) -> None:
    engine = FakeEngine(
        fails=Event(0, "failed", status=500, code="out_of_memory", message="There is too little memory.")
    )
    with Running(tmp_path / "state", engine=engine) as running:
        answer = running.ask("POST", "/v1/images/generations", DRAW)
        assert answer.status == 500 and answer.error["code"] == "out_of_memory" and waiting(running) == 0


def test_the_wait_is_the_queue_by_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    places = Places(10**6, 10**6, Meters())
    place = places.enter(Work(1, "plain", "x", seeds=tuple(range(100))), "", 8.0)
    assert places.price == 800 and places.wait() == 50  # nothing is known of the rate
    for _ in range(10):
        places.rate.add(40)
        now[0] += 1
    assert places.rate.value() == pytest.approx(40) and places.wait() == 20
    place.saw(Event(1, "accepted", evaluations=16))  # which the engine knows better
    assert places.price == 1600 and places.wait() == 40
    now[0] += 31
    assert places.rate.value() == 0
    place.leave()
    assert places.price == 0 and places.waiting == 0 and places.wait() == 1
    places.enter(Work(1, "plain", "x", seeds=tuple(range(10**5))), "", 8.0)
    assert places.wait() == 120


def test_the_rate_of_an_idle_server_is_none() -> None:
    assert Rate().value() == 0


def test_prices() -> None:
    def of(mask: bytes = b"", scale: float = 1.0, **settings: object) -> float:
        return price(Work(1, "plain", "x", settings=settings, scale_steps=scale, mask=mask), PLAIN)

    assert of() == 8 and of(steps=50) == 50 and of(steps=50, scale=2.0) == 100
    assert of(steps=10, repaints=4) == 10 and of(steps=10, repaints=4, mask=b"x") == 40


def test_begun_images_wait_no_more() -> None:
    places = Places(10, 10, Meters())
    work = Work(1, "plain", "x", seeds=(1, 2, 3))
    place = places.enter(work, "", 1.0)
    for event, left in (("begun", 2), ("image", 2), ("image", 2)):
        place.saw(Event(1, event, 0))
        assert places.waiting == left
    place.saw(Event(1, "begun", -1))
    assert places.waiting == 0
    place.saw(Event(1, "ended", cancelled=True))
    assert places.waiting == 0 and not places.by_client and not places.by_model


def test_a_flood(tmp_path: Path) -> None:
    """Many requests over 100 connections: the bound holds, the others are refused at once, health answers."""
    engine, number, each = Held(), 100, 20
    with Running(tmp_path / "state", {"max_queue": 64, "max_client": 64}, engine=engine) as running:
        seconds: list[float] = []
        statuses: list[int] = []
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def ask() -> None:
            with contextlib.closing(running.client()) as client:
                for _ in range(each):
                    client.ask_only("POST", "/v1/images/generations", DRAW)
                    client.socket.settimeout(30)
                    status = client.read().status
                    statuses.append(status)

        threads = [threading.Thread(target=ask) for _ in range(number)]
        for thread in threads:
            thread.start()
        wait_for(lambda: waiting(running) == 64)
        with contextlib.closing(running.client()) as client:
            for _ in range(20):
                began = time.monotonic()
                assert client.ask("GET", "/health").status == 200
                seconds.append(time.monotonic() - began)
                assert waiting(running) <= 64
        wait_for(lambda: len(statuses) == (number - 64) * each, 30)
        assert set(statuses) == {429} and waiting(running) == 64 and len(engine.works) == 64
        running.do(lambda: setattr(running.front.admission.places, "most", 1000))
        running.do(lambda: setattr(running.front.admission.places, "most_client", 1000))
        let_go(running)
        for thread in threads:
            thread.join(30)
        assert statuses.count(200) == 64 * each and waiting(running) == 0
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
        assert max(seconds) < 2
