"""Who may ask: token files, comparison, failures, and what each name sees of the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from limner.serve.http import tokens
from limner.serve.http.tokens import Failures, find_name, network, read_tokens
from limner.serve.options import ServeOptions
from limner.settings import LimnerError
from tests.serve.server.running import DRAW, Running

ANN, BOB = "ann-0123456789", "bob-0123456789"


def write(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Running]:
    file = write(tmp_path / "tokens", f"# people\nann {ANN}\n\n  bob   {BOB}\n")
    with Running(tmp_path / "state", {"token_file": file}) as running:
        yield running


def test_all_but_health_need_one(guarded: Running) -> None:
    assert guarded.ask("GET", "/health").status == 200
    for method, path in (("GET", "/ready"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/v1/models"),
                         ("POST", "/v1/images/generations"), ("POST", "/v1/jobs"), ("DELETE", "/v1/jobs/x"),
                         ("GET", "/v1/usage"), ("GET", "/nothing"), ("GET", "/v1/images/drawn/x.png"),
                         ("GET", "/health/"), ("GET", "/HEALTH"), ("GET", "//health")):  # fmt: skip
        answer = guarded.ask(method, path, DRAW if method == "POST" else None)
        assert answer.status == 401 and answer.error["code"] == "invalid_api_key", path
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.ask("POST", "/v1/images/generations", DRAW, token=ANN).status == 200


@pytest.mark.parametrize("value", ["Basic {}", "{}", "Bearer {}x", "Bearer x{}", "Bearer", "Bearer ", "Bearer ann",
                                   "Bearer ann {}", "Bearer {} {}", "Bearer \xff"])  # fmt: skip
def test_what_is_no_token(guarded: Running, value: str) -> None:
    answer = guarded.ask("GET", "/v1/models", Authorization=value.replace("{}", ANN))
    assert answer.status == 401 and ANN not in answer.body.decode()


def test_two_tokens_are_none(guarded: Running) -> None:
    own = f"Host: 127.0.0.1:{guarded.port}\r\nAuthorization: Bearer {ANN}\r\n"
    assert guarded.raw(f"GET /v1/models HTTP/1.1\r\n{own}\r\n".encode()).status == 200
    two = f"GET /v1/models HTTP/1.1\r\n{own}Authorization: Bearer {ANN}\r\n\r\n"
    assert guarded.raw(two.encode()).status == 401


def test_guesses_are_stopped(guarded: Running) -> None:
    """After ten wrong ones a right one is refused as well, or guessing would go on; health still answers."""
    for _ in range(tokens.FAILURES):
        assert guarded.ask("GET", "/v1/models", token="wrong").status == 401
    for token in ("wrong", ANN, ""):
        answer = guarded.ask("GET", "/v1/models", token=token)
        assert answer.status == 429 and answer.error["code"] == "too_many_failures"
        assert 50 <= int(answer.headers["retry-after"]) <= 61
    assert guarded.ask("GET", "/health").status == 200
    guarded.front.failures.window = 0.0  # as after a minute
    assert guarded.ask("GET", "/v1/models", token=ANN).status == 200


def test_failures_are_counted_by_address_and_forgotten() -> None:
    failures = Failures(most=3, window=0.1)
    for _ in range(3):
        failures.add("a")
    assert failures.wait("a") > 0 and failures.wait("b") == 0
    time.sleep(0.11)
    assert failures.wait("a") == 0
    for number in range(tokens.ADDRESSES + 10):
        failures.add(str(number))
    assert len(failures.times) == tokens.ADDRESSES


def test_networks_of_ipv6() -> None:
    assert network("2001:db8::1") == network("2001:db8::ffff") != network("2001:db8:0:1::1")
    assert network("::ffff:10.0.0.1") == network("10.0.0.1") != network("10.0.0.2")
    assert network("fe80::1%eth0") == network("fe80::2") and network("nonsense") == "nonsense"


def test_all_tokens_are_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compared = []
    known = read_tokens(write(tmp_path / "t", f"ann {ANN}\nbob {BOB}\neve eve-token"))
    monkeypatch.setattr(tokens.hmac, "compare_digest", lambda a, b: compared.append(b) or a == b)
    assert find_name(known, ANN.encode()) == "ann" and len(compared) == 3


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (f"ann {ANN}", 0o644, "chmod 600"),
        (f"ann {ANN}", 0o640, "chmod 600"),
        (f"ann {ANN}", 0o602, "chmod 600"),
        ("ann", 0o600, "line 1 is not a name and a token"),
        (f"# x\nann {ANN} more", 0o600, "line 2 is not"),
        (f"../x {ANN}", 0o600, "line 1 is not"),
        ("ann tökén", 0o600, "line 1 is not"),
        (f"ann {ANN}\nann {BOB}", 0o600, "line 2 repeats"),
        (f"ann {ANN}\nbob {ANN}", 0o600, "line 2 repeats"),
        ("# none\n", 0o600, "holds no token"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, mode: int, words: str) -> None:
    path = write(tmp_path / "tokens", text, mode)
    with pytest.raises(LimnerError, match=words) as refused:
        read_tokens(path)
    assert ANN not in str(refused.value) and BOB not in str(refused.value)


def test_a_file_that_is_not_there_or_none(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(LimnerError, match=r"--token-file .*(cannot be read|can be read by others)"):
            read_tokens(str(path))


def test_a_public_address_needs_one() -> None:
    for host in ("0.0.0.0", "192.168.1.2", "::", "example.org"):
        with pytest.raises(LimnerError, match="needs --token-file"):
            ServeOptions(runs=("run",), host=host)


def test_each_sees_their_own(guarded: Running) -> None:
    """Jobs, keys of idempotency and usage."""
    said = {**DRAW, "type": "generation"}
    first = guarded.ask("POST", "/v1/jobs", said, ANN, Idempotency_Key="k")
    other = guarded.ask("POST", "/v1/jobs", said, BOB, Idempotency_Key="k")
    assert first.status == other.status == 202 and first.json["id"] != other.json["id"]
    path = first.headers["location"]
    for method, rest in (("GET", ""), ("GET", "/events"), ("GET", "/images/0"), ("DELETE", "")):
        assert guarded.ask(method, path + rest, token=BOB).status == 404
    assert guarded.ask("GET", f"{path}/events", token=ANN).status == 200
    assert guarded.ask("GET", path, token=ANN).json["status"] == "completed"
    guarded.ask("POST", "/v1/images/generations", {**DRAW, "n": 3, "steps": 5}, ANN)
    usage = guarded.ask("GET", "/v1/usage", token=ANN).json
    assert (usage["client"], usage["images"], usage["evaluations"]) == ("ann", 4, 8 + 3 * 5)
    assert (
        usage["data"][0]["model"] == "plain"
        and guarded.ask("GET", "/v1/usage", token=BOB).json["images"] == 1
    )
    text = guarded.ask("GET", "/metrics", token=BOB).body.decode()
    assert 'limner_images_total{model="plain",client="ann"} 4' in text and ANN not in text


def test_the_token_says_whose_turn_it_is(guarded: Running) -> None:
    guarded.ask("POST", "/v1/images/generations", {**DRAW, "user": "somebody else"}, ANN)
    assert guarded.engine.works[-1].client == "token:ann"
