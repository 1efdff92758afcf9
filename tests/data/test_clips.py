"""Clips: which frames they have, how they are packed, split and read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.data import Data, open_data
from limner.data.clips.names import film_of
from limner.data.clips.times import Cut, ticks
from limner.settings import DataOptions, LimnerError
from tests.helpers import golden, paint


def frames(count: int, size: tuple[int, int] = (16, 16), first: int = 0) -> list[Image.Image]:
    """Grey frames, each 2 levels lighter than the one before, so that a frame says its number."""
    return [Image.fromarray(np.full((*size, 3), 2 * (first + i), np.uint8)) for i in range(count)]


def numbers(pixels: np.ndarray) -> list[int]:
    """The numbers of frames [..., H, W, C] that ``frames`` made."""
    return (pixels[..., 0, 0, 0].astype(int) // 2).tolist()


def animate(path: Path, pictures: list[Image.Image], duration: int | list[int] = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, **how)


def number(folder: Path, pictures: list[Image.Image], name: str = "frame{}.png", start: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        picture.save(folder / name.format(i + start))


def read(source: object, size: tuple[int, int] | None = None, **options: object) -> Data:
    return open_data(source, size=size, options=DataOptions(**{"frames": 4, **options}), progress=False)


def test_golden_of_times():
    given, expected = golden("frame_sampling")
    cut = Cut(given["clip"], given["stride"], given["step"])
    places = [[start + k * cut.stride for k in range(cut.frames)] for start in cut.starts(given["frames"])]
    assert places == [clip.tolist() for clip in expected["clips"]]
    assert ticks(given["pts_variable"].tolist(), given["fps"]) == expected["variable_at_5"].tolist()
    constant = [k / 30 for k in range(60)]
    assert ticks(constant, given["fps_of_those"]) == expected["constant_30_at_8"].tolist()


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 40])
@pytest.mark.parametrize(
    "cut", [Cut(4, 3), Cut(4, 3, 5), Cut(4, 2, 6), Cut(4, 2, 2), Cut(3, 1, 7), Cut(1), Cut(4)]
)
def test_what_is_kept_holds_every_clip(cut, count):
    kept = [tick for tick in range(count) if cut.keeps(tick)]
    firsts, stride = cut.places(count)
    found = [[kept[first + k * stride] for k in range(cut.frames)] for first in firsts]
    assert found == [[start + k * cut.stride for k in range(cut.frames)] for start in cut.starts(count)]
    assert len(found) == max(0, (count - cut.span) // cut.every + 1)


def test_times_that_rounding_moves_and_ends_that_are_known():
    assert ticks([k * 0.1 for k in range(10)], 10) == list(range(10))
    assert ticks([0, 0.1], 10, end=0.6) == [0, 1, 1, 1, 1, 1]
    assert ticks([5.0], 8) == [0] and ticks([], 8) == []


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations(tmp_path, suffix):
    animate(tmp_path / "a" / f"x{suffix}", frames(11))
    data = read(tmp_path / "a")
    assert data.spec.shape == (1, 4, 16, 16) and data.spec.rate == pytest.approx(10)
    assert data.names == [f"x{suffix}@0", f"x{suffix}@4"]
    assert [numbers(clip) for clip in data.array] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert data.pixels.shape[0] == 8, "what belongs to no clip is not kept"
    batch = data.batch(np.array([1, 0]))
    assert batch.image.shape == (2, 1, 4, 16, 16) and batch.counts is None
    assert batch.image[0, 0, :, 0, 0].tolist() == pytest.approx([v / 127.5 - 1 for v in (8, 10, 12, 14)])


def test_overlapping_clips_share_their_frames(tmp_path):
    animate(tmp_path / "a" / "x.gif", frames(20))
    data = read(tmp_path / "a", stride=3, step=5)
    assert [numbers(clip) for clip in data.array] == [[0, 3, 6, 9], [5, 8, 11, 14], [10, 13, 16, 19]]
    assert data.spec.rate == pytest.approx(10 / 3)
    data = read(tmp_path / "a", step=1)
    assert len(data) == 17 and data.pixels.shape[0] == 20


def test_a_rate_goes_by_the_delays(tmp_path):
    animate(tmp_path / "a" / "x.gif", frames(4), [100, 400, 100, 200])
    data = read(tmp_path / "a", rate=10.0)
    assert [numbers(clip) for clip in data.array] == [[0, 1, 1, 1], [1, 2, 3, 3]]
    assert any("variable rate" in note for note in read(tmp_path / "a").notes)


def test_a_folder_of_numbered_images_is_a_clip(tmp_path):
    number(tmp_path / "a" / "cats" / "walk", frames(12), start=9)  # 9, 10, 11 by value
    number(tmp_path / "a" / "dogs" / "run", frames(4), "{:03d}.png")
    (tmp_path / "a" / "cats" / "walk.txt").write_text("a cat walks")
    data = read(tmp_path / "a")
    assert data.names == ["cats/walk@0", "cats/walk@4", "cats/walk@8", "dogs/run@0"]
    assert [numbers(clip) for clip in data.array[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert data.spec.classes == ("cats", "dogs") and data.captions[1] == "a cat walks"
    assert data.spec.rate is None, "images have no times"
    with pytest.raises(LimnerError, match="Nothing here moves"):
        read(tmp_path / "a", numbered="stills")


def test_clips_do_not_cross_a_gap_in_the_numbers(tmp_path):
    number(tmp_path / "a" / "walk", frames(5))
    number(tmp_path / "a" / "walk", frames(6, first=50), start=10)
    data = read(tmp_path / "a")
    assert [numbers(clip) for clip in data.array] == [[0, 1, 2, 3], [50, 51, 52, 53]]
    assert any("'walk' after 5" in note for note in data.notes)


def test_archives_of_clips(tmp_path):
    animate(tmp_path / "a" / "x.gif", frames(4))
    number(tmp_path / "a" / "walk", frames(4, first=9))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted((tmp_path / "a").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "a"))
    one, other = read(tmp_path / "a"), read(tmp_path / "a.zip")
    assert one.names == other.names and np.array_equal(one.array, other.array)


def test_stills_beside_clips_count_one_frame(tmp_path):
    animate(tmp_path / "a" / "x.gif", frames(4))
    paint(tmp_path / "b" / "c", 3)
    data = read([tmp_path / "a", tmp_path / "b"], numbered="stills")
    assert len(data) == 4 and data.pixels.shape[0] == 7
    batch = data.batch(np.arange(4))
    assert batch.counts.tolist() == [[True] * 4] + 3 * [[True, False, False, False]]
    assert torch.equal(batch.image[1, :, 0], batch.image[1, :, 3])
    assert torch.equal(batch[1:].counts, batch.counts[1:])


def test_clips_of_one_film_stay_on_one_side(tmp_path):
    for i in range(10):
        noise = np.random.default_rng(i).integers(0, 256, (12, 16, 16, 3), np.uint8)
        animate(tmp_path / "a" / f"{i}.webp", [Image.fromarray(frame) for frame in noise])
    training, held = read(tmp_path / "a").split(0.3)
    films = [{film_of(name) for name in part.names} for part in (training, held)]
    assert [len(each) for each in films] == [7, 3] and not films[0] & films[1]
    assert len(training) == 21 and len(held) == 9


def test_twins_are_clips_alike_in_every_frame(tmp_path):
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (16, 16, 3), np.uint8)
    for i in range(20):  # all begin alike
        noise = [still, *rng.integers(0, 256, (3, 16, 16, 3), np.uint8)]
        animate(tmp_path / "a" / f"{i}.webp", [Image.fromarray(frame) for frame in noise])
    training, held = read(tmp_path / "a").split(0.2)
    assert len(training) == 16 and len(held) == 4 and held.twins == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda a: animate(a / "x.gif", frames(3)), "No film is as long as a clip.*'x.gif'.*3 frames"),
        (lambda a: paint(a, 1), "Nothing here moves"),
        (
            lambda a: (number(a / "w", frames(3)), number(a / "w", frames(3, (8, 20)), start=4)),
            "different sizes, such as 16x16 and 8x20",
        ),
    ],
)
def test_what_holds_no_clip_is_one_sentence(tmp_path, make, said):
    make(tmp_path / "a")
    with pytest.raises(LimnerError, match=said):
        read(tmp_path / "a")


def test_short_films_are_left_out_and_named(tmp_path):
    for i in range(3):
        animate(tmp_path / "a" / f"{i}.gif", frames(4, first=i))
    animate(tmp_path / "a" / "short.gif", frames(2))
    data = read(tmp_path / "a")
    assert len(data) == 3 and [p.path for p in data.problems] == ["short.gif"]
    assert any("1 of 4 is too short" in note and "'short.gif'" in note for note in data.notes)
