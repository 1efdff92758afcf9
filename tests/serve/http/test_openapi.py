"""The OpenAPI document says what the readers take, since both are made of the same tables."""

import json

import pytest

from limner.serve.http.asked import Caller
from limner.serve.http.bodies import Form
from limner.serve.http.errors import ApiError
from limner.serve.http.openapi import document
from limner.serve.http.reading import Defaults
from limner.serve.http.requests import parse
from limner.serve.http.tables import TABLES
from tests.serve.fake_engine import CARDS, PLAIN, TEXT, FakeEngine
from tests.serve.http.front import PICTURE

DOCUMENT = document({card.id: card for card in CARDS})


def schema(route):
    table = TABLES[route]
    kind = "application/json" if table.pictures is None else "multipart/form-data"
    return DOCUMENT["paths"][table.path]["post"]["requestBody"]["content"][kind]["schema"]


def ask(route, **body):
    return parse(route, body, None, FakeEngine(), Caller(), Defaults(), job=False)


def test_it_is_served(server):
    found = server.http.get(f"{server.address}/openapi.json").json()
    assert found["openapi"] == "3.1.0" and set(found["paths"]) >= {table.path for table in TABLES.values()}
    assert found == json.loads(json.dumps(DOCUMENT))


def test_references_lead_somewhere():
    text = json.dumps(DOCUMENT)
    assert text.count('"$ref"') == text.count('"$ref": "#/components/schemas/Error"') > 0
    assert "Error" in DOCUMENT["components"]["schemas"]


def test_required_fields_are_those_that_are_missed():
    assert schema("generation")["required"] == ["prompt"]
    assert schema("edit")["required"] == ["prompt", "image"] and schema("embedding")["required"] == ["input"]
    with pytest.raises(ApiError, match="prompt is missing"):
        ask("generation", model="plain")


@pytest.mark.parametrize("name", sorted(schema("generation")["properties"]))
def test_each_bound_is_the_reader_s(name):
    """The value at a bound is read, the one beyond is not; so with the choices and the length."""
    said = schema("generation")["properties"][name]

    def takes(value):
        n = {"n": 2} if name == "between" else {}
        try:
            ask("generation", **{"model": "plain", "prompt": ""} | n | {name: value})
        except ApiError as error:
            assert error.param == name
            return False
        return True

    kind = said["type"][0] if isinstance(said["type"], list) else said["type"]
    if "minimum" in said:
        assert takes(said["minimum"]) and not takes(said["minimum"] - 1)
    if "maximum" in said:
        assert takes(said["maximum"]) and not takes(said["maximum"] + 1)
    if "exclusiveMinimum" in said:
        assert not takes(said["exclusiveMinimum"]) and takes(said["exclusiveMinimum"] + 1e-9)
    if "exclusiveMaximum" in said:
        assert not takes(said["exclusiveMaximum"]) and takes(said["exclusiveMaximum"] - 1e-9)
    if "enum" in said and name != "background":
        assert all(takes(choice) for choice in said["enum"]) and not takes("zzz")
    if "maxLength" in said:
        assert not takes("x" * (said["maxLength"] + 1))
    assert takes({"integer": "1", "number": "1", "string": 1, "boolean": 1, "array": 1}[kind]) is False


def test_all_names_are_there():
    assert set(schema("generation")["properties"]) > {"prompt", "steps", "guidance", "seed", "label"}
    with pytest.raises(ApiError, match="zzz is not a parameter"):
        ask("generation", model="plain", prompt="", zzz=1)
    assert schema("generation")["additionalProperties"] is False


def test_a_setting_that_differs_between_models():
    knobs = tuple(
        knob.__class__(**{**vars(knob), "default": 99}) if knob.name == "steps" else knob
        for knob in PLAIN.knobs
    )
    other = TEXT.__class__(**{**vars(TEXT), "knobs": knobs})
    found = document({"a": PLAIN, "b": other})["paths"]["/v1/images/generations"]["post"]["requestBody"]
    steps = found["content"]["application/json"]["schema"]["properties"]["steps"]
    assert [one["default"] for one in steps["anyOf"]] == [8, 99]


def test_jobs_read_the_same_bodies():
    """Their partial images are kept, they are not streamed, and have no deadline."""
    engine, defaults = FakeEngine(), Defaults(seconds=5)
    body = {"type": "generation", "prompt": "", "model": "plain", "partial_images": 2, "stream": True}
    job = parse("generation", body, None, engine, Caller("me"), defaults)
    assert (job.stream, job.work.partials, job.work.seconds, job.work.client) == (False, 2, 0, "token:me")
    again = parse("generation", body | {"seed": job.work.seeds[0]}, None, engine, Caller("me"), defaults)
    assert again.work.seeds == job.work.seeds and again.work.id != job.work.id
    form = Form({"model": ["text"], "prompt": ["x"], "type": ["edit"]}, {"image": [PICTURE]})
    assert parse("edit", None, form, engine, Caller(), defaults).work.pictures == (PICTURE,)
    with pytest.raises(ApiError) as caught:
        parse("edit", body, None, engine, Caller(), defaults)
    assert caught.value.status == 415
