"""images.edit and images.create_variation by the real client: forms, pictures and masks."""

import asyncio
import io

import openai
import pytest
from PIL import Image

from limner.serve.messages import Event
from tests.serve.fake_engine import GIVEN, PLAIN, TEXT, picture
from tests.serve.http.front import MASK, PICTURE, said
from tests.serve.http.test_pictures import exif, png, saved

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"


def edit(server, path=EDITS, image=PICTURE, mask=None, **data):
    """The response to a form."""
    images = image if isinstance(image, list) else [image] if image is not None else []
    files = [("image" if len(images) == 1 else "image[]", ("upload", one)) for one in images]
    files += [("mask", ("upload", mask))] if mask is not None else []
    data = {"model": "text", **({"prompt": "x"} if path == EDITS else {})} | data
    return server.post(path, files=files or [("other", ("upload", b""))], data=data)


def wrong(server, status=400, code=None, param=None, **form):
    before = len(server.engine.works)
    message = said(edit(server, **form), status, code, param)
    assert len(server.engine.works) == before
    return message


def test_an_edit_by_the_client(server):
    answer = server.client().images.edit(
        image=io.BytesIO(PICTURE), mask=("mask.png", MASK), prompt="a roof", model="text", n=2, quality="high",
        output_format="webp",
        extra_body={"seed": 5, "strength": 0.3, "repaints": 2, "clip": False, "interval": [0, 0.5]},
    )  # fmt: skip
    work = server.work
    assert (work.pictures, work.mask, work.prompt, work.seeds) == ((PICTURE,), MASK, "a roof", (5, 6))
    assert work.settings == {"strength": 0.3, "repaints": 2, "clip": False, "interval": [0, 0.5]}
    assert [entry.seed for entry in answer.data] == [5, 6] and answer.output_format == "webp"


def test_an_edit_by_the_async_client(server):
    async def ask():
        async with server.client(openai.AsyncOpenAI) as client:
            return await client.images.edit(image=[io.BytesIO(PICTURE)], prompt="x", model="text")

    assert asyncio.run(ask()).size == "8x8"
    assert server.work.pictures == (PICTURE,)


@pytest.mark.filterwarnings("ignore:deprecated")
def test_variations(server):
    answer = server.client().images.create_variation(image=PICTURE, model="text", n=2, response_format="url")
    assert len(answer.data) == 2 and answer.data[0].url in server.kept
    assert server.work.prompt is None and server.work.settings == {}
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().images.create_variation(image=PICTURE, model="text", extra_body={"stream": True})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "stream")


def test_fidelity(server):
    client = server.client()
    client.images.edit(image=PICTURE, prompt="x", model="text", input_fidelity="high")
    assert server.work.settings == {"strength": 0.4}
    client.images.edit(image=PICTURE, prompt="x", model="text", input_fidelity="low")
    assert server.work.settings == {}
    body = {"strength": 0.9}
    raw = client.images.with_raw_response.edit(
        image=PICTURE, prompt="x", model="text", input_fidelity="high", extra_body=body
    )
    assert server.work.settings == body and raw.headers["x-limner-ignored"] == "input_fidelity"


def test_what_has_no_effect_with_a_mask(server):
    body = {"strength": "0.5", "solver": "heun", "repaints": "2", "input_fidelity": "high"}
    ignored = edit(server, mask=MASK, **body).headers["x-limner-ignored"]
    assert set(ignored.split(", ")) == {"strength", "solver", "input_fidelity"}
    assert edit(server, **body).headers["x-limner-ignored"] == "input_fidelity, repaints"


def test_null_in_a_form(server):
    """The client writes it as an empty text."""
    assert edit(server, n="", size="", seed="", steps="").status_code == 200


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("n", "11", "invalid_value"),
        ("n", "two", "invalid_type"),
        ("n", "9" * 400, "invalid_type"),
        ("guidance", "nan", "invalid_type"),
        ("guidance", "1e999", "invalid_value"),
        ("seed", "-1", "invalid_value"),
        ("stream", "1", "invalid_type"),
        ("steps", "1000000000", "invalid_value"),
        ("autoguidance", "/etc/passwd", "invalid_value"),
        ("svg[model]", "x", "unsupported_parameter"),
        ("image", "https://example.org/a.png", "unsupported_parameter"),
        ("mask", "https://example.org/a.png", "unsupported_parameter"),
        ("image_url", "https://example.org/a.png", "unsupported_parameter"),
        ("nothing", "1", "unsupported_parameter"),
    ],
)
def test_each_field_wrong(server, name, value, code):
    file = "mask" if name == "image" else "image"
    data = {"model": "text", "prompt": "x", name: value}
    response = server.post(EDITS, data=data, files=[(file, ("upload", MASK))])
    said(response, 400, code, name.split("[")[0])


