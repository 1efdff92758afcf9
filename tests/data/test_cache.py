"""The cache of packed data: what was changed in it is noticed and never trained on."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.data import open_data, rows
from limner.data.dataset import Data
from limner.files import Damaged


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path) -> Path:
    """Forty images of 16 x 20 in two classes, some with captions."""
    for i in range(40):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(f"picture {i}")
    return tmp_path / "images"


@pytest.fixture
def by_row(monkeypatch):
    """Arrays are read as large ones are: row by row, each block checked before its first use."""
    monkeypatch.setattr(rows, "_IN_MEMORY", 0)
    monkeypatch.setattr(rows, "BLOCK", 1000)


def read(source: Path) -> Data:
    return open_data(source, progress=False)


def packing(cache: Path) -> Path:
    (folder,) = cache.glob("packed/*")
    return folder


def same(one: Data, other: Data) -> bool:
    return np.array_equal(one.array, other.array) and (one.names, one.captions, one.spec, one.fingerprint) == (
        other.names, other.captions, other.spec, other.fingerprint
    )  # fmt: skip


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Cut, flipped, zeroed, doubled or overwritten."""
    new, at = bytearray(content), chance.randrange(len(content))
    match chance.randrange(5):
        case 0:
            del new[at:]
        case 1:
            new[at] ^= 1 << chance.randrange(8)
        case 2:
            new[at : at + chance.randrange(1, 5000)] = b""
        case 3:
            new[at:at] = chance.randbytes(chance.randrange(1, 100))
        case 4:
            end = min(len(new), at + chance.randrange(1, 5000))
            new[at:end] = bytes(end - at)
    return bytes(new)


@pytest.mark.parametrize("name", ["index.json", "array.npy"])
def test_mutations_are_packed_again(source, cache, name):
    whole, chance = read(source), random.Random(name)
    assert len(whole.array) == 40  # in memory from now on
    path = packing(cache) / name
    good, again = path.read_bytes(), 0
    for _ in range(60):
        bad = mutated(good, chance)
        path.write_bytes(bad)
        if bad == good:
            continue
        with pytest.warns(UserWarning, match=r"is damaged: .* It is packed again\."):
            assert same(read(source), whole)
        again += path.read_bytes() == good and packing(cache) == path.parent
    assert again >= 55


OTHER = [
    b"",
    b"null",
    b"5",
    b"[]",
    b"{}",
    b'"x"',
    b"[" * 10_000 + b"]" * 10_000,
    b"\xff\xfe{",
    b"{" * 100_000,
]


@pytest.mark.parametrize("content", OTHER, ids=range(len(OTHER)))
def test_any_other_index_is_packed_again(source, cache, content):
    whole = read(source)
    (packing(cache) / "index.json").write_bytes(content)
    with pytest.warns(UserWarning, match="It is packed again"):
        assert same(read(source), whole)


def unsealed(folder: Path) -> dict:
    """The index as it was before there were digests."""
    index = json.loads((folder / "index.json").read_text())
    del index["digest"], index["blocks"]
    return index


@pytest.mark.parametrize(
    "change",
    [
        {"spec": None}, {"spec": {"channels": 3}}, {"spec": "x"}, {"labels": [7] * 40}, {"labels": [0.5] * 40},
        {"labels": [-1] * 40}, {"labels": "ab"}, {"labels": None}, {"captions": [1] * 40}, {"captions": ["a"] * 39},
        {"captions": {}}, {"names": None}, {"names": ["a"] * 39}, {"names": [["a"]] * 40}, {"problems": [1]},
        {"problems": None}, {"notes": "ab"}, {"notes": [None]}, {"sources": [41]}, {"sources": [10**30]},
        {"sources": [-1, 41]}, {"sources": []}, {"fingerprint": 5}, {"fingerprint": "0" * 32}, {"blocks": 5},
        {"blocks": [None]}, {"digest": None}, {"digest": "0" * 32},
    ],
    ids=lambda change: str(change)[:20],
)  # fmt: skip
@pytest.mark.parametrize("seal", [False, True])
def test_any_other_entry_is_packed_again(source, cache, change, seal):
    whole = read(source)
    path = packing(cache) / "index.json"
    index = json.loads(path.read_text()) if seal else unsealed(path.parent)
    path.write_text(json.dumps(index | change))
    with pytest.warns(UserWarning, match="It is packed again"):
        assert same(read(source), whole)


def test_packings_without_digests_are_packed_again(source, cache):
    whole = read(source)
    index = packing(cache) / "index.json"
    sealed = index.read_text()
    index.write_text(json.dumps(unsealed(packing(cache))))
    with pytest.warns(UserWarning, match=r"is of an earlier version of Limner\. It is packed again\."):
        assert same(read(source), whole) and index.read_text() == sealed


def test_a_small_array_in_use_does_not_depend_on_its_file(source, cache):
    data = read(source)
    before = data.batch(np.arange(40)).image
    path = packing(cache) / "array.npy"
    os.truncate(path, 100)
    assert data.batch(np.arange(40)).image.equal(before)
    with pytest.raises(ValueError, match="read-only"):
        data.pixels._whole[0] = 0
    data.array[0] = 0  # a copy
    assert data.batch(np.arange(40)).image.equal(before)


def test_rows_of_large_arrays_are_the_same(source, by_row):
    data, index = read(source), np.random.default_rng(0).integers(0, 40, 100)
    files = [np.asarray(Image.open(source / data.names[i])) for i in index]
    assert np.array_equal(data.pixels[index], files)
    assert len(data.pixels[index[:0]]) == 0 and data.array.shape == (40, 16, 20, 3)


def damage_cut(path: Path) -> None:
    os.truncate(path, 10_000)


def damage_zeros(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(20_000)
        file.write(bytes(3000))


@pytest.mark.parametrize("damage", [damage_cut, damage_zeros])
@pytest.mark.parametrize("used", [False, True])
def test_a_large_array_that_changes_in_use_ends_it(source, cache, by_row, damage, used):
    data = read(source)
    whole = data.array if used else None  # each block was checked before
    path = packing(cache) / "array.npy"
    damage(path)
    assert np.array_equal(
        data.pixels[np.arange(5)], np.stack([data.pixels[np.array([i])][0] for i in range(5)])
    )
    with pytest.raises(
        Damaged, match=r"is damaged: .*array\.npy .* It was in use: run the same command again"
    ):
        data.batch(np.arange(40))
    assert whole is None or np.array_equal(read(source).array, whole)  # packed again
    assert np.array_equal(read(source).labels, data.labels)


def test_who_reads_is_not_disturbed_by_another_packing(source, cache, by_row):
    data = read(source)
    before = data.array
    shutil.rmtree(packing(cache))
    assert np.array_equal(read(source).array, before)  # packed again, under the same name
    assert np.array_equal(data.array, before)
    (packing(cache) / "array.npy").touch()
    assert np.array_equal(data.array, before)


@pytest.mark.process
def test_two_processes_repair_at_once(source, cache):
    read(source)
    os.truncate(packing(cache) / "array.npy", 2000)
    code = f"from limner.data import open_data; print(open_data({str(source)!r}).array.sum())"
    start = [sys.executable, "-W", "ignore", "-c", code]
    runs = [
        subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [run.communicate() for run in runs]
    total = str(read(source).array.sum())
    assert [(out.strip(), run.returncode) for run, (out, _) in zip(runs, said, strict=True)] == [
        (total, 0)
    ] * 3
    assert packing(cache).is_dir()
