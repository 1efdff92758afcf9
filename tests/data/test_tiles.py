"""Large pictures cut into tiles at their own scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.data import Data, open_data, open_picture, tiles
from limner.data.given import settle
from limner.settings import DataOptions, LimnerError


def photos(folder: Path, *sizes: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Pictures of noise of these heights and widths, by name; no two have a pixel in common."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    found = {}
    for i, size in enumerate(sizes):
        found[f"{i}.png"] = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(found[f"{i}.png"]).save(folder / f"{i}.png")
    return found


def read(source, size=(32, 32), **options) -> Data:
    return open_data(source, size=size, options=DataOptions(fit="tiles", **options), progress=False)


def test_every_row_is_a_tile_of_the_picture_at_its_own_scale(tmp_path):
    whole = photos(tmp_path / "a", (64, 96), (70, 33), (32, 32))
    data = read(tmp_path / "a")
    assert data.tiled and data.spec.shape == (3, 32, 32)
    places = [name for name in data.names if name.startswith("0@")]
    assert places == [f"0@{i},{j}.png" for i in range(2) for j in range(3)], (
        "each pixel once where tiles divide it"
    )
    for name, row in zip(data.names, data.array, strict=True):
        picture = whole[tiles.picture_of(name)]
        i, j = map(int, name.split("@")[1].removesuffix(".png").split(","))
        top, left = min(32 * i, picture.shape[0] - 32), min(32 * j, picture.shape[1] - 32)
        assert np.array_equal(row, picture[top : top + 32, left : left + 32])
    assert [name for name in data.names if name.startswith(("1@", "2@"))] == [
        "1@0,0.png",
        "1@1,0.png",
        "2@0,0.png",
    ]
    assert data.spec == read(tmp_path / "a").spec, "from the cache"
    assert read(tmp_path / "a").tiled


@pytest.mark.parametrize(("length", "side", "begin"), [
    (64, 32, [0, 32]), (79, 32, [0, 32]), (80, 32, [0, 32, 48]), (95, 32, [0, 32, 63]), (32, 32, [0]), (47, 32, [0]),
])  # fmt: skip
def test_a_rest_of_half_a_side_or_more_has_a_tile_of_its_own(length, side, begin):
    assert tiles.starts(length, side) == begin
    assert tiles.starts(4 * length, 4 * side) == [4 * at for at in begin], "so that pairs of two scales agree"


def test_what_is_smaller_than_a_tile_is_refused_by_name(tmp_path, capsys):
    photos(tmp_path / "a", *[(40, 40)] * 10, (40, 31))
    data = open_data(tmp_path / "a", size=(32, 32), options=DataOptions(fit="tiles"))
    told = {p.path: p.reason for p in data.problems}
    assert told == {"10.png": "31 pixels are less than the 32 of a tile: choose a smaller --size"}
    said = " ".join(capsys.readouterr().err.split())
    assert "cut into 10 tiles of 32x32 at their own scale" in said and "'10.png' (31 pixels" in said
    with pytest.raises(
        LimnerError, match=r"11 of 11 images .* such as '0.png' \(40 pixels are less than the 64 of a t"
    ):
        read(tmp_path / "a", (64, 64))


def test_the_size_of_tiles_without_one(tmp_path):
    photos(tmp_path / "large", (150, 260)), photos(tmp_path / "small", (48, 40))
    large, small = (read(tmp_path / name, None) for name in ("large", "small"))
    assert large.spec.shape == (3, 128, 128) and len(large) == 2
    assert small.spec.shape == (3, 48, 40) and len(small) == 1


def test_what_is_drawn_has_no_own_scale(tmp_path):
    drawn = read("shapes")
    assert (
        not drawn.tiled
        and drawn.fingerprint == open_data("shapes", size=(32, 32), progress=False).fingerprint
    )
    photos(tmp_path / "a", (40, 40))
    with pytest.raises(
        LimnerError, match=r"shapes is drawn at the size .*: name one kind of source, or choose --data"
    ):
        read(["shapes", tmp_path / "a"])


def test_the_split_never_tears_a_picture(tmp_path):
    photos(tmp_path / "a", *[(64, 64)] * 12)
    data = read(tmp_path / "a")
    training, held_out = data.split(0.2)
    train_on, test_on = ({tiles.picture_of(name) for name in part.names} for part in (training, held_out))
    assert len(test_on) == 2 and len(held_out) == 8 and len(training) == 40 and not train_on & test_on
    assert not len(read(tmp_path / "a").part(np.arange(12)).split(0.2)[1]), "three pictures are too few"


def test_tiles_of_pairs_lie_in_the_same_places(tmp_path):
    """Also where the wanted pictures are larger, as for super-resolution."""
    large = photos(tmp_path / "large", (70, 100), (33, 50), (64, 64))
    for name, picture in large.items():
        (tmp_path / "small").mkdir(exist_ok=True)
        even = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
        Image.fromarray(even).save(tmp_path / "large" / name)
        Image.fromarray(even[::2, ::2]).save(tmp_path / "small" / name)
    data = read([tmp_path / "small", tmp_path / "large"], given="pairs")
    assert data.spec.given.shape == (3, 16, 16) and len(data) == len(data.given) == 12
    assert data.names == data.given.names and not data.problems
    batch = data.batch(np.arange(len(data)))
    assert np.array_equal(batch.image[:, :, ::2, ::2], batch.condition.image)
    Image.fromarray(large["2.png"][:62, :62]).save(tmp_path / "large" / "2.png")
    data = read([tmp_path / "small", tmp_path / "large"], given="pairs")
    assert [p.path for p in data.problems] == ["2.png"] and len(data) == 8, "a picture is named once"


def test_turned_and_halved_pictures_are_cut_as_they_are_seen(tmp_path):
    picture = photos(tmp_path / "a", (64, 96))["0.png"]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "a" / "0.png", exif=exif)
    turned = np.rot90(picture, -1)
    rows = read(tmp_path / "a")
    assert len(rows) == 6 and np.array_equal(rows.array[1], turned[:32, 32:64])
    halves = read(tmp_path / "a", halves=True)
    assert len(halves) == 3 and np.array_equal(halves.array[1], turned[32:64, 32:64])
    assert np.array_equal(halves.given.array[1], turned[32:64, :32])
    picture = open_picture(tmp_path / "a" / "0.png", rows.spec, DataOptions(fit="tiles"))
    assert picture.shape == (1, 3, 32, 32), "a single picture is read whole"


def test_families_that_degrade_their_images_read_tiles():
    options = DataOptions()
    assert settle(["photos"], options, ("degraded",), "up").fit == "tiles"
    assert settle(["photos", "more"], options, ("degraded", "pairs"), "up") == DataOptions(fit="tiles")
    assert settle(["photos"], options, ("pairs", "degraded"), "bridge").fit == "tiles"
    assert settle(["photos"], DataOptions(fit="pad"), ("degraded",), "up").fit == "pad"
    assert settle(["photos"], options, (), "flow").fit == "crop"
    assert settle(["a", "b"], options, ("pairs", "degraded"), "bridge") == DataOptions(given="pairs")
