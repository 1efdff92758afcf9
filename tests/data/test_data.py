"""Each kind of source, and what training reads from the packed data."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from limner.core import Condition, ImageSpec
from limner.data import BUILT_IN, Selection, check, open_data
from limner.data.dataset import Data
from limner.data.images import decode
from limner.data.sources import builtin, find
from limner.pictures.grid import grid, save_png, to_pil
from limner.settings import DataOptions, LimnerError
from limner.synthesis import folder
from tests.helpers import paint


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LIMNER_CACHE", str(folder))
    return folder


def noise(seed: int, *shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def write(path: Path, pixels: np.ndarray, **how) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


def read(source, **how) -> Data:
    return open_data(source, progress=False, **how)


@pytest.fixture
def pets(tmp_path) -> Path:
    """Twelve RGB images of 20 x 24 pixels in two classes; noise(i) is image i."""
    for i in range(12):
        write(tmp_path / "pets" / ("cat" if i < 5 else "dog") / f"{i:02d}.png", noise(i, 20, 24, 3))
    return tmp_path / "pets"


# Sources ----------------------------------------------------------------------------------------------------


def test_a_folder_of_classes_at_its_own_size(pets):
    data = read(pets)
    assert data.spec.shape == (3, 20, 24) and data.spec.classes == ("cat", "dog")
    assert data.labels.tolist() == [0] * 5 + [1] * 7 and data.captions is None and not data.problems
    assert all(np.array_equal(data.array[i], noise(i, 20, 24, 3)) for i in range(12))


def test_nested_classes_and_a_split_folder_that_is_none(tmp_path):
    for i, name in enumerate(["train/cat/old", "train/cat/young", "test/dog"]):
        write(tmp_path / "a" / name / "x.png", noise(i, 16, 16, 3))
    assert read(tmp_path / "a").spec.classes == ("cat/old", "cat/young", "dog")


def test_classes_that_are_numbers_keep_their_order(tmp_path):
    for i in range(12):
        write(tmp_path / "a" / str(i) / "x.png", noise(i, 16, 16, 3))
    data = read(tmp_path / "a")
    assert data.spec.classes == tuple(map(str, range(12)))
    assert all(np.array_equal(data.array[i], noise(data.labels[i], 16, 16, 3)) for i in range(12))


def test_a_few_images_without_a_class_are_left_out_of_training(pets):
    write(pets / "stray.png", noise(99, 20, 24, 3))
    data = read(pets)
    assert len(data) == 13 and data.spec.classes == ("cat", "dog") and data.labels[-1] == -1
    training, held = data.split(0.2)
    assert "stray.png" not in training.names + held.names and len(training) + len(held) == 12
    report = check(pets, progress=False)
    assert any("1 of 13 images, such as 'stray.png', has no class" in sentence for sentence in report.notes)
    assert report.notes == data.notes and report.classes == {"dog": 7, "cat": 5}
    assert len(read(pets, options=DataOptions(labels=False)).split(0)[0]) == 13


def test_classes_are_left_out_where_many_images_have_none(pets):
    for i in range(6):
        write(pets / f"stray{i}.png", noise(99, 20, 24, 3))
    data = read(pets)
    assert len(data) == 18 and data.labels is None and data.spec.classes == ()
    assert any("Classes are left out: 6 of 18 images" in sentence for sentence in data.notes)
    assert check(pets, progress=False).notes == data.notes


def test_captions_in_text_files(pets):
    (pets / "cat" / "01.txt").write_text("a  cat\nthat sleeps 猫\n", "utf-8")
    data = read(pets)
    assert data.spec.captions and data.captions[:3] == ["", "a cat that sleeps 猫", ""]
    assert read(pets, options=DataOptions(captions=False, labels=False)).spec.shape == (3, 20, 24)
    assert read(pets, options=DataOptions(captions=False)).captions is None


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_overrides_folders(pets, kind):
    rows = [{"file_name": "cat/00.png", "text": 'a "tabby", old', "label": "tabby"}]
    rows += [{"file_name": "gone.png", "text": "nothing", "label": ""}]
    with open(pets / f"metadata.{kind}", "w", encoding="utf-8") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            file.write('file_name,text,label\ncat/00.png,"a ""tabby"", old",tabby\ngone.png,nothing,\n')
    data = read(pets)
    assert data.captions[0] == 'a "tabby", old' and data.spec.classes == ("cat", "dog", "tabby")
    assert data.labels[0] == 2 and [p.path for p in data.problems] == ["gone.png"]


def test_broken_metadata_names_its_line(pets):
    (pets / "metadata.jsonl").write_text('{"file_name": "cat/00.png"}\n{"file_name": \n')
    with pytest.raises(LimnerError, match=r"line 2 of metadata\.jsonl"):
        read(pets)
    (pets / "metadata.jsonl").write_text('{"name": "cat/00.png"}\n')
    with pytest.raises(LimnerError, match=r"row 1 of metadata\.jsonl has no file_name"):
        read(pets)


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "bztar", "xztar"])
def test_an_archive_equals_its_folder(pets, tmp_path, kind):
    archive = shutil.make_archive(str(tmp_path / "packed"), kind, pets)
    data, folder = read(archive), read(pets)
    assert data.fingerprint == folder.fingerprint and data.names == folder.names


def test_webdataset_shards(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"shard-{shard:03d}.tar", "w") as tar:
            for i in range(3):
                image = io.BytesIO()
                Image.fromarray(noise(3 * shard + i, 16, 16, 3)).save(image, "PNG")
                parts = {"png": image.getvalue(), "txt": f"picture {i}".encode(), "cls": str(i).encode()}
                if shard:
                    said = {"caption": f"picture {i}", "label": i}
                    parts = {"png": parts["png"], "json": json.dumps(said).encode()}
                for suffix, content in parts.items():
                    member = tarfile.TarInfo(f"{shard}{i:04d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    for source in (tmp_path, tmp_path / "shard-{000..001}.tar", tmp_path / "shard-*.tar"):
        data = read(source)
        assert data.captions == [f"picture {i}" for i in (0, 1, 2, 0, 1, 2)]
        assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert all(np.array_equal(data.array[i], noise(i, 16, 16, 3)) for i in range(6))


def test_parquet(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    content = {"image": [], "label": [1, 0, 1], "text": ["one", "two", "three"]}
    for i in range(3):
        image = io.BytesIO()
        Image.fromarray(noise(i, 16, 16, 3)).save(image, "PNG")
        content["image"].append({"bytes": image.getvalue(), "path": None})
    classes = datasets.ClassLabel(names=["cat", "dog"])
    kinds = {"image": datasets.Image(), "label": classes, "text": datasets.Value("string")}
    table = datasets.Dataset.from_dict(content, features=datasets.Features(kinds))
    (tmp_path / "t").mkdir()
    table.to_parquet(tmp_path / "t" / "a.parquet")
    for source in (tmp_path / "t", tmp_path / "t" / "a.parquet"):
        data = read(source)
        assert data.spec.classes == ("cat", "dog") and data.labels.tolist() == [1, 0, 1]
        assert data.captions == ["one", "two", "three"]
        assert all(np.array_equal(data.array[i], noise(i, 16, 16, 3)) for i in range(3))


def test_the_hub_is_asked_for_what_was_named(monkeypatch):
    datasets = pytest.importorskip("datasets")
    image = io.BytesIO()
    Image.fromarray(noise(0, 16, 16, 3)).save(image, "PNG")
    kinds = datasets.Features({"img": datasets.Image()})
    rows = {"img": [{"bytes": image.getvalue(), "path": None}]}
    table = datasets.Dataset.from_dict(rows, features=kinds)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a: asked.append(a) or {"train": table})
    assert np.array_equal(read("hf:me/pets:small").array[0], noise(0, 16, 16, 3))
    assert asked == [("me/pets", "small")]


def test_digits():
    data = read("digits")
    assert len(data) == 1797 and data.spec.shape == (1, 32, 32)
    assert data.spec.classes == tuple("0123456789") and data.labels[:4].tolist() == [0, 1, 2, 3]
    small = read("digits", size=(8, 8)).array[..., 0]
    from sklearn.datasets import load_digits

    assert np.array_equal(small, np.rint(load_digits().images * 255 / 16))


def test_shapes_are_drawn_at_the_size(monkeypatch):
    assert builtin.SHAPES == 20_000
    monkeypatch.setattr(builtin, "SHAPES", 1500)
    data = read("shapes", size=(24, 40))
    assert len(data) == 1500 and data.spec.shape == (3, 24, 40)
    assert data.spec.classes == ("circle", "square", "star", "triangle")
    for i in (0, 1499):
        assert data.captions[i].split()[3] == data.spec.classes[data.labels[i]]


def test_drawn_shapes_have_an_oracle_and_nothing_else_has(monkeypatch, tmp_path):
    monkeypatch.setattr(builtin, "SHAPES", 40)
    data = read("shapes", size=(32, 32))
    assert data.oracle.score(data.array, data.captions)["exact"] == 1
    assert data.oracle.score(data.array, data.captions[::-1])["exact"] < 0.2
    assert data.split(0.1)[1].oracle is data.oracle
    assert read("shapes", size=(32, 32), options=DataOptions(channels=1)).oracle is None, "it reads colours"
    paint(tmp_path / "shapes", 3)
    for sources in (str(tmp_path / "shapes"), ["shapes", str(tmp_path / "shapes")], "digits"):
        assert read(sources, size=(32, 32)).oracle is None


def test_every_built_in_set_has_a_source():
    assert find._OPENERS.keys() == BUILT_IN.keys()


def test_emoji(monkeypatch):
    if not any(Path(font).is_file() for font in builtin._FONTS):
        pytest.skip("no colour emoji font here")
    assert len(builtin.emoji().listing().items) > 1000
    named = builtin._named_emoji
    monkeypatch.setattr(builtin, "_named_emoji", lambda lines: list(named(lines))[::8])
    data = read("emoji", size=(16, 16))
    assert data.spec.channels == 3 and "grinning face" in data.captions
    assert "Food & Drink" in data.spec.classes
    face = data.array[data.captions.index("grinning face")]
    assert (face[0, 0] == 255).all() and face[8, 8, 0] > face[8, 8, 2] + 50  # yellow on white
    clear = read("emoji", size=(16, 16), options=DataOptions(channels=4))
    assert clear.array[0, 0, 0].tolist() == [0, 0, 0, 0]

    monkeypatch.setattr(builtin, "_FONTS", ())
    with pytest.raises(LimnerError, match="apt install fonts-noto-color-emoji unicode-data"):
        read("emoji")
    monkeypatch.setenv("LIMNER_EMOJI_FONT", "nowhere.ttf")
    with pytest.raises(LimnerError, match=r"nowhere\.ttf"):
        read("emoji")


def test_several_sources_follow_one_another(pets, tmp_path):
    write(tmp_path / "more" / "bird" / "1.png", noise(50, 20, 24, 3))
    data = read([pets, tmp_path / "more"])
    assert len(data) == 13 and data.spec.classes == ("bird", "cat", "dog")
    assert np.array_equal(data.array[12], noise(50, 20, 24, 3))
    assert read([pets, tmp_path / "more" / "bird" / "1.png"]).names[-1] == "1.png"


@pytest.mark.parametrize(
    ("source", "hint"), [("digit", "digits"), ("PETS", "pets"), ("nothing-like-it", "hf:owner/name")]
)
def test_an_unknown_source_names_the_nearest(pets, monkeypatch, source, hint):
    monkeypatch.chdir(pets.parent)
    with pytest.raises(LimnerError, match=hint):
        read(source)


# Packing ----------------------------------------------------------------------------------------------------


def test_packed_once_and_the_same_when_moved_or_touched(pets, cache, monkeypatch):
    first = read(pets)
    monkeypatch.setattr("limner.data.pack._pack", None)  # a second packing would fail
    assert read(pets).fingerprint == first.fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("LIMNER_CACHE", str(cache))

    moved = pets.rename(pets.parent / "moved")
    for path in moved.rglob("*.png"):
        os.utime(path, (1, 1))
    assert read(moved).fingerprint == first.fingerprint
    write(moved / "cat" / "00.png", noise(77, 20, 24, 3))
    assert read(moved).fingerprint != first.fingerprint


def test_options_that_packing_ignores_share_the_cache(pets, cache):
    whole = open_data(pets, options=DataOptions(cache=str(cache)))
    for options in ({"per_class": 2}, {"holdout": 0.5}, {"flip": True}):
        again = open_data(pets, options=DataOptions(cache=str(cache), **options))
        assert again.fingerprint == whole.fingerprint and len(again) == len(whole)
    assert len(list(cache.glob("packed/*"))) == 1
    open_data(pets, options=DataOptions(cache=str(cache), labels=False))  # packed otherwise
    assert len(list(cache.glob("packed/*"))) == 2


def test_a_damaged_cache_is_packed_anew(pets, cache):
    first = read(pets).array.copy()  # a map of a file that is cut cannot be read
    (array,) = cache.glob("packed/*/array.npy")
    array.write_bytes(array.read_bytes()[:1000])
    assert np.array_equal(read(pets).array, first)
    index = array.parent / "index.json"
    index.write_text("{")
    assert len(read(pets)) == 12
    assert [p.name for p in cache.glob("packed/*")] == [array.parent.name]


def test_two_processes_pack_at_once(pets, cache):
    code = f"from limner.data import open_data; print(open_data({str(pets)!r}).fingerprint)"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert {out.strip() for out, _ in outputs} == {read(pets).fingerprint}
    assert any("packed 12 images" in err and "images/s" in err for _, err in outputs)
    assert len(list(cache.glob("packed/*"))) == 1


def test_crop_pad_and_squash(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (255, 0, 0)  # a red square in the middle
    write(tmp_path / "a" / "wide.png", wide)
    red = [255, 0, 0]
    crop = read(tmp_path / "a", size=(20, 20)).array[0]
    assert (crop == red).all()
    pad = read(tmp_path / "a", size=(60, 60), options=DataOptions(fit="pad", background="blue")).array[0]
    assert (pad[:20] == [0, 0, 255]).all() and (pad[40:] == [0, 0, 255]).all()
    assert np.array_equal(pad[20:40], wide)
    squash = read(tmp_path / "a", size=(40, 30), options=DataOptions(fit="squash")).array[0]
    assert (np.abs(squash[:, 13:17] - np.array(red)) < 5).all() and (squash[:, :8] < 5).all()


def test_large_jpegs_are_shrunk_in_the_decoder_to_the_same_picture(tmp_path):
    y, x = np.mgrid[:480, :640]
    smooth = np.stack([x / 640, y / 480, (x + y) / 1120], -1) * 255
    write(tmp_path / "a" / "x.jpg", smooth.astype(np.uint8), quality=95)
    write(tmp_path / "b" / "x.png", smooth.astype(np.uint8))
    jpeg, png = (read(tmp_path / name, size=(24, 32)).array[0].astype(int) for name in "ab")
    assert np.abs(jpeg - png).max() <= 4


# Reading ----------------------------------------------------------------------------------------------------


def toy(n: int, classes: int = 0, fingerprint: str = "toy") -> Data:
    from limner.core import ImageSpec

    labels = np.arange(n) % classes if classes else None
    spec = ImageSpec(3, 4, 6, classes=tuple(map(str, range(classes))))
    return Data(spec, fingerprint, noise(0, n, 4, 6, 3), np.arange(n), [str(i) for i in range(n)], labels)


@given(n=st.integers(1, 50), seed=st.integers(0, 2**40), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_order_is_endless_shuffled_and_independent_of_chunks(n, seed, cuts):
    data, total = toy(n), 3 * n
    whole = data.order(0, total, seed)
    for epoch in range(3):
        assert sorted(whole[epoch * n : (epoch + 1) * n]) == list(range(n))
    edges = [0, *sorted(min(cut, total) for cut in cuts), total]
    runs = [data.order(a, b - a, seed) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(runs), whole)


def test_order_depends_on_epoch_and_seed():
    data = toy(100)
    orders = [data.order(0, 100, 0), data.order(100, 100, 0), data.order(0, 100, 1)]
    assert not any(np.array_equal(a, b) for a in orders for b in orders if a is not b)


def test_order_never_changes_between_versions():
    assert toy(8).order(0, 16, seed=3).tolist() == [7, 5, 6, 1, 2, 3, 0, 4, 0, 7, 3, 1, 2, 4, 6, 5]


@given(n=st.integers(0, 200), holdout=st.floats(0, 0.5), classes=st.integers(0, 5))
def test_split_is_disjoint_whole_and_stable(n, holdout, classes):
    data = toy(n, classes)
    training, held = data.split(holdout)
    assert sorted([*training.rows, *held.rows]) == list(range(n))
    assert held.names == data.split(holdout)[1].names
    assert (len(held) >= 1) == (n >= 20 and holdout > 0)
    if classes and len(held):  # every class within one image of its share
        counts = np.bincount(held.labels, minlength=classes)
        assert np.abs(counts - np.bincount(data.labels, minlength=classes) * len(held) / n).max() <= 1


def test_split_differs_with_the_data_and_parts_read_their_own():
    data = toy(100)
    _, held = data.split(0.1)
    assert held.names != toy(100, fingerprint="other").split(0.1)[1].names
    assert np.array_equal(held.array, data.array[held.rows]) and held.names == [str(i) for i in held.rows]
    assert torch.equal(held.batch(np.arange(10)).image, data.batch(held.rows).image)
    with pytest.raises(LimnerError):
        data.split(1.0)


def test_batch_values(pets):
    (pets / "cat" / "00.txt").write_text("first")
    data = read(pets)
    batch = data.batch(np.array([7, 0, 7]))
    expected = torch.from_numpy(noise(7, 20, 24, 3)).permute(2, 0, 1).double() / 127.5 - 1
    assert batch.image.shape == (3, 3, 20, 24) and batch.image.dtype == torch.float32
    assert batch.image.is_contiguous() and (batch.image[0] - expected).abs().max() < 1e-6
    assert batch.condition.label.tolist() == [1, 0, 1] and batch.condition.text == ["", "first", ""]
    assert batch.image.min() >= -1 and batch.image.max() <= 1

    flipped = data.batch(Selection(np.array([7, 0, 7]), np.array([True, False, True]))).image
    assert torch.equal(flipped[0], batch.image[0].flip(-1)) and torch.equal(flipped[1], batch.image[1])
    assert np.array_equal(data.array[7], noise(7, 20, 24, 3))  # the data itself is untouched


def test_16_bits_end_to_end(tmp_path):
    write(tmp_path / "a" / "x.png", noise(0, 16, 16, dtype=np.uint16))
    data = read(tmp_path / "a")
    assert data.array.dtype == np.uint16 and data.spec.shape == (1, 16, 16) and data.spec.bits == 16
    image = data.batch(np.array([0])).image[0]
    save_png(image, tmp_path / "back.png", bits=16)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png")), noise(0, 16, 16, dtype=np.uint16))
    folder.save(tmp_path / "drawn", folder.ImageBatch(image[None], [5], Condition(1), data.spec))
    assert np.array_equal(read(tmp_path / "drawn").array, data.array), (
        "what a run of 16 bits draws keeps them"
    )


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_of_16_bits_end_to_end(tmp_path, channels):
    """What a run of 16 bits draws is written in 16 bits, and read back equal."""
    pixels = noise(0, 2, 16, 16, channels, dtype=np.uint16)
    pixels = np.minimum(pixels, pixels[..., -1:]) if channels == 4 else pixels  # premultiplied
    image = torch.from_numpy(pixels.astype(np.float32)).movedim(-1, 1) / 32767.5 - 1
    spec = ImageSpec(channels, 16, 16, bits=16)
    folder.save(tmp_path / "drawn", folder.ImageBatch(image, [5, 6], Condition(2), spec))
    data = read(tmp_path / "drawn")
    assert data.spec == spec and np.array_equal(data.array, pixels)
    assert Image.open(tmp_path / "drawn" / "000005.png").mode == ("RGB" if channels == 3 else "RGBA")


def test_transparency_end_to_end(tmp_path):
    pixels = noise(0, 16, 16, 4)
    pixels[0, 0] = (200, 100, 50, 0)
    write(tmp_path / "a" / "x.png", pixels)
    data = read(tmp_path / "a")
    assert data.spec.channels == 4
    colour, alpha = pixels[..., :3].astype(float), pixels[..., 3:].astype(float)
    assert np.array_equal(data.array[0, ..., :3], np.rint(colour * alpha / 255))
    back = np.asarray(to_pil(data.batch(np.array([0])).image[0])).astype(float)
    assert np.array_equal(back[..., 3:], alpha)
    seen = alpha[..., 0] > 0
    assert (np.abs(back - pixels)[seen][:, :3] <= 127.5 / alpha[seen] + 0.501).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_to_pil_modes(channels, mode):
    image = torch.full((channels, 5, 7), -1.0)
    image[-1] = 1.0
    picture = to_pil(image)
    assert picture.mode == mode and picture.size == (7, 5)
    assert np.asarray(picture).reshape(5, 7, -1)[0, 0].tolist() == [0] * (channels - 1) + [255]


# Looking ----------------------------------------------------------------------------------------------------


def test_grid_lays_out_and_enlarges():
    images = torch.rand(5, 3, 8, 12) * 2 - 1
    sheet = grid(images, columns=3, scale=2)
    assert sheet.mode == "RGB" and sheet.size == (3 * 24 + 4 * 12, 2 * 16 + 3 * 12)
    tile = np.asarray(sheet)[12 : 12 + 16, 12 : 12 + 24]
    assert np.array_equal(tile[::2, ::2], np.asarray(to_pil(images[0])))
    assert np.array_equal(tile[::2, ::2], tile[1::2, 1::2])
    taller = grid(images, ["a word"] * 5, columns=3, scale=2)
    assert taller.width == sheet.width and taller.height > sheet.height
    framed = np.asarray(grid(images, columns=3, scale=2, marked=[False, True]))
    changed = np.argwhere((framed != np.asarray(sheet)).any(-1))  # around the second tile, outside its pixels
    assert changed.min(0).tolist() == [8, 44] and changed.max(0).tolist() == [31, 75]
    assert np.array_equal(framed[12:28, 48:72], np.asarray(sheet)[12:28, 48:72])


def test_grid_takes_any_caption_and_picture():
    captions = ["红色的圆 в синем", "😀 🏴‍☠️ \x00\x07", "two\nlines", "w" * 500, "\ud800", ""]
    pictures = [Image.new(mode, (20, 10)) for mode in ("L", "RGB", "RGBA", "P", "I;16")] + [
        torch.zeros(1, 30, 10)
    ]
    sheet = grid(pictures, captions)
    assert sheet.width < 2000 and np.asarray(sheet).min() < 100  # there is ink
    with pytest.raises(LimnerError):
        grid([])
    with pytest.raises(LimnerError):
        grid(pictures, ["one"])


def test_check_tells_what_there_is_and_how_to_mend_it(pets):
    shutil.copy(pets / "cat" / "00.png", pets / "dog" / "again.png")
    (pets / "dog" / "bad.jpg").write_bytes(b"no image")
    write(pets / "dog" / "grey.png", noise(0, 200, 20, dtype=np.uint16))
    report = check([pets], progress=False)
    told = json.loads(json.dumps(report.to_json()))
    assert told["images"] == 14 and told["formats"] == {"PNG": 14} and told["modes"] == {"RGB": 13, "I;16": 1}
    assert told["sizes"] == {"20x24": 13, "200x20": 1} and told["bits"] == {"8": 13, "16": 1}
    assert told["classes"] == {"dog": 9, "cat": 5}
    assert told["duplicates"] == [["cat/00.png", "dog/again.png"]]
    assert [p["path"] for p in told["problems"]] == ["dog/bad.jpg"]
    advice = " ".join(told["advice"])
    assert all(word in advice for word in ("problems", "duplicates", "grey", "longer than wide", "few"))
    assert "dog/bad.jpg" in str(report) and "not an image" in str(report)


def test_an_archive_of_an_image_beside_captions(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(2):
            image = io.BytesIO()
            Image.fromarray(noise(i, 16, 16, 3)).save(image, "PNG")
            archive.writestr(f"猫/{i}.png", image.getvalue())
            archive.writestr(f"猫/{i}.txt", f"cat {i}")
        archive.writestr("__MACOSX/猫/._0.png", b"fork")
    data = read(tmp_path / "a.zip")
    assert (
        data.captions == ["cat 0", "cat 1"] and data.names == ["猫/0.png", "猫/1.png"] and not data.problems
    )


def test_shapes_drawn_by_other_code_are_packed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache once served pictures of an earlier drawing, whose objects were smaller."""
    from limner.data.sources import builtin

    before = list(builtin.shapes().key)
    monkeypatch.setattr(builtin.Path, "read_bytes", lambda self: b"another drawing")
    assert list(builtin.shapes().key) != before


