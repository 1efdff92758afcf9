"""Pages of other sites get nothing, and every answer above 399 is one sentence in JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.serve.http.guards import own_origins
from tests.serve.server.running import DRAW, Running

ROUTES = (
    ("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/v1/models"),
    ("GET", "/v1/models/plain"), ("POST", "/v1/images/generations"), ("POST", "/v1/jobs"), ("GET", "/v1/jobs/x"),
    ("GET", "/v1/jobs/x/events"), ("DELETE", "/v1/jobs/x"), ("GET", "/v1/usage"), ("GET", "/nothing"),
)  # fmt: skip


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "LOCALHOST:{}", "[::1]:{}", "pictures.example",
                                  "pictures.example:{}"])  # fmt: skip
def test_our_own_names(server: Running, host: str) -> None:
    assert server.ask("GET", "/health", Host=host.format(server.port)).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{}", "127.0.0.1", "localhost", "127.0.0.1:1", "127.0.0.1.evil.example:{}",
     "0.0.0.0:{}", "127.0.0.1:{}.", "localhost.:{}", "user@127.0.0.1:{}", "127.0.0.1:{}, evil.example", "", "[::1]",
     "2130706433:{}", "evil.pictures.example", "pictures.example:1"],
)  # fmt: skip
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_foreign_names(server: Running, host: str, method: str, path: str) -> None:
    answer = server.ask(method, path, DRAW if method == "POST" else None, Host=host.format(server.port))
    assert answer.status in (400, 403) and answer.error["code"] in (
        "foreign_host",
        "invalid_host",
        "invalid_http",
    )


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_name_and_two(server: Running, method: str, path: str) -> None:
    own = f"Host: 127.0.0.1:{server.port}\r\n"
    body = "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}" if method == "POST" else "\r\n"
    for hosts in ("", own + own, own + "Host: evil.example\r\n"):
        answer = server.raw(f"{method} {path} HTTP/1.1\r\n{hosts}{body}".encode())
        assert answer.status == 400 and answer.error["code"] == "invalid_host"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://127.0.0.1:{}"}, 200),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "none"}, 200),
        ({"Host": "pictures.example", "Origin": "https://pictures.example"}, 200),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "https://127.0.0.1:{}"}, 403),
        ({"Origin": "http://localhost:{}"}, 403),  # ours, but not the one that was asked
        ({"Host": "evil.example:{}", "Origin": "http://evil.example:{}"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Sec_Fetch_Site": "anything"}, 403),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("POST", "/v1/images/generations")])
def test_pages(server: Running, headers: dict[str, str], status: int, method: str, path: str) -> None:
    said = {name: value.format(server.port) for name, value in headers.items()}
    answer = server.ask(method, path, DRAW if method == "POST" else None, **said)
    assert answer.status == status
    assert not any(name.startswith("access-control") for name in answer.headers)
    if status != 200:
        assert answer.error["type"] == "permission_error"


def test_no_preflight(server: Running) -> None:
    answer = server.ask("OPTIONS", "/v1/images/generations", Access_Control_Request_Method="POST")
    assert answer.status == 405 and answer.error and answer.headers["allow"] == "POST"
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json2", "", "text/json"]
)
@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/images/edits", "/v1/jobs", "/v1/embeddings"])
def test_other_content_types(server: Running, kind: str, path: str) -> None:
    answer = server.ask("POST", path, DRAW, Content_Type=kind)
    assert answer.status == 415 and answer.error["code"] == "unsupported_media_type"


def test_content_types_that_are_read(server: Running) -> None:
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        assert server.ask("POST", "/v1/images/generations", DRAW, Content_Type=kind).status == 200


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip", "zstd"])
def test_compressed_bodies(server: Running, coding: str) -> None:
    answer = server.ask("POST", "/v1/images/generations", DRAW, Content_Encoding=coding)
    assert answer.status == 415 and answer.error["code"] == "unsupported_encoding"


def test_no_websocket(server: Running) -> None:
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Key": "x",
        "Sec_WebSocket_Version": "13",
    }
    answer = server.ask("GET", "/v1/jobs/x/events", **headers)
    assert answer.status == 400 and answer.error["code"] == "no_websocket"
    answer = server.ask("POST", "/v1/images/generations", DRAW, Upgrade="h2c", Connection="Upgrade")
    assert answer.status == 400 and answer.error["code"] == "no_upgrade"
    answer = server.ask("GET", "/health", Upgrade="h2c", Connection="Upgrade")
    assert answer.status == 200 and answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", "/v1", 404), ("GET", "/v1/images/generations", 405), ("POST", "/health", 405),
        ("PUT", "/v1/jobs", 405), ("PATCH", "/v1/models", 405), ("TRACE", "/health", 405), ("GET", "/health/", 404),
        ("DELETE", "/v1/jobs/", 404), ("GET", "/static/../../etc/passwd", 404), ("GET", "//health", 404),
    ],
)  # fmt: skip
def test_errors_are_told_in_one_way(server: Running, method: str, path: str, status: int) -> None:
    answer = server.ask(method, path, {} if method in ("POST", "PUT", "PATCH") else None)
    assert answer.status == status and answer.error
    assert answer.headers["x-content-type-options"] == "nosniff" and "server" not in answer.headers


@pytest.mark.parametrize(
    "id",
    ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "job-00000000-" + "0" * 32, "x%00y",
     "a" * 3000, "..\\..\\windows", "%ff", "'; DROP TABLE jobs; --".replace(" ", "%20"), "job-1234/../../jobs.sqlite"],
)  # fmt: skip
def test_ids_are_looked_up(server: Running, id: str) -> None:
    """In a table, in every route that takes one."""
    places = (
        "/v1/jobs/{}",
        "/v1/jobs/{}/events",
        "/v1/jobs/{}/images/0",
        "/v1/models/{}",
        "/v1/images/drawn/{}",
    )
    for path in places:
        answer = server.ask("GET", path.format(id))
        assert answer.status == 404 and answer.error and b"root:" not in answer.body
    assert server.ask("DELETE", f"/v1/jobs/{id}").status in (404, 405)


def test_an_index_of_many_digits(server: Running) -> None:
    """More than Python turns into a number."""
    for digits in (1, 400, 5000):
        answer = server.ask("GET", f"/v1/jobs/x/images/{'9' * digits}")
        assert answer.status == 404 and answer.error["code"] == "not_found"


def test_every_method_of_a_route_is_named(server: Running) -> None:
    for path, methods in (("x", "DELETE, GET, HEAD"), ("x/events", "GET, HEAD"), ("x/images/0", "GET, HEAD")):
        answer = server.ask("PUT", f"/v1/jobs/{path}", {})
        assert answer.status == 405 and answer.headers["allow"] == methods
        assert answer.error["message"].endswith(f"use {methods}.")


def test_forms_that_are_damaged_are_not_logged(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Each would be a line or more, and may hold what a person wrote."""
    kind = "multipart/form-data; boundary=x"
    for body in (b"junk", b"--x\r\n\xff: 1\r\n\r\n", b"--x\r\n\r\n--x--\r\nmore"):
        assert server.ask("POST", "/v1/images/edits", body, Content_Type=kind).status == 400
    assert not caplog.records


def test_a_mistake_of_ours_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Running(tmp_path / "state") as running:

        def broken(work: object) -> None:
            raise KeyError("/home/someone/" + "terces"[::-1])

        running.engine.submit = broken
        answer = running.ask("POST", "/v1/images/generations", DRAW)
        assert (
            answer.status == 500 and answer.error["code"] == "server_error" and b"secret" not in answer.body
        )
        assert running.ask("GET", "/health").status == 200
    said = capsys.readouterr().err
    assert answer.headers["x-request-id"] in said and "KeyError" in said and "secret" not in said


def test_request_ids_differ(server: Running) -> None:
    ids = {server.ask("GET", "/health", X_Request_Id="mine").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5 and "mine" not in ids


def test_own_names_without_a_port_are_those_of_port_80() -> None:
    assert "localhost" in own_origins("127.0.0.1", 80, ()) and "localhost" not in own_origins(
        "127.0.0.1", 81, ()
    )
    assert "192.168.1.5:81" in own_origins("192.168.1.5", 81, ()) and "0.0.0.0:81" not in own_origins(
        "0.0.0.0", 81, ()
    )
