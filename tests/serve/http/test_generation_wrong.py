"""Each way in which a request to draw can be wrong: status, code and param, and no work for the engine."""

import pytest

from tests.serve.fake_engine import EYES, PLAIN
from tests.serve.http.front import said

GENERATIONS = "/v1/images/generations"


def wrong(server, status=400, code=None, param=None, **body):
    """The message of a request that is refused; a model and a prompt are given where the body has none."""
    before = len(server.engine.works)
    body = {"model": "plain", "prompt": "x"} | body
    response = server.post(
        GENERATIONS, {name: value for name, value in body.items() if value is not Ellipsis}
    )
    message = said(response, status, code, param)
    assert len(server.engine.works) == before
    return message


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("prompt", ..., "missing_required_parameter"),
        ("prompt", None, "invalid_type"),
        ("prompt", 1, "invalid_type"),
        ("prompt", ["a"], "invalid_type"),
        ("prompt", "x" * 32_001, "string_above_max_length"),
        ("prompt", "a\ud800", "invalid_value"),
        ("model", 1, "invalid_type"),
        ("model", "x" * 1000, "string_above_max_length"),
        ("n", 0, "invalid_value"),
        ("n", 11, "invalid_value"),
        ("n", -1, "invalid_value"),
        ("n", "3", "invalid_type"),
        ("n", 1.5, "invalid_type"),
        ("n", True, "invalid_type"),
        ("n", 10**400, "invalid_value"),
        ("size", 512, "invalid_type"),
        ("quality", "best", "invalid_value"),
        ("output_format", "gif", "unsupported_parameter"),
        ("output_format", "svg", "unsupported_parameter"),
        ("output_format", "bmp", "invalid_value"),
        ("output_compression", 101, "invalid_value"),
        ("background", "red", "invalid_value"),
        ("response_format", "file", "invalid_value"),
        ("partial_images", 4, "invalid_value"),
        ("partial_images", -1, "invalid_value"),
        ("stream", "yes", "invalid_type"),
        ("user", "x" * 257, "string_above_max_length"),
        ("safety_identifier", 5, "invalid_type"),
        ("moderation", "none", "invalid_value"),
        ("seed", -1, "invalid_value"),
        ("seed", 2**63, "invalid_value"),
        ("seed", 10**400, "invalid_value"),
        ("seed", 1.5, "invalid_type"),
        ("svg", {"model": "x"}, "unsupported_parameter"),
        ("frame_count", 3, "unsupported_parameter"),
        ("frame_duration_ms", 100, "unsupported_parameter"),
        ("complexity", "low", "unsupported_parameter"),
        ("markup", "x", "unsupported_parameter"),
        ("image_url", "https://example.org", "unsupported_parameter"),
        ("image", "x", "unsupported_parameter"),
        ("steps", 0, "invalid_value"),
        ("steps", 251, "invalid_value"),
        ("steps", 10**9, "invalid_value"),
        ("steps", 2.5, "invalid_type"),
        ("solver", "zzz", "invalid_value"),
        ("guidance", -0.1, "invalid_value"),
        ("guidance", 20.5, "invalid_value"),
        ("guidance", "high", "invalid_type"),
        ("strength", 0, "invalid_value"),
        ("churn", 1, "invalid_value"),
        ("repaints", 9, "invalid_value"),
        ("clip", "yes", "invalid_type"),
        ("interval", 0.5, "invalid_type"),
        ("autoguidance", "../../etc/passwd", "invalid_value"),
        ("autoguidance", "nothing", "invalid_value"),
        ("weaker", "/etc/passwd", "unsupported_parameter"),
        ("guidanse", 2, "unsupported_parameter"),
    ],
)
def test_each_field_wrong(server, name, value, code):
    wrong(server, code=code, param=name, **{name: value})


def test_unknown_names(server):
    assert "Did you mean steps " in wrong(server, stepz=2)
    assert "Did you mean prompt?" in wrong(server, promt="x")
    wrong(server, code="unsupported_parameter", param=None, **{"../x": 1})


@pytest.mark.parametrize("number", [b"NaN", b"Infinity"])
def test_numbers_that_are_not_json(server, number):
    body = b'{"prompt": "", "model": "plain", "guidance": %s}' % number
    said(server.post(GENERATIONS, body), 400, "invalid_json")


def test_numbers_too_large(server):
    for number in (b"1e999", b"-1e999", b"9" * 400):
        body = b'{"prompt": "", "model": "plain", "guidance": %s}' % number
        said(server.post(GENERATIONS, body), 400, "invalid_value", "guidance")


def test_null_is_as_if_left_out(server):
    body = dict.fromkeys([
        "n", "size", "quality", "output_format", "output_compression", "background", "response_format", "stream",
        "user", "partial_images", "moderation", "style", "seed", "label", "between", "steps", "svg", "frame_count",
    ])  # fmt: skip
    response = server.post(GENERATIONS, body | {"prompt": "", "model": "plain"})
    assert response.status_code == 200 and "x-limner-ignored" not in response.headers
    assert server.work.settings == {}


def test_models(server):
    assert "plain, house/labels and text" in wrong(
        server, model=..., param="model", code="missing_required_parameter"
    )
    assert "Did you mean plain?" in wrong(server, 404, model="plan", param="model", code="model_not_found")
    assert "cannot draw" in wrong(server, model="eyes", param="model", code="invalid_value")
    for name in ("../plain", "/etc/passwd", "plain/../text", "plain\0", "house", "."):
        wrong(server, 404, model=name, param="model", code="model_not_found")


def test_the_only_model_need_not_be_named(server):
    server.reset(cards=(PLAIN, EYES))
    assert server.post(GENERATIONS, {"prompt": ""}).json()["model"] == "plain"
    server.reset(cards=(EYES,))
    assert "can draw" in wrong(server, model=..., param="model")


def test_before_the_models_are_loaded(server):
    server.reset(cards=())
    response = server.post(GENERATIONS, {"prompt": "", "model": "plain"})
    said(response, 503, "engine_starting")
    assert response.headers["retry-after"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_other_content_types(server, kind):
    said(
        server.post(GENERATIONS, b'{"prompt": ""}', headers={"content-type": kind}),
        415,
        "unsupported_media_type",
    )


def test_large_bodies(server):
    said(server.post(GENERATIONS, b'{"prompt": "' + b"x" * 2**20 + b'"}'), 413, "request_too_large")
