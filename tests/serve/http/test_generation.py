"""images.generate by the real client, and each way in which a request can be wrong."""

import asyncio
import base64
import io
import time
from dataclasses import replace

import openai
import pytest
from openai.types import ImagesResponse
from PIL import Image

from limner.serve.messages import Event
from tests.serve.fake_engine import LABELS, PLAIN, colour
from tests.serve.http.front import front, said
from tests.serve.http.test_generation_wrong import GENERATIONS, wrong


def opened(entry):
    return Image.open(io.BytesIO(base64.b64decode(entry.b64_json)))


def test_images_by_the_client(server):
    answer = server.client().images.generate(prompt="", model="plain", n=3, extra_body={"seed": 7})
    assert [entry.seed for entry in answer.data] == [7, 8, 9]
    for entry in answer.data:
        image = opened(entry)
        assert (
            image.format == "PNG" and image.size == (12, 8) and image.getpixel((0, 0)) == colour(entry.seed)
        )
    assert (answer.size, answer.quality, answer.background, answer.output_format) == (
        "12x8",
        "medium",
        "opaque",
        "png",
    )
    assert answer.usage.images == 3 and answer.usage.evaluations == 24 and answer.usage.total_tokens == 0
    assert answer.system_fingerprint == PLAIN.fingerprint and answer.model == "plain"
    assert abs(answer.created - time.time()) < 60
    ImagesResponse.model_validate(answer.to_dict(), strict=True)
    assert server.work.client == "at:here" and server.work.prompt is None


def test_images_by_the_async_client(server):
    async def ask():
        async with server.client(openai.AsyncOpenAI) as client:
            return await client.images.generate(prompt="a red house", model="text", extra_body={"seed": 3})

    answer = asyncio.run(ask())
    assert answer.data[0].seed == 3 and server.work.prompt == "a red house"
    assert answer.data[0].revised_prompt is None


def test_a_seed_is_chosen_and_told(server):
    client = server.client()
    seeds = {client.images.generate(prompt="", model="plain").data[0].seed for _ in range(3)}
    assert len(seeds) == 3 and all(0 <= seed < 2**63 for seed in seeds)


def test_largest_seed(server):
    body = {"seed": 2**63 - 1}
    assert (
        server.client().images.generate(prompt="", model="plain", extra_body=body).data[0].seed == 2**63 - 1
    )
    assert "choose 9223372036854775806 or less" in wrong(
        server, param="seed", code="invalid_value", n=2, **body
    )


def test_a_prompt_is_the_name_of_a_class(server):
    answer = server.client().images.generate(prompt="dog", model="house/labels")
    assert (
        server.work.label == "dog" and server.work.prompt is None and answer.data[0].revised_prompt == "dog"
    )
    assert "Did you mean dog?" in wrong(
        server, model="house/labels", prompt="dogg", param="prompt", code="invalid_value"
    )
    assert "cat, dog and fox" in wrong(
        server, model="house/labels", prompt="", param="prompt", code="invalid_value"
    )


def test_labels(server):
    raw = server.client().images.with_raw_response.generate(
        prompt="a sunny day", model="house/labels", extra_body={"label": "fox"}
    )
    assert server.work.label == "fox" and raw.headers["x-limner-ignored"] == "prompt"
    assert "Did you mean fox?" in wrong(
        server, model="house/labels", label="foxx", param="label", code="invalid_value"
    )
    assert "no classes" in wrong(server, label="cat", param="label", code="unsupported_parameter")


def test_an_unused_prompt_is_told(server):
    raw = server.client().images.with_raw_response.generate(
        prompt="a cat", model="plain", style="vivid", moderation="low"
    )
    assert "Not used" in raw.parse().data[0].revised_prompt
    assert set(raw.headers["x-limner-ignored"].split(", ")) == {"prompt", "style", "moderation"}


