"""models.list and models.retrieve by the real client."""

import asyncio

import openai
import pytest
from openai.types import Model

from tests.serve.fake_engine import CARDS
from tests.serve.http.front import said


def test_list(server):
    found = {model.id: model for model in server.client().models.list()}
    assert list(found) == [card.id for card in CARDS]
    model = Model.model_validate(found["house/labels"].to_dict(), strict=True)
    assert (model.object, model.owned_by, model.created) == ("model", "limner", 1_700_000_001)
    assert (model.family, model.size, model.labels) == ("toy", "16x16", ["cat", "dog", "fox"])
    assert model.reads == ["label", "image", "mask", "blend"] and model.can == ["draw"]
    assert found["plain"].size == "12x8" and found["eyes"].features == 4 and found["upscale"].scale == 2


def test_knobs(server):
    knobs = {knob["name"]: knob for knob in server.client().models.retrieve("plain").knobs}
    assert knobs["steps"] == {
        "name": "steps", "type": "integer", "default": 8, "help": "network calls", "minimum": 1, "maximum": 250,
    }  # fmt: skip
    assert knobs["repaints"]["maximum"] == 8
    assert knobs["solver"]["choices"] == ["euler", "heun", "dpm2m"]
    assert knobs["strength"]["exclusive_minimum"] == 0 and knobs["strength"]["maximum"] == 1
    assert knobs["churn"]["exclusive_maximum"] == 1 and knobs["interval"]["default"] == [0.0, 1.0]
    assert knobs["autoguidance"]["model"] is True


def test_ids_with_a_slash(server):
    assert server.client().models.retrieve("house/labels").id == "house/labels"
    assert server.http.get(f"{server.address}/v1/models/house/labels").json()["id"] == "house/labels"

    async def ask():
        async with server.client(openai.AsyncOpenAI) as client:
            return await client.models.retrieve("house/labels"), [
                model.id async for model in client.models.list()
            ]

    model, listed = asyncio.run(ask())
    assert model.id == "house/labels" and len(listed) == len(CARDS)


def test_unknown_models(server):
    with pytest.raises(openai.NotFoundError, match="Did you mean plain") as caught:
        server.client().models.retrieve("plane")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    for name in ("..%2f..%2fetc%2fpasswd", "%00", "x" * 5000, "house", "house/labels/more", "%ff"):
        said(server.http.get(f"{server.address}/v1/models/{name}"), 404, "model_not_found", "model")


def test_before_they_are_loaded(server):
    server.reset(cards=())
    for path in ("/v1/models", "/v1/models/plain"):
        response = server.http.get(server.address + path)
        said(response, 503, "engine_starting")
        assert response.headers["retry-after"] == "1"