def test_a_field_twice(server):
    form = {"model": "text", "prompt": "x", "n": ["1", "2"]}
    said(server.post(EDITS, data=form, files=[("image", ("upload", PICTURE))]), 400, "invalid_type", "n")


def test_pictures_of_a_form(server):
    assert "missing" in said(
        server.post(EDITS, data={"model": "text", "prompt": "x"}, files=[("mask", ("upload", MASK))]),
        400, "missing_required_parameter", "image",
    )  # fmt: skip
    assert "send one" in wrong(server, image=[PICTURE, PICTURE], code="invalid_value", param="image")
    said(server.post(EDITS, data={"model": "text", "prompt": "x"}, files=[("picture", ("upload", PICTURE))]), 400,
         "unsupported_parameter", "picture")  # fmt: skip
    said(server.post(EDITS, data={"model": "text", "prompt": "x"}, files=[("markup", ("upload", PICTURE))]), 400,
         "unsupported_parameter", "markup")  # fmt: skip
    wrong(server, image=[PICTURE] * 5, code="invalid_multipart", param="image")


@pytest.mark.parametrize(
    "image",
    [
        b"", b"text", PICTURE[:-20], png(65_536, 65_536), b"<svg/>", b"%!PS-Adobe",
        saved(Image.new("RGB", (9, 9)), "jpeg")[:-30], saved(Image.new("RGB", (9, 9)), "gif"),
    ],
)  # fmt: skip
def test_wrong_pictures(server, image):
    wrong(server, image=image, code="invalid_image", param="image")
    wrong(server, mask=image, code="invalid_image", param="mask")


def test_masks(server):
    assert "8x8" in wrong(server, mask=picture(1, 4, 8, alpha=0), code="invalid_image", param="mask")
    assert "no transparency" in wrong(server, mask=picture(1, 8, 8), code="invalid_image", param="mask")
    assert "is empty" in wrong(server, mask=b"", code="invalid_image", param="mask")
    assert edit(server, mask=MASK).status_code == 200


def test_a_picture_that_is_turned(server):
    """Sizes are compared as they are seen, or as they are stored where the mask says nothing of its own."""
    turned = saved(Image.new("RGB", (8, 4)), "jpeg", exif=exif(6))  # seen, it is 4 wide and 8 high
    seen, stored = picture(1, 8, 4, alpha=0), picture(1, 4, 8, alpha=0)
    assert edit(server, image=turned, mask=seen).status_code == 200
    assert edit(server, image=turned, mask=stored).status_code == 200
    wrong(server, image=turned, mask=picture(1, 8, 8, alpha=0), code="invalid_image", param="mask")
    wrong(server, image=picture(1, 4, 8), mask=seen, code="invalid_image", param="mask")


def test_models_that_cannot(server):
    given = GIVEN.__class__(**{**vars(GIVEN), "id": "given", "can": ("draw", "apply")})
    blind = PLAIN.__class__(**{**vars(PLAIN), "id": "blind", "reads": ()})
    unmasked = TEXT.__class__(**{**vars(TEXT), "id": "unmasked", "reads": ("image",)})
    server.reset(cards=(given, blind, unmasked))
    assert "start from a picture" in wrong(server, model="blind", code="unsupported_parameter", param="image")
    assert "no mask" in wrong(server, model="unmasked", mask=MASK, code="unsupported_parameter", param="mask")
    assert edit(server, model="given").status_code == 200
    body = {"model": "given", "prompt": ""}
    assert "from pictures" in said(server.post("/v1/images/generations", body), 400, "invalid_value", "model")


def test_json_is_no_form(server):
    said(server.post(EDITS, {"prompt": "x"}), 415, "unsupported_media_type")


def test_a_form_that_is_cut(server):
    head = {"content-type": "multipart/form-data; boundary=x"}
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'
    said(server.http.post(server.address + EDITS, content=body, headers=head), 400, "invalid_multipart")


def test_what_the_engine_says_of_a_picture(server):
    server.engine.fails = Event(
        0,
        "failed",
        status=400,
        code="invalid_image",
        param="image",
        message="The picture cannot be used: it is cut.",
    )
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().images.edit(image=PICTURE, prompt="x", model="text")
    assert (caught.value.code, caught.value.param) == ("invalid_image", "image")
