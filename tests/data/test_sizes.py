"""What is said of the images' sizes, transparency and depth, and sizes that cannot be had."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from limner import cli
from limner.data import check, open_data, sizes
from limner.settings import DataOptions, LimnerError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save(folder: Path, *pictures: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for pixels in pictures:
        Image.fromarray(pixels).save(folder / f"{len(list(folder.iterdir())):03d}.png")
    return folder


def blank(height: int, width: int, *channels: int, dtype=np.uint8) -> np.ndarray:
    return np.full((height, width, *channels), 40, dtype)


def notes(source: Path, size: tuple[int, int] | None = None, **options) -> list[str]:
    first = open_data(source, size=size, options=DataOptions(**options), progress=False)
    again = open_data(source, size=size, options=DataOptions(**options), progress=False)
    assert first.notes == again.notes  # from the cache
    return first.notes


@pytest.mark.parametrize("side", [12, 72, 128, 256])
def test_one_size_that_is_not_kept_is_said(tmp_path, side):
    source = save(tmp_path / "a", *[blank(side, side, 3)] * 3)
    said = f"All images are {side}x{side} (height x width): they are resized to 32x32 (--size changes this)."
    found = notes(source)
    assert found[0] == said and said in check(source, progress=False).advice
    enlarged = "All are smaller than 32x32 and are enlarged, up to 2.7 times, which blurs them."
    assert found[1:] == ([enlarged] if side == 12 else [])
    assert notes(source, (side, side)) == []


def test_the_median_of_their_own_sizes_is_kept(tmp_path):
    """Also in the cache; pictures that Limner draws have none."""
    source = save(tmp_path / "a", blank(40, 300, 3), blank(50, 90, 3), blank(200, 60, 3))
    for _ in ("packed", "cached"):
        assert open_data(source, progress=False).own == (50, 90)
    assert open_data("digits", progress=False).own is None


def test_sizes_that_are_kept_are_not_said(tmp_path):
    assert notes(save(tmp_path / "a", *[blank(48, 64, 3)] * 3)) == []


def test_what_a_crop_keeps_is_said(tmp_path):
    source = save(tmp_path / "a", *[blank(172, 307, 3)] * 3)
    said = (
        "All images are 172x307 (height x width): they are resized to 32x32 and cropped, "
        "which keeps 56% of their area (--size and --data.fit change this)."
    )
    assert notes(source) == [said] and said in check(source, progress=False).advice
    for fit, what in ("pad", "fit 32x32 and padded"), ("squash", "32x32, which changes their shapes"):
        assert notes(source, fit=fit) == [
            f"All images are 172x307 (height x width): they are resized to {what} "
            "(--size and --data.fit change this)."
        ]
        assert notes(source, (86, 154), fit=fit)[0].endswith("resized to 86x154 (--size changes this).")
    assert "cropped" not in notes(source, (43, 76))[0]  # hardly anything is lost


def test_mixed_sizes_are_said_in_one_line(tmp_path):
    source = save(tmp_path / "a", blank(40, 40, 3), blank(50, 100, 3), blank(60, 180, 3))
    assert notes(source, (20, 20)) == [
        "The images are 50x100 in the median (height x width), from 40x40 to 60x180: they are resized to 20x20 and "
        "cropped, which keeps 42% of the area of 2 of them in the median (--size and --data.fit change this)."
    ]


def test_images_that_are_enlarged_are_counted(tmp_path):
    source = save(tmp_path / "a", blank(16, 48, 3), blank(40, 40, 3), blank(50, 100, 3), blank(8, 16, 3))
    said = "2 of the 4 are smaller than 32x32 and are enlarged, up to 4 times, which blurs them."
    assert notes(source)[1:] == [said] and said in check(source, progress=False).advice
    one = "1 of the 4 is smaller than 32x32 and is enlarged, up to 2 times, which blurs them."
    assert notes(source, fit="pad")[1:] == [one]  # 16x48 becomes 11x32
    assert not notes(source, (8, 16))[1:]


def test_some_transparent_or_deep_images_that_change_all_are_said(tmp_path):
    clear = blank(20, 20, 4)
    source = save(tmp_path / "a", *[blank(20, 20, 3)] * 3, clear)
    assert notes(source) == [
        "With transparency in 1 of 4 images, all are packed as RGBA "
        "(--data.channels 3 lays them over --data.background)."
    ]
    assert notes(source, channels=3) == [] and notes(save(tmp_path / "b", clear, clear)) == []
    opaque = blank(20, 20, 4)
    opaque[..., 3] = 255
    assert notes(save(tmp_path / "c", blank(20, 20, 3), opaque)) == []
    deep = save(tmp_path / "d", blank(20, 20), blank(20, 20, dtype=np.uint16))
    assert notes(deep) == ["With 16 bits a channel in 1 of 2 images, all are packed in 16 bits."]
    assert notes(deep)[0] in check(deep, progress=False).advice


@pytest.mark.process
def test_commands_say_it_every_time(tmp_path):
    source = save(tmp_path / "a", *[blank(72, 72, 3)] * 8)
    train = [
        "train",
        "flow",
        source,
        "--preset",
        "tiny",
        "--budget",
        "8img",
        "--training.samples",
        0,
        "--out",
    ]
    for command in (
        [*train, tmp_path / "run1"], [*train, tmp_path / "run2"], ["data", "show", source, "--to", tmp_path / "x.png"],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "limner.cli", *map(str, command)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "72x72" in (said := " ".join(done.stderr.split())) and "32x32 (--size changes this)" in said


# Sizes that cannot be had ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20_000, 20_000), (0, 5), (-1, 8), (99_999, 99_999)])
def test_sizes_that_no_image_can_have(tmp_path, size):
    source = save(tmp_path / "a", *[blank(20, 20, 3)] * 2)
    given = [DataOptions(given="pairs", given_size=size)] if min(size) > 0 else []
    for options in (DataOptions(), *given):
        sources = [source, source] if options.gives else source
        with pytest.raises(LimnerError, match=rf"{size[0]}x{size[1]} pixels cannot be made"):
            open_data(sources, size=None if options.gives else size, options=options, progress=False)


def test_sizes_for_which_there_is_no_room(tmp_path, cache, monkeypatch):
    source = save(tmp_path / "a", *[blank(20, 20, 3)] * 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(
        LimnerError, match=r"needs about 48,000 bytes in .*, where 10,000 are free: choose a smaller"
    ):
        open_data(source, size=(100, 40), progress=False)
    assert not cache.exists()
    monkeypatch.undo()
    monkeypatch.setenv("LIMNER_CACHE", str(cache))
    monkeypatch.setattr(sizes, "memory", lambda: 100_000)
    data = open_data(source, size=(100, 40), progress=False)
    assert len(data.batch(np.arange(2)).image) == 2
    with pytest.raises(LimnerError, match=r"8 images of 100x40 take .* GB, more than this machine's memory"):
        data.batch(np.arange(8) % 2)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("x: can't allocate memory: 9 bytes")])
def test_a_lack_of_memory_is_a_sentence(error, monkeypatch, capsys):
    def lacks(argv):
        raise error

    monkeypatch.setattr(cli, "run", lacks)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (
        end.value.code == 2 and "not enough memory: choose smaller images (--size)" in capsys.readouterr().err
    )
