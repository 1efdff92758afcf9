"""Folders of drawn images whose own files are damaged: one sentence, or drawn again; never a traceback."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from limner.core import Condition, ImageSpec, LimnerError
from limner.synthesis import folder
from limner.synthesis.folder import SAMPLE, SYNTHESIZE, ImageBatch, Provenance
from tests.test_files import DAMAGED

SPEC = ImageSpec(1, 8, 8, classes=("one", "two"))
VALUES = [None, True, 5, -1, 1e300, "text", [], {}, [[1]], {"n": 4}]


def provenance(made_by: str, **changes: object) -> Provenance:
    settings = {"n": 6, "seed": 3}
    return Provenance(made_by=made_by, run="run", family="x", images_seen=1, settings=settings, versions={},
                      refused={"like": 0}, **changes)  # fmt: skip


def batch(first: int, count: int) -> ImageBatch:
    images = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).expand(count, -1, -1, -1)
    labels = torch.arange(first, first + count) % 2
    return ImageBatch(images, range(first, first + count), Condition(count, label=labels), SPEC)


def half_full(to: Path, made_by: str = SYNTHESIZE) -> Provenance:
    begun, _ = folder.begin(to, provenance(made_by))
    begun = replace(begun, drawn=4, kept=4)
    folder.add(to, begun, batch(3, 4), range(4))
    return begun


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("made_by", [SYNTHESIZE, SAMPLE])
def test_a_damaged_provenance(made_by: str, content: bytes, tmp_path: Path) -> None:
    half_full(tmp_path, made_by)
    (tmp_path / folder.PROVENANCE[made_by]).write_bytes(content)
    with pytest.raises(LimnerError, match=r"is damaged, or was not written by limner"):
        folder.begin(tmp_path, provenance(made_by))


@pytest.mark.parametrize(
    "key", ["made_by", "settings", "drawn", "kept", "refused", "run", "versions", "images_seen"]
)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_provenance_of_other_values(key: str, value: object, tmp_path: Path) -> None:
    begun = half_full(tmp_path)
    about = tmp_path / "provenance.json"
    told = json.loads(about.read_text())
    for changed in ({**told, key: value}, {name: told[name] for name in told if name != key}):
        about.write_text(json.dumps(changed))
        try:
            found, kept = folder.begin(tmp_path, provenance(SYNTHESIZE))
        except LimnerError:
            continue
        assert (found.drawn, found.kept, kept) == (begun.drawn, begun.kept, {3, 4, 5, 6}), (
            "nothing else is believed"
        )


@pytest.mark.parametrize(
    "line",
    [b"\xff", b"5", b"null", b"[]", b"{}", b'{"seed": 3}', b'{"seed": [], "file_name": 3}', b'{"file_name": "../x"}',
     b'{"seed": 4, "file_name": 7}', b"[" * 5000],
)  # fmt: skip
def test_damaged_lines(line: bytes, tmp_path: Path) -> None:
    half_full(tmp_path)
    listing = tmp_path / folder.METADATA
    whole = listing.read_bytes()
    listing.write_bytes(whole + line)  # cut by a kill: it was not counted
    assert folder.begin(tmp_path, provenance(SYNTHESIZE))[1] == {3, 4, 5, 6}
    assert listing.read_bytes() == whole
    listing.write_bytes(line + b"\n" + b"\n".join(whole.split(b"\n")[1:]))
    with pytest.raises(LimnerError, match=r"lists 3 images where 4 were made"):
        folder.begin(tmp_path, provenance(SYNTHESIZE))


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    begun, _ = folder.begin(tmp_path, provenance(SAMPLE))
    texts = ["a\u2028b", "c\u0085d", "e\nf", 'g"\\h']
    drawn = ImageBatch(batch(3, 4).images, range(3, 7), Condition(4, text=texts), SPEC)
    folder.add(tmp_path, replace(begun, drawn=4, kept=4), drawn, range(4))
    assert folder.begin(tmp_path, provenance(SAMPLE))[1] == {3, 4, 5, 6}
    assert len(folder.listed_images(tmp_path)) == 4


def test_what_a_batch_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    half_full(tmp_path)
    for name in (".000008.png", "000008.png", "000007.png"):
        (tmp_path / name).write_bytes(b"half")
    Image.new("L", (4, 4)).save(tmp_path / "000009.png")  # whole, but not listed yet
    folder.begin(tmp_path, provenance(SYNTHESIZE))
    assert {path.name for path in tmp_path.glob("*.png")} == {f"{i:06d}.png" for i in range(3, 7)}
    Image.new("L", (4, 4)).save(tmp_path / "20240101.png")
    with pytest.raises(LimnerError, match=r"20240101\.png was not made by limner synthesize"):
        folder.begin(tmp_path, provenance(SYNTHESIZE))
    assert (tmp_path / "20240101.png").exists()