@pytest.mark.parametrize(
    ("quality", "scale", "told"),
    [("low", 0.5, "low"), ("medium", 1, "medium"), ("high", 2, "high"), ("xhigh", 4, "xhigh"), ("max", 4, "max"),
     ("standard", 1, "medium"), ("hd", 2, "high"), ("auto", 1, "medium")],
)  # fmt: skip
def test_quality(server, quality, scale, told):
    answer = server.client().images.generate(prompt="", model="plain", quality=quality)
    assert server.work.scale_steps == scale and answer.quality == told
    assert answer.usage.evaluations == 8 * scale


def test_quality_times_steps_is_bounded(server):
    assert "250" in wrong(server, quality="max", steps=63, param="quality", code="invalid_value")
    assert (
        server.post(GENERATIONS, {"prompt": "", "model": "plain", "quality": "max", "steps": 62}).status_code
        == 200
    )


def test_settings_of_the_family(server):
    body = {
        "steps": 20,
        "solver": "heun",
        "guidance": 3,
        "clip": False,
        "interval": [0.2, 0.8],
        "autoguidance": "text",
    }
    server.client().images.generate(prompt="", model="plain", extra_body=body)
    assert server.work.settings == body | {"guidance": 3.0}


def test_what_has_no_effect(server):
    response = server.post(GENERATIONS, {
        "prompt": "", "model": "plain", "strength": 0.5, "repaints": 2, "input_fidelity": "high", "partial_images": 2,
        "output_compression": 50, "user": "u", "safety_identifier": "s",
    })  # fmt: skip
    assert set(response.headers["x-limner-ignored"].split(", ")) == {
        "strength", "repaints", "input_fidelity", "partial_images", "output_compression", "user",
    }  # fmt: skip
    assert server.work.partials == 0 and server.work.client == "user:s"
    assert response.json()["safety_identifier"] == "s"
    assert "x-limner-ignored" not in server.post(GENERATIONS, {"prompt": "", "model": "plain"}).headers


@pytest.mark.parametrize(("format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats(server, format, kind):
    answer = server.client().images.generate(
        prompt="", model="plain", output_format=format, output_compression=80
    )
    assert opened(answer.data[0]).format == kind and answer.output_format == format
    assert server.work.form.compression == 80


def test_clips_are_webp(server):
    server.reset(cards=(replace(PLAIN, frames=4),))
    answer = server.client().images.generate(prompt="", model="plain")
    assert answer.output_format == "webp" and opened(answer.data[0]).format == "WEBP"
    assert "webp" in wrong(server, output_format="png", param="output_format", code="invalid_value")


def test_background(server):
    client = server.client()
    clear = client.images.generate(prompt="cat", model="house/labels", background="transparent")
    assert clear.background == "transparent" and opened(clear.data[0]).mode == "RGBA"
    assert client.images.generate(prompt="cat", model="house/labels").background == "transparent"
    opaque = client.images.generate(prompt="cat", model="house/labels", background="opaque")
    assert opaque.background == "opaque" and opened(opaque.data[0]).mode == "RGB"
    wrong(server, background="transparent", param="background", code="invalid_value")
    wrong(
        server,
        model="house/labels",
        prompt="cat",
        background="transparent",
        output_format="jpeg",
        param="background",
    )


def test_sizes(server):
    """WIDTHxHEIGHT: of an image of 12 columns and 8 rows."""
    for size in ("auto", "12x8", None):
        assert (
            server.post(GENERATIONS, {"prompt": "", "model": "plain", "size": size}).json()["size"] == "12x8"
        )
    assert "12x8" in wrong(server, size="8x12", param="size", code="invalid_value")
    for size in ("1024x1024", "12", "12x", "0x0", "-12x8", "012x8", "12X8", "١٢x٨"):
        wrong(server, size=size, param="size", code="invalid_value")
    wrong(server, size="1" * 50, param="size", code="string_above_max_length")


def test_sizes_with_resize():
    with front(resize=True) as server:
        server.reset()
        answer = server.client().images.generate(prompt="", model="plain", size="36x24")
        assert opened(answer.data[0]).size == (36, 24) and answer.size == "36x24"
        assert (server.work.form.height, server.work.form.width) == (24, 36)
        assert "proportions" in wrong(server, size="24x36", param="size", code="invalid_value")
        wrong(server, size="9000x6000", param="size", code="invalid_value")


def test_paths_to_images(server):
    answer = server.client().images.generate(prompt="", model="plain", n=2, response_format="url")
    assert [entry.b64_json for entry in answer.data] == [None, None]
    assert all(server.kept[entry.url][:4] == b"\x89PNG" for entry in answer.data)


def test_between_two_seeds(server):
    answer = server.client().images.generate(prompt="", model="plain", n=3, extra_body={"between": [1, 5]})
    assert server.work.between == (1, 5) and len(server.work.seeds) == 3
    assert [entry.share for entry in answer.data] == [0, 0.5, 1]
    wrong(server, between=[1, 5], param="n", code="invalid_value")
    wrong(server, between=[1, 5], n=2, seed=1, param="between", code="invalid_value")
    wrong(server, between=[1], n=2, param="between", code="invalid_value")
    wrong(server, between="1 5", n=2, param="between", code="invalid_type")


def test_exceptions_of_the_client(server):
    client = server.client()
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="x", model="nothing")
    assert (caught.value.code, caught.value.param, caught.value.type) == (
        "model_not_found",
        "model",
        "not_found_error",
    )
    with pytest.raises(openai.BadRequestError, match="n is out of range: choose 1 to 10") as caught:
        client.images.generate(prompt="x", model="plain", n=11)
    assert (caught.value.code, caught.value.param, caught.value.type) == (
        "invalid_value",
        "n",
        "invalid_request_error",
    )
    server.engine.fails = Event(
        0, "failed", status=422, code="odd", param="seed", message="This cannot be: try another."
    )
    with pytest.raises(openai.UnprocessableEntityError, match="This cannot be") as caught:
        client.images.generate(prompt="x", model="plain")
    assert (caught.value.code, caught.value.param) == ("odd", "seed")
    server.engine.fails = Event(
        0, "failed", status=500, code="server_error", message="The network failed: try again."
    )
    with pytest.raises(openai.InternalServerError, match="The network failed") as caught:
        client.images.generate(prompt="x", model="plain")
    server.engine.stops = True
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt="x", model="plain")
    assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"] == "1"


