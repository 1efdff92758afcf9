"""Connections that are slow, half-open, too large or ambiguous, on plain sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from limner.serve.http.protocol import Bounds
from limner.serve.messages import Event
from tests.serve.fake_engine import FakeEngine
from tests.serve.server.running import DRAW, Client, Running, wait_for

QUICK = Bounds(headers=0.3, request=0.6, stall=0.5, idle=0.4, linger=0.3, requests=5)
ENDLESS = b"x" * 300_000


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("quick") / "state", bounds=QUICK) as running:
        yield running


def head(server: Running, rest: str = "", path: str = "/v1/images/generations") -> bytes:
    own = f"Host: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
    return f"POST {path} HTTP/1.1\r\n{own}{rest}".encode()


def test_half_sent_headers(quick: Running) -> None:
    began = time.monotonic()
    answer = quick.raw(head(quick))
    assert answer.status == 408 and answer.error["code"] == "request_timeout"
    assert 0.25 < time.monotonic() - began < 2


def test_headers_byte_by_byte_have_the_same_deadline(quick: Running) -> None:
    with contextlib.closing(quick.client()) as client:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in head(quick) * 9:
                client.send(bytes([byte]))
                time.sleep(0.02)
                if time.monotonic() - began > 1:
                    break
        assert client.read().status == 408


def test_half_sent_bodies(quick: Running) -> None:
    for rest in ("Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
        began = time.monotonic()
        answer = quick.raw(head(quick, rest))
        assert answer.status == 408 and answer.error["code"] == "request_timeout"
        assert 0.5 < time.monotonic() - began < 2
    assert quick.do(lambda: quick.front.idle)


def test_a_half_sent_body_that_nobody_waits_for(quick: Running) -> None:
    """The answer comes at once, and the connection is closed at the deadline without a second one."""
    with contextlib.closing(quick.client()) as client:
        client.send(head(quick, "Content-Length: 100\r\n\r\n{", "/nothing"))
        assert client.read().status == 404 and client.ended()


def test_a_connection_without_a_request_ends(quick: Running) -> None:
    with contextlib.closing(quick.client()) as client:
        began = time.monotonic()
        assert client.ended() and time.monotonic() - began < 2


def test_a_connection_between_requests_ends(quick: Running) -> None:
    with contextlib.closing(quick.client()) as client:
        assert client.ask("GET", "/health").status == 200
        began = time.monotonic()
        assert client.ended() and 0.3 < time.monotonic() - began < 2


def test_many_requests_on_one_connection(quick: Running) -> None:
    with contextlib.closing(quick.client()) as client:
        answers = [client.ask("POST", "/v1/images/generations", DRAW) for _ in range(QUICK.requests)]
        assert [answer.status for answer in answers] == [200] * QUICK.requests
        assert answers[-1].headers["connection"] == "close" and client.ended()


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + ENDLESS,  # a line that does not end
        b"GET /health HTTP/1.1\r\nA: " + ENDLESS,
        b"GET /health HTTP/1.1\r\n" + ENDLESS,
        b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
        b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        b"GET /health HTTP/1.1\r\nA: " + b"x" * 17_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 17_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=range(7),
)
def test_headers_that_are_too_long(server: Running, data: bytes) -> None:
    answer = server.raw(data)
    assert answer.status == 431 and answer.error["code"] == "headers_too_large"


def test_headers_in_pieces_may_be_as_long(server: Running) -> None:
    with contextlib.closing(server.client()) as client:
        own = f"Host: 127.0.0.1:{server.port}\r\n".encode()
        for piece in (
            b"GET /health HTTP/1.1\r\n",
            own,
            *[b"A%d: " % i + b"x" * 1500 + b"\r\n" for i in range(9)],
            b"\r\n",
        ):
            client.send(piece)
            time.sleep(0.003)
        assert client.read().status == 200


BODY = json.dumps(DRAW).encode()


@pytest.mark.parametrize(
    "rest",
    [
        "Content-Length: {n}\r\nTransfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: {n}\r\n\r\n",
        "Content-Length: {n}\r\nContent-Length: 3\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: identity\r\nContent-Length: {n}\r\n\r\n",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: +{n}\r\n\r\n",
        "Content-Length: 0x10\r\n\r\n",
        "Content-Length: 99999999999999999999\r\n\r\n",
        "Content Length: {n}\r\n\r\n",
    ],
)
def test_lengths_that_can_be_read_in_two_ways(server: Running, rest: str) -> None:
    answer = server.raw(head(server, rest.format(n=len(BODY))) + BODY)
    assert answer.status == 400 and answer.error["code"] == "invalid_http"
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"nonsense\r\n\r\n", b"GET /health\r\n\r\n",
     b"GET /health HTTP/3.0\r\n\r\n",
     b"GET http://evil.example/health HTTP/1.1\r\nHost: x\r\n\r\n",
     b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
     b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /h\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n",
     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
     b"GET /health HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", b"GET /health HTTP/1.1\r\nA\x00: b\r\n\r\n"],
    ids=range(11),
)  # fmt: skip
def test_what_is_no_request(server: Running, data: bytes) -> None:
    answer = server.raw(data)
    assert answer.status in (400, 403) and answer.error
    assert server.ask("GET", "/health").status == 200


def test_a_bad_chunk(server: Running) -> None:
    answer = server.raw(head(server, "Transfer-Encoding: chunked\r\n\r\nzz\r\n"))
    assert answer.status == 400 and answer.error["code"] == "invalid_http"


def test_chunks_and_trailers(server: Running) -> None:
    """Trailers become no headers."""
    chunks = b"%x\r\n%b\r\n0\r\nOrigin: null\r\nHost: evil.example\r\n\r\n" % (len(BODY), BODY)
    assert server.raw(head(server, "Transfer-Encoding: chunked\r\n\r\n") + chunks).status == 200


def test_pipelining_is_refused(server: Running) -> None:
    with contextlib.closing(server.client()) as client:
        client.send((head(server, f"Content-Length: {len(BODY)}\r\n\r\n") + BODY) * 2)
        assert client.read().status == 400 and client.ended()
    wait_for(lambda: server.do(lambda: server.front.idle))


def test_continue(server: Running) -> None:
    with contextlib.closing(server.client()) as client:
        client.send(head(server, f"Content-Length: {len(BODY)}\r\nExpect: 100-continue\r\n\r\n"))
        assert client.file.readline().startswith(b"HTTP/1.1 100") and client.file.readline() == b"\r\n"
        client.send(BODY)
        assert client.read().status == 200


def test_http_1_0(server: Running) -> None:
    with contextlib.closing(server.client()) as client:
        client.send(f"GET /health HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        assert client.read().json == {"status": "ok"} and client.ended()


def test_a_slow_reader_is_ended(tmp_path: Path) -> None:
    """One that reads nothing is; one that reads slowly is not."""
    with Running(tmp_path / "state", {"max_queue": 10}, QUICK) as running:
        running.front.links.kept["big.png"] = bytes(8_000_000), "png", time.monotonic() + 100
        stuck, slow = running.client(receive=4096), running.client(receive=4096)
        with contextlib.closing(stuck), contextlib.closing(slow):
            for client in (stuck, slow):
                client.ask_only("GET", "/v1/images/drawn/big.png")
            assert wait_for(lambda: len(running.server.server_state.connections) == 2)
            end, got = time.monotonic() + 1.5, 0
            while time.monotonic() < end:
                got += len(slow.socket.recv(60_000))
                time.sleep(0.03)
            assert len(running.server.server_state.connections) == 1  # the slow one
            while got < 8_000_000 and (part := slow.socket.recv(2**20)):
                got += len(part)
            assert got >= 8_000_000
            with pytest.raises(ConnectionError):
                while stuck.socket.recv(2**20):
                    pass
                raise ConnectionError  # closed in order, which is as good


class Large(FakeEngine):
    """Its images fill what the system keeps for a connection."""

    def _image(self, *given) -> Event:
        return replace(super()._image(*given), data=bytes(5_000_000))


def test_a_stream_that_nobody_reads_is_cancelled(tmp_path: Path) -> None:
    engine = Large(seconds=0.2)
    with Running(tmp_path / "state", {}, QUICK, engine) as running:
        with contextlib.closing(running.client(receive=2048)) as client:
            client.ask_only("POST", "/v1/images/generations", {**DRAW, "stream": True, "n": 10})
            wait_for(lambda: engine.cancelled == [1])
            wait_for(
                lambda: running.do(lambda: running.front.idle and not running.front.admission.places.waiting)
            )
        assert 0 < len(engine.drawn) < 10


def test_connections_are_bounded(tmp_path: Path) -> None:
    bounds = Bounds(connections=5, linger=0.3)
    with Running(tmp_path / "state", bounds=bounds) as running, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(running.client())) for _ in range(5)]
        wait_for(lambda: len(running.server.server_state.connections) == 5)
        more = stack.enter_context(contextlib.closing(running.client()))
        answer = more.read()
        assert answer.status == 503 and answer.error["code"] == "too_many_connections"
        assert answer.headers["retry-after"] == "1"
        assert more.ended()
        # One that has been answered, and is kept for a next request, makes room.
        assert clients[0].ask("GET", "/health").status == 200
        wait_for(lambda: len(running.server.server_state.connections) == 5)
        assert running.ask("GET", "/health").status == 200
        assert clients[0].ended()


def test_a_reset_in_the_middle_of_anything(server: Running) -> None:
    whole = head(server, f"Content-Length: {len(BODY)}\r\n\r\n") + BODY
    for length in range(0, len(whole) + 1, 7):
        client = Client(server.port)
        client.send(whole[:length])
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    wait_for(lambda: server.do(lambda: server.front.idle))
    assert server.ask("GET", "/health").status == 200
