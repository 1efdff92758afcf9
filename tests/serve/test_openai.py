"""Every call and every exception of the real `openai` client, sync and async, against the real `limner serve`."""

from __future__ import annotations

import asyncio
import base64
import io
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse, ImagesResponse, Model
from PIL import Image

from limner import api, families
from tests.helpers import paint
from tests.serve.asking import TOKEN, Asking
from tests.serve.test_command import address, asked, served, until
from tests.serve.toys import TOYS
from tests.test_frozen import unpack

JSON = {"cast_to": object}
FORM = {**JSON, "options": {"headers": {"Content-Type": "multipart/form-data"}}}
DRAW = {"model": "me/flow", "prompt": "cat"}
SEEDED = {**DRAW, "extra_body": {"seed": 5, "steps": 4}}


def restorer(folder: Path) -> Path:
    """A run of a toy family that makes pictures of twice the size."""
    pictures, path = paint(folder / "given", 8), families.__path__
    families.__path__ = [*path, TOYS]
    try:
        api.train(
            "restorer", pictures, folder / "restorer", preset="tiny", budget="8img", size=16, quiet=True
        )
    finally:
        families.__path__ = path
    return folder / "restorer"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that asks for a token, with a model of each kind."""
    folder = tmp_path_factory.mktemp("openai")
    tokens = folder / "tokens"
    tokens.write_text(f"ann {TOKEN}")
    tokens.chmod(0o600)
    flow, vit = unpack("flow-label", folder / "flow"), unpack("vit", folder / "vit")
    runs = f"me/flow={flow}", vit, restorer(folder)
    flags = "--state", folder / "state", "--token-file", tokens, "--max-client", 8, "--precision", "float32"
    with served(*runs, *flags) as process:
        found = address(process)
        assert process.stdout is not None and process.stdout.readline().startswith("Ready at")
        yield found


@pytest.fixture(scope="module", params=[openai.OpenAI, openai.AsyncOpenAI])
def ask(url: str, request: pytest.FixtureRequest) -> Iterator[Asking]:
    asking = Asking(request.param, url)
    yield asking
    asking.close()


def picture(seed: int = 0, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, len(mode)), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(file, "PNG")
    return file.getvalue()


def mask() -> bytes:
    """Drawn anew on the left."""
    pixels, file = np.full((16, 16, 4), 255, np.uint8), io.BytesIO()
    pixels[:, :8, 3] = 0
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def decoded(answer: Any) -> list[bytes]:
    answer = answer if isinstance(answer, dict) else answer.to_dict()
    return [base64.b64decode(image["b64_json"]) for image in answer["data"]]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


# Calls ------------------------------------------------------------------------------------------------------


def test_models(ask: Asking) -> None:
    listed = ask("models.list").data
    assert [model.id for model in listed] == ["me/flow", "vit", "restorer"]
    model = ask("models.retrieve", "me/flow")
    assert model == listed[0] and (model.family, model.size, model.can) == ("flow", "16x16", ["draw"])
    Model.model_validate(model.to_dict(), strict=True)


def test_generate(ask: Asking) -> None:
    """Image i of a request is the one that seed + i draws by itself, whether in base64 or by a path."""
    answer = ask("images.generate", n=2, **SEEDED)
    ImagesResponse.model_validate(answer.to_dict(), strict=True)
    first, second = decoded(answer)
    assert first != second and Image.open(io.BytesIO(first)).size == (16, 16)
    assert [image.seed for image in answer.data] == [5, 6] and answer.usage.images == 2
    assert decoded(ask("images.generate", extra_body={"seed": 6, "steps": 4}, **DRAW)) == [second]
    linked = ask("images.generate", response_format="url", **SEEDED).data[0]
    found = httpx2.get(ask.url + linked.url, headers={"Authorization": f"Bearer {TOKEN}"})
    assert found.content == first and linked.b64_json is None
    assert httpx2.get(ask.url + linked.url).status_code == 401


def test_generate_as_a_stream(ask: Asking) -> None:
    *partial, done = ask("images.generate", stream=True, partial_images=2, **SEEDED)
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert {event.type for event in partial} == {"image_generation.partial_image"}
    wanted = decoded(ask("images.generate", **SEEDED))
    assert done.type == "image_generation.completed" and base64.b64decode(done.b64_json) == wanted[0]
    seen = [pixels(base64.b64decode(event.b64_json)) for event in partial]
    assert (seen[0] != seen[1]).any() and all((each != pixels(wanted[0])).any() for each in seen)


def test_edit(ask: Asking) -> None:
    """What the mask leaves opaque stays; a list holds one image; the stream ends with the same bytes."""
    whole = ask("images.edit", image=io.BytesIO(picture()), **SEEDED)
    assert decoded(ask("images.edit", image=[picture()], **SEEDED)) == decoded(whole)
    (filled,) = decoded(ask("images.edit", image=picture(), mask=mask(), **SEEDED))
    apart = np.abs(pixels(filled) - pixels(picture()))
    assert apart[:, 8:].max() <= 1 and apart[:, :8].mean() > 10
    *partial, done = ask("images.edit", image=picture(), stream=True, partial_images=1, **SEEDED)
    assert [event.type for event in partial] == ["image_edit.partial_image"]
    assert done.type == "image_edit.completed" and base64.b64decode(done.b64_json) == decoded(whole)[0]


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_variations(ask: Asking) -> None:
    given = {"model": "me/flow", "extra_body": SEEDED["extra_body"]}
    answer = ask("images.create_variation", image=picture(), n=2, **given)
    again = ask("images.create_variation", image=picture(), n=2, **given)
    other = ask("images.create_variation", image=picture(1), n=2, **given)
    assert decoded(answer) == decoded(again) and len({*decoded(answer), *decoded(other)}) == 4


def test_embeddings(ask: Asking) -> None:
    """The client asks for base64 by itself, and gives the numbers that it decodes."""
    inputs = ["data:image/png;base64," + base64.b64encode(picture(seed)).decode() for seed in (0, 1)]
    answer = ask("embeddings.create", model="vit", input=inputs)
    CreateEmbeddingResponse.model_validate(answer.to_dict(), strict=True)
    first, second = (entry.embedding for entry in answer.data)
    assert len(first) == ask("models.retrieve", "vit").features and first != second
    plain = ask("embeddings.create", model="vit", input=inputs[1], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(second, rel=1e-5, abs=1e-6)


def test_classify(ask: Asking) -> None:
    files = [("image", ("a.png", picture())), ("image", ("b.png", picture(1)))]
    found = ask("post", "/classify", body={"model": "vit"}, files=files, **FORM)["data"]
    labels = set(ask("models.retrieve", "vit").labels)
    assert [entry["index"] for entry in found] == [0, 1]
    for entry in found:
        assert {each["label"] for each in entry["classes"]} == labels
        assert sum(each["probability"] for each in entry["classes"]) == pytest.approx(1)


def test_apply(ask: Asking) -> None:
    files = [("image", ("a.png", picture()))]
    found = ask("post", "/apply", body={"model": "restorer", "output_format": "webp"}, files=files, **FORM)
    shown = Image.open(io.BytesIO(decoded(found)[0]))
    assert (shown.size, shown.format, found["data"][0]["size"]) == ((32, 32), "WEBP", "32x32")


def test_jobs(ask: Asking) -> None:
    body = {**DRAW, "type": "generation", "seed": 3, "n": 2}
    job = ask("post", "/jobs", body=body, **JSON)
    path = f"/jobs/{job['id']}"
    until(lambda: ask("get", path, **JSON)["status"] == "completed")
    found = ask("get", path, **JSON)
    wanted = decoded(ask("images.generate", n=2, extra_body={"seed": 3}, **DRAW))
    assert decoded(found["result"]) == wanted and found["images_done"] == 2
    kind = openai.AsyncStream if isinstance(ask.client, openai.AsyncOpenAI) else openai.Stream
    events = ask("get", f"{path}/events", stream=True, stream_cls=kind[object], **JSON)
    assert [event["type"] for event in events][-1].endswith("completed")
    again = ask("get", f"{path}/images/1", cast_to=httpx2.Response)
    assert again.content == wanted[1]
    slow = ask("post", "/jobs", body={**body, "n": 8, "steps": 250}, **JSON)
    ended = [ask("delete", f"/jobs/{slow['id']}", **JSON)["status"] for _ in range(2)]
    assert ended[0] == ended[1] and ended[0] in ("cancelled", "completed")
    assert ask("get", "/usage", **JSON)["client"] == "ann"


# Exceptions -------------------------------------------------------------------------------------------------


def _reuse_a_key(ask: Asking) -> None:
    body, key = {**DRAW, "type": "generation"}, {"headers": {"Idempotency-Key": type(ask.client).__name__}}
    first, again = (ask("post", "/jobs", body=body, options=key, **JSON)["id"] for _ in range(2))
    assert first == again
    ask("post", "/jobs", body={**body, "n": 2}, options=key, **JSON)


@pytest.mark.parametrize(
    ("kind", "status", "code", "param", "words", "call"),
    [
        (openai.BadRequestError, 400, "invalid_value", "n", "choose 1 to 10",
         lambda ask: ask("images.generate", n=11, **DRAW)),
        (openai.BadRequestError, 400, "invalid_value", "image", "send one",
         lambda ask: ask("images.edit", image=[picture(), picture(1)], **DRAW)),
        (openai.BadRequestError, 400, "unsupported_parameter", "tones", "tone",
         lambda ask: ask("images.generate", extra_body={"tones": "bright"}, stream=True, **DRAW)),
        (openai.AuthenticationError, 401, "invalid_api_key", None, "token",
         lambda ask: ask("models.list", with_options={"api_key": "bob-0123456789"})),
        (openai.PermissionDeniedError, 403, "foreign_host", None, "name",
         lambda ask: ask("models.list", extra_headers={"Host": "evil.example"})),
        (openai.PermissionDeniedError, 403, "foreign_origin", None, "other sites",
         lambda ask: ask("images.generate", extra_headers={"Origin": "http://evil.example"}, **DRAW)),
        (openai.NotFoundError, 404, "model_not_found", "model", "Did you mean me/flow",
         lambda ask: ask("models.retrieve", "me/flo")),
        (openai.NotFoundError, 404, "not_found", None, "such job", lambda ask: ask("get", "/jobs/none", **JSON)),
        (openai.UnprocessableEntityError, 422, "idempotency_key_reused", None, "new key", _reuse_a_key),
        (openai.RateLimitError, 429, "rate_limit_exceeded", None, "8 are the most",
         lambda ask: ask("images.generate", n=9, **DRAW)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_exceptions(
    ask: Asking, kind: type[openai.APIStatusError], status: int, code: str, param: str | None, words: str,
    call: Callable[[Asking], Any],
) -> None:  # fmt: skip
    with pytest.raises(kind) as caught:
        call(ask)
    error = caught.value
    assert (type(error), error.status_code, error.code, error.param) == (kind, status, code, param)
    assert words in error.message and error.body["message"].endswith((".", "?"))
    assert error.request_id and error.request_id.startswith("req_")
    assert ("retry-after" in error.response.headers) == (status == 429)


def test_a_client_that_does_not_wait(ask: Asking) -> None:
    with pytest.raises(openai.APITimeoutError):
        ask("images.generate", n=8, extra_body={"steps": 250}, with_options={"timeout": 0.03}, **DRAW)


async def end_of(stream: Any) -> openai.APIError | None:
    """The error that ends a stream; None: its images landed."""
    try:
        events = [event async for event in stream]
    except openai.APIError as error:
        return error
    assert events[-1].type == "image_generation.completed"
    return None


def test_the_end(tmp_path: Path) -> None:
    """What is new gets 503 meanwhile, streams that do not land in time end by an error, and then nobody answers."""
    run = unpack("flow-label", tmp_path / "flow")
    flags = "--state", tmp_path / "state", "--drain", "1s", "--max-client", 200, "--batching", "quick"
    with served(run, *flags) as process:
        url = address(process)
        assert process.stdout is not None and process.stdout.readline().startswith("Ready at")
        sync = Asking(openai.OpenAI, url)

        async def streams() -> None:
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                long = {"prompt": "cat", "n": 10, "extra_body": {"steps": 250}}
                opened = await asyncio.gather(
                    *(client.images.generate(stream=True, **long) for _ in range(16))
                )
                process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(until, lambda: asked(f"{url}/ready")[0] == 503)
                with pytest.raises(openai.InternalServerError) as refused:
                    await client.images.generate(prompt="cat")
                with pytest.raises(openai.InternalServerError) as refused_too:
                    await asyncio.to_thread(sync, "images.generate", prompt="cat")
                for error in (refused.value, refused_too.value):
                    assert (error.status_code, error.code, error.param) == (503, "shutting_down", None)
                    assert "try again" in error.message and error.response.headers["retry-after"] == "5"
                # The oldest images go first, so on a fast machine the first streams may land in time.
                ends = await asyncio.gather(*map(end_of, opened))
                assert ends[-1] is not None
                for ended in filter(None, ends):
                    assert type(ended) is openai.APIError and "The server is ending" in ended.message
                    assert (ended.code, ended.param) == ("shutting_down", None)
                assert await asyncio.to_thread(process.wait, 20) == 128 + signal.SIGTERM
                with pytest.raises(openai.APIConnectionError):
                    await client.models.list()

        asyncio.run(streams())
        with pytest.raises(openai.APIConnectionError):
            sync("models.list")
        sync.close()
