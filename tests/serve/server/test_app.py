"""The whole app: its routes, its links, the real client, and what importing it costs."""

from __future__ import annotations

import base64
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from limner.serve.http.links import Links
from tests.serve.server.running import DRAW, Running
from tests.serve.server.test_admission import Held


def test_the_models(server: Running) -> None:
    assert [model["id"] for model in server.ask("GET", "/v1/models").json["data"]] == list(
        server.engine.cards
    )
    assert server.ask("GET", "/v1/models/house/labels").json["labels"] == ["cat", "dog", "fox"]
    assert server.ask("GET", "/v1/models/none").status == 404
    assert server.ask("GET", "/ready").json == {"status": "ready", "models": list(server.engine.cards)}


def test_the_document_names_every_route(server: Running) -> None:
    paths = server.ask("GET", "/openapi.json").json["paths"]
    assert {"/health", "/ready", "/metrics", "/v1/usage", "/v1/jobs", "/v1/jobs/{id}", "/v1/jobs/{id}/events",
            "/v1/jobs/{id}/images/{index}", "/v1/images/generations", "/v1/models"} <= set(paths)  # fmt: skip
    for path in paths:
        method = next(iter(paths[path]))
        answer = server.ask(
            method.upper(),
            path.replace("{id}", "x").replace("{index}", "0"),
            {} if method == "post" else None,
        )
        assert answer.status != 405 and (
            answer.status != 404 or "There is no such route" not in answer.json["error"]["message"]
        )


def test_head(server: Running) -> None:
    answer = server.raw(
        f"HEAD /health HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()[:-2] + b"\r\n"
    )
    assert answer.status == 200


def test_the_head_of_events_is_all(tmp_path: Path) -> None:
    """Whoever asked for no more may ask again on the same connection."""
    with Running(tmp_path / "state", engine=Held()) as running:
        job = running.ask("POST", "/v1/jobs", {**DRAW, "type": "generation"}).json["id"]
        with contextlib.closing(running.client()) as client:
            client.ask_only("HEAD", f"/v1/jobs/{job}/events")
            status, headers = client.read_head()
            assert status == 200 and headers["content-type"].startswith("text/event-stream")
            assert client.ask("GET", "/health").status == 200


def test_links_expire(server: Running) -> None:
    said = server.ask(
        "POST", "/v1/images/generations", {**DRAW, "response_format": "url", "output_format": "webp"}
    ).json
    path = said["data"][0]["url"]
    image = server.ask("GET", path)
    assert image.headers["content-type"] == "image/webp" and image.body.startswith(b"RIFF")
    name = path.rpartition("/")[2]
    data, format, _ = server.front.links.kept[name]
    server.do(lambda: server.front.links.kept.__setitem__(name, (data, format, 0.0)))
    gone = server.ask("GET", path)
    assert gone.status == 404 and gone.error and not server.front.links.kept


def test_links_are_bounded() -> None:
    links = Links(largest=25)
    paths = [links.keep(bytes(10), "png") for _ in range(4)]
    assert len(set(paths)) == 4 and len(links.kept) == 2 and links.size == 20
    assert [path.rpartition("/")[2] in links.kept for path in paths] == [False, False, True, True]
    links = Links(seconds=0.01)
    links.keep(bytes(10), "png")
    time.sleep(0.02)
    links.forget()
    assert not links.kept and links.size == 0


def test_the_real_client(tmp_path: Path) -> None:
    """Its errors, with what they say, and its tries again, which obey Retry-After."""
    file = tmp_path / "tokens"
    file.write_text("ann ann-token")
    file.chmod(0o600)
    with Running(tmp_path / "state", {"token_file": str(file), "max_client": 2}) as running:
        url = f"http://127.0.0.1:{running.port}/v1"
        client = openai.OpenAI(base_url=url, api_key="ann-token", max_retries=0)
        image = client.images.generate(model="plain", prompt="x", response_format="b64_json").data[0]
        assert base64.b64decode(image.b64_json).startswith(b"\x89PNG")
        with pytest.raises(openai.RateLimitError) as limited:
            client.images.generate(model="plain", prompt="x", n=3)
        assert (
            limited.value.code == "rate_limit_exceeded"
            and limited.value.response.headers["retry-after"] == "1"
        )
        assert limited.value.request_id.startswith("req_")
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("none")
        assert missing.value.code == "model_not_found" and missing.value.param == "model"
        with pytest.raises(openai.AuthenticationError, match="token is not one"):
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
        running.do(lambda: setattr(running.front.admission, "draining", True))
        with pytest.raises(openai.InternalServerError) as ending:
            client.images.generate(model="plain", prompt="x")
        assert ending.value.status_code == 503 and ending.value.code == "shutting_down"
        running.do(lambda: setattr(running.front.admission, "draining", False))
        client.close()


def test_importing_it_brings_no_torch() -> None:
    code = "import sys, limner.serve.http.server; sys.exit(any(n in sys.modules for n in ('torch', 'numpy', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