def test_few_images_of_each_class():
    labels = np.array([0] * 30 + [1] * 20 + [2] * 3)
    spec = ImageSpec(1, 2, 2, classes=("a", "b", "c"))
    data = Data(
        spec, "f", np.zeros((53, 2, 2, 1), np.uint8), np.arange(53), [str(i) for i in range(53)], labels
    )
    training, held = data.split(0.2, per_class=5)
    everything, same = data.split(0.2)
    assert np.bincount(training.labels).tolist() == [5, 5, int((everything.labels == 2).sum())]
    assert held.names == same.names and set(training.names) <= set(everything.names)
    assert training.names == data.split(0.2, per_class=5)[0].names
    with pytest.raises(LimnerError, match="no classes"):
        dataclasses.replace(data, labels=None).split(0.2, per_class=5)


@pytest.mark.parametrize("side", [32, 64])
def test_images_of_every_size_are_cropped(side):
    """Of a 13th of all sizes the crop's margin came out a little below nothing, and Pillow refused them."""
    for long in range(1, 400):
        decode.decode(Image.new("L", (long, long)), side, side, "crop")
    for size in ((2090, 1568), (1045, 784), (2282, 1712), (2197, 1648)):
        decode.decode(Image.new("L", size), side, side, "crop")


def test_a_glob_takes_every_file_and_its_folders_for_labels(tmp_path, cache):
    for label in ("cats", "dogs"):
        paint(tmp_path / "all" / label, 2, seed=len(label))
    data = open_data(str(tmp_path / "all" / "*" / "*.png"), size=(8, 8), progress=False)
    assert len(data) == 4 and data.spec.classes == ("cats", "dogs")
    assert len(open_data(str(tmp_path / "**" / "*.png"), size=(8, 8), progress=False)) == 4


def test_check_says_what_size_training_makes_of_photos(tmp_path, cache):
    paint(tmp_path / "large", 2, (90, 120))
    paint(tmp_path / "small", 2, (20, 24))
    large, small = (check(str(tmp_path / name), progress=False).advice for name in ("large", "small"))
    assert any("32x32" in line and "--size" in line for line in large)
    assert not any("--size" in line for line in small)
