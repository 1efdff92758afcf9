"""The end of a server: what flies lands, the rest is kept, and a second signal ends it at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from limner.serve.http.server import Life, address, bound, serve
from limner.serve.options import ServeOptions
from limner.settings import LimnerError
from tests.serve.server.running import DRAW, Child, Client, Running, wait_for
from tests.serve.server.test_jobs import JOB, create, finished, pictures

SLOW = 0.4


def begin(child: Child, said: dict) -> Client:
    client = Client(child.port)
    client.ask_only("POST", "/v1/images/generations", said)
    return client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_idle_server_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    child = Child(tmp_path / "state").wait_ready()
    with contextlib.closing(Client(child.port)) as client:
        assert client.ask("GET", "/health").status == 200  # and the connection stays open
        began = time.monotonic()
        code, said, errors = child.end(number)
    assert code == 128 + number and time.monotonic() - began < 3
    assert f"Ready at http://127.0.0.1:{child.port}/v1 with plain" in said and errors == ""


def test_what_flies_lands_and_jobs_that_wait_are_kept(tmp_path: Path) -> None:
    child = Child(tmp_path / "state", SLOW, "10s").wait_ready()
    flying = begin(child, {**DRAW, "n": 2})
    drawn = create(child, {**JOB, "n": 2, "seed": 5})
    wait_for(lambda: child.ask("GET", drawn).json["status"] == "in_progress")
    child.process.send_signal(signal.SIGTERM)
    wait_for(lambda: child.ask("GET", "/ready").status == 503)
    assert child.ask("GET", "/ready").error["code"] == "shutting_down"
    assert child.ask("GET", "/health").status == 200
    for path, said in (("/v1/images/generations", DRAW), ("/v1/jobs", JOB)):
        answer = child.ask("POST", path, said)
        assert (
            answer.status == 503 and answer.error["code"] == "shutting_down" and answer.headers["retry-after"]
        )
    answer = flying.read()
    assert answer.status == 200 and len(answer.json["data"]) == 2
    flying.close()
    said, errors = child.process.communicate(timeout=20)
    assert child.process.returncode == 128 + signal.SIGTERM and "Ending" in said and errors == ""
    with Running(tmp_path / "state") as running:
        job = running.ask("GET", drawn).json
        assert job["status"] == "completed" and [e["seed"] for e in job["result"]["data"]] == [5, 6]


def test_what_does_not_land_in_time(tmp_path: Path) -> None:
    """A request is told so; a job goes on in the next server, from where it was."""
    child = Child(tmp_path / "state", SLOW, "0.6s").wait_ready()
    flying, stream = begin(child, {**DRAW, "n": 10}), begin(child, {**DRAW, "n": 10, "stream": True})
    path = create(child, {**JOB, "n": 10, "seed": 5})
    follower = Client(child.port)
    follower.ask_only("GET", f"{path}/events")
    wait_for(lambda: child.ask("GET", path).json["images_done"])
    began = time.monotonic()
    child.process.send_signal(signal.SIGTERM)
    answer = flying.read()
    assert answer.status == 503 and answer.error["code"] == "shutting_down"
    assert b"event: error\n" in stream.read().body and b"event: job.image\n" in follower.read().body
    child.process.communicate(timeout=20)
    assert child.process.returncode == 128 + signal.SIGTERM and time.monotonic() - began < 5
    for client in (flying, stream, follower):
        client.close()
    with Running(tmp_path / "state") as running:
        job = finished(running, path)
        assert [entry["seed"] for entry in job["result"]["data"]] == list(range(5, 15))
        assert len(pictures(job)) == 10 and 0 < len(running.engine.works[0].seeds) < 10


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    child = Child(tmp_path / "state", 5, "60s").wait_ready()
    client = begin(child, DRAW)
    path = create(child, JOB)
    wait_for(lambda: child.ask("GET", path).json["status"] == "in_progress")
    child.process.send_signal(signal.SIGTERM)
    wait_for(lambda: child.ask("GET", "/ready").error["code"] == "shutting_down")
    began = time.monotonic()
    code, _, errors = child.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and time.monotonic() - began < 1 and "Traceback" not in errors
    client.close()
    with Running(tmp_path / "state") as running:
        assert finished(running, path)


def test_jobs_that_have_not_begun_are_taken_back(tmp_path: Path) -> None:
    from tests.serve.server.test_admission import Held

    with Running(tmp_path / "state", engine=Held()) as running:
        path = create(running, JOB)
        wait_for(lambda: running.engine.works)
        asyncio.run_coroutine_threadsafe(running.front.drain(), running.loop).result(10)
        assert running.do(lambda: running.front.idle) and running.engine.cancelled == [
            running.engine.works[0].id
        ]
        assert running.ask("GET", path).json["status"] == "queued"
    with Running(tmp_path / "state") as running:
        assert finished(running, path)


def test_a_port_in_use() -> None:
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(LimnerError, match=rf"Port {port} is in use"), bound("127.0.0.1", port):
            pass
    with bound("127.0.0.1", port):  # at once after
        pass


def test_addresses_that_are_none() -> None:
    for host in ("no.such.host.invalid", "203.0.113.7"):
        with pytest.raises(LimnerError, match="--host"), bound(host, 0):
            pass
    assert address("::1", 8) == "http://[::1]:8" and address("127.0.0.1", 8) == "http://127.0.0.1:8"


def test_an_engine_that_cannot_be_started(tmp_path: Path) -> None:
    """The reason is the command's error, and nothing is left over."""

    def spawn(descriptor: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["false"])

    before = threading.active_count()
    with pytest.raises(LimnerError, match=r"engine cannot be started \(exit code 1\)"):
        serve(ServeOptions(runs=("run",), port=0, state=str(tmp_path / "state")), {"run": "run"}, spawn)
    assert threading.active_count() == before
    with Running(tmp_path / "state"):  # the state is free again
        pass


def test_health_comes_before_the_engine(tmp_path: Path) -> None:
    """While the engine's process only sleeps."""
    found, port = [], free_port()

    def spawn(descriptor: int) -> subprocess.Popen[bytes]:
        threading.Thread(target=look).start()
        return subprocess.Popen(["sleep", "1.5"])

    def look() -> None:
        with contextlib.closing(Client(port)) as client:
            found.extend(client.ask("GET", path).status for path in ("/health", "/ready", "/v1/models"))
        signal.raise_signal(signal.SIGTERM)

    options = ServeOptions(runs=("run",), port=port, state=str(tmp_path / "state"))
    assert serve(options, {"run": "run"}, spawn) == 128 + signal.SIGTERM and found == [200, 503, 503]
    assert Life  # the class that did it


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
