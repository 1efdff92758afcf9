"""What is wrong is told by the real `limner serve` in one sentence, without a trace, and nothing is kept of it."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.serve.test_command import address, children, served
from tests.serve.test_openai import mask, picture
from tests.test_frozen import unpack

FLOW = {"model": "me/flow", "prompt": "cat"}
HUGE = "9" * 400


def saved(mode: str, size: int = 16, format: str = "PNG") -> bytes:
    file, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (size, size, len(mode)), np.uint8)
    Image.fromarray(pixels, mode).save(file, format)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def opaque() -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 255)).save(file, "PNG")
    return file.getvalue()


def damaged(data: bytes) -> bytes:
    """As long as it was, and with its end, so that only decoding it shows what is wrong."""
    middle = len(data) // 2
    return data[:middle] + bytes(40) + data[middle + 40 :]


GIF = b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0, 0, 0) + b"\x2c" * 1000
BOMB = png(16, 16, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(50 * 2**20))), chunk(b"IDAT", b"x"))
PICTURES = {
    "64k x 64k": png(65_536, 65_536, chunk(b"IDAT", b"x")),
    "SVG": b"<svg xmlns='http://x'/>", "EPS": b"%!PS-Adobe-3.0",
    "GIF": GIF, "text that inflates": BOMB, "JPEG cut": half(saved("RGB", format="JPEG")), "PNG cut": half(picture()),
    "PNG damaged": damaged(picture()),
    "pixels that are none": png(16, 16, chunk(b"IDAT", b"none")), "no bytes": b"",
}  # fmt: skip
MASKS = {
    "another size": saved("RGBA", 8),
    "without alpha": picture(),
    "opaque everywhere": opaque(),
    "empty": b"",
}
JSON = [
    '{"model": "me/flow", "prompt": ', "[" * 10_000, '{"a":' * 10_000, '{"prompt": "cat", "prompt": "dog"}',
    '{"prompt": "\\ud800", "model": "me/flow"}', '{"\\ud800": 1}', '{"prompt": "cat", "guidance": NaN}', "[]", "",
]  # fmt: skip
VALUES: dict[str, list[str]] = {
    "prompt": ["1", "[]", '"zebra"', json.dumps("x" * 32_001)], "n": ["0", "-1", "11", "1.5", HUGE, "1e999", '"1"'],
    "size": ['"8x8"', '"0x0"', '"x"', "16"], "seed": ["-1", HUGE, "0.5", "1e999"], "steps": ["0", "251", HUGE, "2.5"],
    "guidance": ["-1e9", HUGE, "1e999", '"1"'], "solver": ['"zzz"', "1"], "strength": ["0", "-1", HUGE],
    "model": ['"nothing"', '"../../etc/passwd"', "1"], "autoguidance": ['"/etc/passwd"', '"vit2"'],
    "between": ["[1]", f"[1, {HUGE}]", "[1, 2]"], "label": ['"zebra"', "{}"], "stream": ['"yes"', "1"],
    "shift": ["1e-30", "0"], "unknown": ["1"], "svg": ["{}"], "image_url": ['"http://127.0.0.1/"'],
}  # fmt: skip
INPUTS = [
    "",
    "data:image/png;base64,AA AA",
    "data:image/png;base64,AAA",
    "http://127.0.0.1/x.png",
    "/etc/passwd",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx2.Client, int, Path]]:
    """A client, the number of the process, and the folder of jobs."""
    folder = tmp_path_factory.mktemp("bad")
    runs = f"me/flow={unpack('flow-label', folder / 'flow')}", unpack("vit", folder / "vit")
    with served(*runs, "--state", folder / "state", "--precision", "float32") as process:
        url = address(process)
        assert process.stdout is not None and process.stdout.readline().startswith("Ready at")
        with httpx2.Client(base_url=url, timeout=60) as client:
            yield client, process.pid, folder / "state"
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=20)[1]
        assert "Traceback" not in said and "Error" not in said, said


def refusals(client: httpx2.Client) -> Iterator[tuple[str, httpx2.Response]]:
    """What was sent, and the answer."""

    def ask(path: str, body: str) -> httpx2.Response:
        return client.post(path, content=body.encode(), headers={"Content-Type": "application/json"})

    def edit(fields: dict[str, str], **files: Any) -> httpx2.Response:
        return client.post(
            "/v1/images/edits", data=fields, files={k: ("upload", v) for k, v in files.items()}
        )

    texts = JSON + [
        json.dumps(FLOW)[:-1] + f', "{name}": {value}}}' for name, values in VALUES.items() for value in values
        if name not in FLOW
    ] + [
        json.dumps({k: v for k, v in FLOW.items() if k != name})[:-1] + f', "{name}": {value}}}'
        for name in FLOW for value in VALUES[name]
    ]  # fmt: skip
    for text in texts:
        yield text[:80], ask("/v1/images/generations", text)
        yield "job " + text[:80], ask("/v1/jobs", '{"type": "generation", ' + text.lstrip()[1:])
    for given in INPUTS:
        yield given, ask("/v1/embeddings", json.dumps({"model": "vit", "input": given}))
    for name, data in PICTURES.items():
        yield name, edit(FLOW, image=data)
        if name != "no bytes":  # of which nothing can be said in JSON
            uri = "data:image/png;base64," + base64.b64encode(data).decode()
            yield name, ask("/v1/embeddings", json.dumps({"model": "vit", "input": uri}))
    for name, data in MASKS.items():
        yield "mask " + name, edit(FLOW, image=picture(), mask=data)
    for name, values in {
        "n": ["", "0", HUGE, "1e999", "nan"],
        "steps": ["x", "1e9"],
        "strength": ["inf"],
    }.items():
        for value in values[name == "n" :]:
            yield f"{name}={value}", edit({**FLOW, name: value}, image=picture(), mask=mask())


def check(sent: str, answer: httpx2.Response) -> None:
    assert 400 <= answer.status_code < 500, (sent, answer.text)
    assert answer.headers["x-request-id"].startswith("req_"), sent
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["code"], sent
    message = error["message"]
    assert message.endswith((".", "?")) and len(message) < 500, (sent, message)
    plain = re.sub("data:image/png|application/json|multipart/form-data|me/flow", "", message)
    assert not re.search(r"(^|\W)/\w|--\w|passwd|Traceback", plain), (sent, message)


def memory(pid: int) -> float:
    """MB of the front and its engine."""
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in (pid, *children(pid)))
    return pages * 4096 / 2**20


def test_bad_input(server: tuple[httpx2.Client, int, Path]) -> None:
    client, pid, state = server
    for sent, answer in refusals(client):
        check(sent, answer)
    before = memory(pid)
    for _ in refusals(client):
        pass
    assert memory(pid) - before < 10
    assert not list((state / "jobs").glob("*"))
    good = client.post("/v1/images/generations", json={**FLOW, "steps": 2})
    assert good.status_code == 200 and len(good.json()["data"]) == 1
