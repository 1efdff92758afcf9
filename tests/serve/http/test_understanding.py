"""Embeddings by the real client; classes, and pictures made from pictures."""

import asyncio
import base64
import io
import struct

import openai
import pytest
from openai.types import CreateEmbeddingResponse
from PIL import Image

from tests.serve.fake_engine import EYES, PLAIN, picture
from tests.serve.http.front import PICTURE, said

URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
FIRST, SECOND = [0.5, -1.0, 0.25, 3.0], [1.0, -1.0, 0.25, 3.0]


def test_embeddings_by_the_client(server):
    """Which asks for base64 by itself."""
    answer = server.client().embeddings.create(input=[URL, URL], model="eyes")
    assert [entry.embedding for entry in answer.data] == [FIRST, SECOND]
    assert [entry.index for entry in answer.data] == [0, 1]
    CreateEmbeddingResponse.model_validate(answer.to_dict(), strict=True)
    assert answer.model == "eyes" and answer.usage.total_tokens == 0
    assert server.work.kind == "embed" and server.work.pictures == (PICTURE, PICTURE)


def test_embeddings_by_the_async_client(server):
    async def ask():
        async with server.client(openai.AsyncOpenAI) as client:
            return await client.embeddings.create(
                input=URL, model="eyes", encoding_format="float", dimensions=4
            )

    assert asyncio.run(ask()).data[0].embedding == FIRST


def test_encodings(server):
    body = {"input": URL, "model": "eyes"}
    assert server.post("/v1/embeddings", body).json()["data"][0]["embedding"] == FIRST
    packed = server.post("/v1/embeddings", body | {"encoding_format": "base64"}).json()["data"][0][
        "embedding"
    ]
    assert struct.unpack("<4f", base64.b64decode(packed)) == tuple(FIRST)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": None}, "missing_required_parameter", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": 5}, "invalid_type", "input"),
        ({"input": [1, 2]}, "invalid_type", "input"),
        ({"input": [[1, 2]]}, "invalid_type", "input"),
        ({"input": [URL, None]}, "invalid_type", "input"),
        ({"input": [URL] * 5}, "invalid_value", "input"),
        ({"input": "a text"}, "unsupported_parameter", "input"),
        ({"input": "https://example.org/a.png"}, "unsupported_parameter", "input"),
        ({"input": URL[:-3]}, "invalid_image", "input"),
        ({"input": URL[:60] + " " + URL[60:]}, "invalid_image", "input"),
        ({"input": "data:image/png;base64,AAAA"}, "invalid_image", "input"),
        ({"input": URL, "dimensions": 3}, "invalid_value", "dimensions"),
        ({"input": URL, "encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"input": URL, "n": 1}, "unsupported_parameter", "n"),
        ({"input": URL, "model": "plain"}, "invalid_value", "model"),
    ],
)
def test_each_field_wrong(server, body, code, param):
    said(server.post("/v1/embeddings", {"model": "eyes"} | body), 400, code, param)
    assert not server.engine.works


def test_bodies_with_pictures_may_be_larger(server):
    """The limit of pictures holds, not that of JSON."""
    large = picture(1, 8, 8) + b"\0" * 2_000_000
    url = "data:image/png;base64," + base64.b64encode(large).decode()
    assert server.post("/v1/embeddings", {"input": url, "model": "eyes"}).status_code == 200
    body = b'{"model": "eyes", "input": "' + b"x" * 30_000_000 + b'"}'
    said(server.post("/v1/embeddings", body), 413, "request_too_large")


def test_classify(server):
    files = [("image", ("upload", PICTURE)), ("image", ("upload", PICTURE))]
    answer = server.post("/v1/classify", files=files, data={"model": "eyes"}).json()
    shares = {"cat": 0.5, "dog": 0.3, "fox": 0.2}
    classes = [{"label": label, "probability": share} for label, share in shares.items()]
    assert answer["data"][1] == {"object": "classification", "index": 1, "classes": classes}
    assert answer["model"] == "eyes" and answer["system_fingerprint"] == EYES.fingerprint
    said(server.post("/v1/classify", files=files * 3), 400, "invalid_multipart", "image")
    said(server.post("/v1/classify", files=files, data={"n": "1"}), 400, "unsupported_parameter", "n")
    said(server.post("/v1/classify", files=[("image", ("upload", b""))]), 400, "invalid_image", "image")


def test_apply(server):
    """By the only model that can, which need not be named."""
    files = [("image", ("upload", picture(1, 6, 4))), ("image", ("upload", picture(2, 3, 5)))]
    data = {"seed": "4", "steps": "3", "output_format": "webp"}
    answer = server.post("/v1/apply", files=files, data=data).json()
    assert [entry["size"] for entry in answer["data"]] == ["8x12", "10x6"]
    assert [entry["seed"] for entry in answer["data"]] == [4, 5] and server.work.settings == {"steps": 3}
    assert Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).format == "WEBP"
    response = server.post("/v1/apply", files=files, data={"response_format": "url"})
    assert response.json()["data"][0]["url"] in server.kept
    told = server.post("/v1/apply", files=files, data={"prompt": "night", "label": "cat"})
    assert told.status_code == 200 and told.headers["x-limner-ignored"] == "prompt, label"
    assert "x-limner-ignored" not in server.post("/v1/apply", files=files, data={"prompt": ""}).headers
    said(server.post("/v1/apply", files=files, data={"n": "2"}), 400, "unsupported_parameter", "n")
    said(server.post("/v1/apply", files=files, data={"steps": "0"}), 400, "invalid_value", "steps")


def test_where_no_model_can(server):
    server.reset(cards=(PLAIN,))
    files = [("image", ("upload", PICTURE))]
    assert "No model here can classify" in said(
        server.post("/v1/classify", files=files), 400, "invalid_value", "model"
    )
