"""Twins never stand on both sides of a split; the training part stays as it is without the rule."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.core import ImageSpec
from limner.data import Data, open_data
from limner.data.twins import find_twins
from limner.settings import DataOptions
from limner.training.resuming import split_digest


def photographs(n: int, side: int = 64, seed: int = 0) -> list[Image.Image]:
    """Soft pictures of random colours."""
    values = np.random.default_rng(seed).integers(0, 256, (n, 9, 9, 3), np.uint8)
    return [Image.fromarray(v).resize((side, side), Image.Resampling.BICUBIC) for v in values]


def jpeg(image: Image.Image) -> Image.Image:
    image.save(file := io.BytesIO(), "JPEG", quality=90 if image.width < 64 else 75)
    return Image.open(file)


def pack(images: list[np.ndarray], **others) -> Data:
    pixels = np.stack(images)
    spec = ImageSpec(pixels.shape[-1], *pixels.shape[1:3])
    return Data(spec, "x", pixels, np.arange(len(pixels)), [str(i) for i in range(len(pixels))], **others)


SAVED_AGAIN = {
    "equal": lambda x: x,
    "jpeg": jpeg,
    "smaller and back": lambda x: x.resize((48, 48), Image.Resampling.LANCZOS).resize(x.size),
    "a level brighter": lambda x: x.point(lambda v: min(255, v + 1)),
}


@pytest.mark.parametrize("way", SAVED_AGAIN)
@pytest.mark.parametrize("side", [32, 64])
def test_the_same_picture_saved_again_is_a_twin(way: str, side: int):
    images = photographs(40, side)
    again = [np.asarray(SAVED_AGAIN[way](image)) for image in images]
    data = pack([*map(np.asarray, images), *again])
    assert find_twins(data.pixels, np.arange(40, 80), np.arange(20)).tolist() == [True] * 20 + [False] * 20


def test_a_twin_is_found_among_any_number_of_others(monkeypatch: pytest.MonkeyPatch):
    """Those of nearly its brightness are looked at, a few at a time."""
    monkeypatch.setattr("limner.data.twins.SORTED", 16)
    monkeypatch.setattr("limner.data.twins.TOGETHER", 3)
    images = photographs(60, 32)
    again = [np.asarray(image.point(lambda v: min(255, v + 2))) for image in images]
    data = pack([*map(np.asarray, images), *again])
    assert find_twins(data.pixels, np.arange(60, 120), np.arange(40)).tolist() == [True] * 40 + [False] * 20


@pytest.mark.parametrize("source", ["digits", "shapes", "emoji"])
def test_pictures_that_are_merely_similar_are_none(source: str):
    """The emoji hold equal ones: flags of territories."""
    if source == "digits":
        pytest.importorskip("sklearn")
    data = open_data(source, progress=False)
    rows = np.random.default_rng(0).permutation(len(data))[:3000]
    assert find_twins(data.pixels, rows[:500], rows[500:]).sum() <= (12 if source == "emoji" else 0)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 1, 1), "u1"), ((5, 40, 4), "u1"), ((3, 3, 3), "u2"), ((2, 8, 8, 3), "u1")]
)
def test_images_of_any_shape(shape: tuple[int, ...], dtype: str):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (30, *shape), dtype)
    values[:, ..., 0] = np.linspace(0, 200, 30).astype(dtype).reshape(-1, *[1] * (len(shape) - 1))
    values[20:25] = values[:5]
    found = find_twins(values, np.arange(20, 30), np.arange(20))
    assert found.tolist() == [True] * 5 + [False] * 5


def test_flat_images_are_twins_only_if_they_are_equal():
    flat = np.repeat(np.arange(0, 250, 10), 64).reshape(25, 8, 8, 1).astype(np.uint8)
    flat[24] = flat[3]
    assert find_twins(flat, np.arange(12, 25), np.arange(12)).tolist() == [False] * 12 + [True]


@pytest.mark.parametrize("named", [False, True])
def test_the_split_leaves_twins_out_of_the_held_out_part_alone(named: bool):
    images = [np.asarray(image) for image in photographs(200, 16)]
    images += images[:100]
    splits = (["train"] * 200 + ["test"] * 100) if named else None
    data = pack(images, splits=splits)
    training, held_out = data.split(0.2)
    same, former = data.split(0.2, twins=True)
    assert training.names == same.names
    known = {int(name) % 200 for name in training.names}
    assert {int(name) % 200 for name in held_out.names}.isdisjoint(known)
    assert held_out.twins == len(former) - len(held_out) > 0 and str(held_out.twins) in held_out.twins_note
    assert training.twins == 0 == pack(images[:200]).split(0.2)[1].twins
    assert len(split_digest(training, former)) == 64


def test_given_pictures_have_twins_too():
    images = [np.asarray(image) for image in photographs(400, 16)]
    given = pack(images[200:300] + images[200:250] + images[300:350])  # 50 of them twice
    training, held_out = pack(images[:200], given=given).split(0.2)
    trained_on = {int(name) % 100 for name in training.given.names if int(name) < 150}
    rest = {int(name) % 100 for name in held_out.given.names if int(name) < 150}
    assert 0 < held_out.twins < 40 == held_out.twins + len(held_out) and rest.isdisjoint(trained_on)


def test_a_domain_of_twins_alone_was_trained_on():
    images = [np.asarray(image) for image in photographs(200, 16)]
    held_out = pack(images[:199], given=pack(images[199:] * 40), paired=False).split(0.2)[1]
    assert len(held_out) == 40 and held_out.trained_on and len(held_out.given)
    assert not pack(images[:100], given=pack(images[100:]), paired=False).split(0.2)[1].trained_on


def test_all_twins_leave_nothing_held_out():
    data = pack([np.asarray(photographs(1, 16)[0])] * 40)
    training, held_out = data.split(0.1)
    assert (len(training), len(held_out), held_out.twins) == (36, 0, 4)


def test_twins_of_images_that_were_not_trained_on_count_not():
    images = [np.asarray(image) for image in photographs(40, 16)]
    data = pack(images + images, labels=np.zeros(80, np.int64))
    few, held_out = data.split(0.2, per_class=3)
    assert len(few) == 3 and len(held_out) >= 13


def test_what_was_found_is_kept_beside_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(photographs(60, 32)):
        image.save(folder / f"{i}.png")
        image.save(folder / f"{i} again.png")
    options = DataOptions(cache=str(tmp_path / "cache"))
    found = open_data(folder, options=options, progress=False).split(0.2)[1]
    assert found.twins > 10
    monkeypatch.setattr("limner.data.twins._search", lambda *_: pytest.fail("searched again"))
    data = open_data(folder, options=options, progress=False)
    assert data.split(0.2)[1].names == found.names
    monkeypatch.undo()
    (kept,) = (tmp_path / "cache").glob("packed/*/twins-*")
    kept.write_bytes(b"\xff")  # what is damaged is searched again
    assert data.split(0.2)[1].names == found.names