def test_what_took_too_long_is_not_asked_again(server):
    server.engine.fails = Event(
        0, "failed", status=504, code="timeout", message="It took too long: ask for less."
    )
    with pytest.raises(openai.InternalServerError, match="too long"):
        server.client().with_options(max_retries=2).images.generate(prompt="x", model="plain")
    assert len(server.engine.works) == 1


def test_one_image_that_fails_fails_the_request(server):
    server.engine.fails = Event(
        0, "failed", status=400, code="invalid_image", message="It fails: try another."
    )
    server.engine.fails_at = 2
    response = server.post(GENERATIONS, {"prompt": "", "model": "plain", "n": 4})
    assert said(response, 400, "invalid_image") == "It fails: try another."


def test_a_client_that_leaves_cancels(server):
    server.hold()
    with pytest.raises(openai.APITimeoutError):
        server.client(timeout=0.3).images.generate(prompt="x", model="plain")
    deadline = time.monotonic() + 5
    while server.engine.cancelled != [server.work.id]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.go()
    assert server.client().images.generate(prompt="x", model="plain").data
    assert [work for work, _ in server.engine.drawn] == [server.work.id]


def test_a_body_sent_again_is_known(server):
    """By its digest, though its seed is chosen anew."""
    for prompt in ("a", "a", "b"):
        server.post(GENERATIONS, {"prompt": prompt, "model": "text"})
    first, again, other = (asked.digest for asked in server.asked)
    assert first == again != other and first


def test_metadata():
    with front(metadata=True, seconds=5.0) as server:
        server.post(GENERATIONS, {"prompt": "cat", "model": LABELS.id, "seed": 4, "steps": 3})
        assert '"label": "cat"' in server.work.form.metadata and '"steps": 3' in server.work.form.metadata
        assert server.work.seconds == 5.0


def test_no_metadata_by_default(server):
    server.post(GENERATIONS, {"prompt": "secret", "model": "text"})
    assert server.work.form.metadata == ""
