"""The pictures that rows are given: pairs, halves, domains; and a training that reads them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import limner as toolkit
from limner import checkpoint
from limner.core import ImageSpec
from limner.data import Data, Selection, check, open_data, open_like, open_picture
from limner.settings import DataOptions, LimnerError
from limner.synthesis.synthesize import synthesize


def flat(folder: Path, values: list[int], suffix: str = ".png", size: tuple[int, int] = (16, 16)) -> Path:
    """Grey-valued RGB pictures; the one of value v is called v and is bright on its left half."""
    folder.mkdir(parents=True, exist_ok=True)
    for v in values:
        pixels = np.full((*size, 3), v, np.uint8)
        pixels[:, : size[1] // 2] += 100
        Image.fromarray(pixels).save(folder / f"{v:03d}{suffix}")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Thirty images in colour, and their partners: other files, other values (one more), another size."""
    images = flat(tmp_path / "images", list(range(30)))
    given = tmp_path / "given"
    given.mkdir()
    for v in range(30):
        pixels = np.full((8, 24), v + 100, np.uint8)
        pixels[:, :12] += 50
        Image.fromarray(pixels).save(given / f"{v:03d}.bmp")
    return images, given


def read(source, size=None, **options) -> Data:
    return open_data(source, size=size, options=DataOptions(**options), progress=False)


def values(images: torch.Tensor, column: int = -1) -> list[int]:
    """What one pixel of each image [B, C, H, W] is, from 0 to 255."""
    return ((images[:, 0, 0, column] + 1) * 127.5).round().int().tolist()


def test_pairs_go_by_name_whatever_the_order_size_and_channels(folders):
    images, given = folders
    data = read(images, pairs=str(given), given_size=(4, 12))
    assert data.spec.shape == (3, 16, 16) or data.spec.shape == (1, 16, 16)
    assert data.spec.given == ImageSpec(1, 4, 12)
    order = np.array([7, 0, 29])
    batch = data.batch(order)
    assert batch.condition.image.shape == (3, 1, 4, 12)
    assert values(batch.image) == [7, 0, 29] and values(batch.condition.image) == [107, 100, 129]
    part = data.part(np.array([5, 6, 7]))
    assert values(part.batch(np.array([2])).condition.image) == [107]
    for side in data.split(0.2):
        batch = side.batch(np.arange(len(side)))
        assert [v + 100 for v in values(batch.image)] == values(batch.condition.image)


def test_notes_on_given_pictures_name_their_flags(folders, capsys):
    images, given = folders
    open_data(images, size=(8, 8), options=DataOptions(pairs=str(given)))
    own, of_given = (line for line in capsys.readouterr().err.splitlines() if "resized" in line)
    assert "--size" in own and "--data.given-size" in of_given and "--size" not in of_given


def test_a_flip_flips_both(folders):
    images, given = folders
    data = read(images, pairs=str(given), given_size=(4, 12))
    batch = data.batch(Selection(np.array([3, 3]), np.array([True, False])))
    assert values(batch.image) == [103, 3] and values(batch.condition.image) == [153, 103]
    assert torch.equal(batch.condition.image[0], batch.condition.image[1].flip(-1))
    chosen = data.select(64, 8, 0, flip=True)
    assert chosen.flip.any() and not chosen.flip.all() and chosen.given is None
    assert np.array_equal(chosen[2:5].index, chosen.index[2:5])


def test_an_image_is_its_own_partner_for_colouring_and_upscaling(tmp_path):
    images = tmp_path / "photos"
    for name, colour in (("a/red", (255, 0, 0)), ("b/blue", (0, 0, 255))):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), colour).save(images / f"{name}.png")
    data = read(images, pairs=str(images), given_channels=1, given_size=(8, 8))
    assert data.spec.given == ImageSpec(1, 8, 8) and data.spec.classes == ("a", "b")
    grey = [round(v * 127.5 + 127.5) for v in data.batch(np.arange(2)).condition.image[:, 0, 0, 0].tolist()]
    assert grey == [76, 29] and data.spec.shape == (3, 32, 32)


@pytest.mark.parametrize("half", ["left", "right"])
def test_side_by_side_is_cut_in_two(tmp_path, half):
    for v in range(4):
        pixels = np.zeros((20, 41, 3), np.uint8)  # the middle column belongs to neither
        pixels[:, :20], pixels[:, 21:], pixels[:, 20] = v, v + 100, 255
        pixels[:, 21:, 1] = 0
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "maps" / f"{v}.png")
    data = read(tmp_path / "maps", side_by_side=half)
    left = dataclasses.replace(data.spec, given=None) if half == "right" else data.spec.given
    right = data.spec.given if half == "right" else dataclasses.replace(data.spec, given=None)
    assert left.shape == (1, 20, 20) and right.shape == (3, 20, 20), "each half's own size and channels"
    batch = data.batch(np.arange(4))
    ones = {"left": batch.condition.image, "right": batch.image}
    if half == "right":
        ones = {"left": batch.image, "right": batch.condition.image}
    assert values(ones["left"], 0) == values(ones["left"]) == [0, 1, 2, 3]
    assert values(ones["right"], 0) == values(ones["right"]) == [100, 101, 102, 103]
    whole = read(tmp_path / "maps")
    assert whole.spec.width == 41 and whole.fingerprint != data.fingerprint


def test_a_jpeg_is_cut_exactly_and_a_sliver_is_a_problem(tmp_path):
    pixels = np.zeros((400, 808, 3), np.uint8)
    pixels[:, 404:] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.jpg", quality=100)
    Image.new("L", (1, 9)).save(tmp_path / "a" / "1.png")
    data = read(tmp_path / "a", size=(16, 16), side_by_side="left", max_bad=0.6)
    assert len(data) == 1 and [p.reason for p in data.problems] == ["it is too narrow to be cut in two"]
    batch = data.batch(np.arange(1))
    assert batch.image.min() > 0.97 and batch.condition.image.max() < -0.97


def test_domains_have_orders_of_their_own_that_depend_on_the_images_seen_alone(tmp_path):
    a, b = flat(tmp_path / "a", list(range(25))), flat(tmp_path / "b", list(range(100, 140)))
    data = read(a, domain=str(b), given_channels=1)
    assert len(data) == 25 and len(data.given) == 40 and not data.paired
    drawn = data.select(0, 400, 3)
    assert sorted(drawn.given[:40]) == list(range(40)), "an epoch shows each once"
    assert (
        sorted(drawn.given[40:80]) == list(range(40))
        and drawn.given[:40].tolist() != drawn.given[40:80].tolist()
    )
    for seen in (0, 13, 77):
        later = data.select(seen, 50, 3)
        assert np.array_equal(later.given, drawn.given[seen : seen + 50])
        assert np.array_equal(later.index, drawn.index[seen : seen + 50])
    assert data.select(0, 40, 4).given.tolist() != drawn.given[:40].tolist()
    same = read(a, domain=str(a))
    chosen = same.select(0, 25, 3)
    assert chosen.index.tolist() != chosen.given.tolist(), "the two orders are keyed apart"
    batch = data.batch(drawn[:64])
    assert values(batch.condition.image) == [100 + i for i in drawn.given[:64]]
    assert values(batch.image) == drawn.index[:64].tolist()
    assert values(data.batch(np.array([3, 24])).condition.image) == [103, 124], "without an order: in turn"

    train_on, held_out = data.split(0.2)
    assert len(train_on.given) == 32 and len(held_out.given) == 8
    assert not set(train_on.given.names) & set(held_out.given.names)


def test_names_without_a_partner_are_named_counted_and_skipped(folders, capsys):
    images, given = folders
    (given / "004.bmp").unlink()
    (given / "009.bmp").write_bytes(b"BM nothing")
    shutil.copy(given / "005.bmp", given / "lonely.bmp")
    Image.open(given / "006.bmp").save(given / "006.png")
    data = open_data(images, size=(8, 8), options=DataOptions(pairs=str(given)))
    assert len(data) == 28 and {"004.png", "009.png"}.isdisjoint(data.names)
    batch = data.batch(np.arange(28))
    assert [v + 100 for v in values(batch.image)] == values(batch.condition.image)
    told = {p.path: p.reason for p in data.problems}
    assert "no partner" in told["004.png"] and "no partner" in told["009.png"]
    assert f"{given}: lonely.bmp" in told and f"{given}: 009.bmp" in told
    assert "006.bmp" in told[f"{given}: 006.png"]
    assert "without a partner" in (said := " ".join(capsys.readouterr().err.split())) and "left out 5" in said
    found = check(images, DataOptions(pairs=str(given)), progress=False)
    assert {"004.png", f"{given}: lonely.bmp"} <= {p.path for p in found.problems}


def test_no_partner_at_all_and_settings_that_contradict_are_one_sentence(folders, tmp_path):
    images, _ = folders
    others = flat(tmp_path / "others", [200])
    with pytest.raises(
        LimnerError, match=r"None of the 30 images, such as '000.png', has a partner .*others"
    ):
        read(images, pairs=str(others))
    with pytest.raises(LimnerError, match="There is no source"):
        read(images, pairs=str(tmp_path / "nowhere"))
    with pytest.raises(LimnerError, match="not several"):
        DataOptions(pairs="a", domain="b")
    with pytest.raises(LimnerError, match="there are none"):
        DataOptions(given_channels=1)
    with pytest.raises(LimnerError, match="given-size 0 is out of range"):
        read(images, pairs=str(images), given_size=(0, 4))


def test_the_fingerprint_depends_on_what_is_given_and_on_nothing_without_it(folders, tmp_path):
    images, given = folders
    alone, pairs = read(images), read(images, pairs=str(given))
    assert alone.spec.given is None and alone.batch(np.arange(2)).condition.image is None
    moved = shutil.copytree(given, tmp_path / "moved")
    assert read(images, pairs=str(moved)).fingerprint == pairs.fingerprint
    (moved / "000.bmp").rename(moved / "x.bmp")
    (moved / "001.bmp").rename(moved / "000.bmp")
    (moved / "x.bmp").rename(moved / "001.bmp")
    swapped = read(images, pairs=str(moved)).fingerprint
    assert (
        len({alone.fingerprint, pairs.fingerprint, swapped, read(images, domain=str(given)).fingerprint}) == 4
    )


def test_an_old_packing_is_still_found(tmp_path, monkeypatch):
    """Fields of given pictures must not enter the name of a packing that has none: only the version changed it."""
    from limner.data import pack
    from limner.data.pack import Request
    from limner.data.sources.find import find

    monkeypatch.setitem(pack.VERSIONS, "exact", 1)
    request = Request((find("digits", tmp_path),), (32, 32), DataOptions())
    assert request.folder.name == "ba9baa9e54a232eaf89c3c0fc7e68da1"


def test_rows_know_their_source(folders, tmp_path):
    images, given = folders
    (images / "003.png").write_bytes(b"damaged")
    data = read([str(given), str(images)], size=(8, 8))
    assert data.sources == (str(given), str(images))
    assert data.source.tolist() == [0] * 30 + [1] * 29
    assert data.part(np.array([0, 40])).source.tolist() == [0, 1]
    assert all(data.names[i].endswith((".bmp", ".png")[data.source[i]]) for i in range(len(data)))
    assert read([str(given), str(images)], size=(8, 8)).source.tolist() == data.source.tolist(), (
        "from the cache"
    )


def test_open_like_and_open_picture(folders):
    images, given = folders
    options = DataOptions(pairs=str(given), given_size=(4, 12), given_channels=3)
    data = open_data(images, size=(8, 8), options=options, progress=False)
    again = open_like([str(images)], data.spec, DataOptions(pairs=str(given)), progress=False)
    assert again.spec == data.spec and again.fingerprint == data.fingerprint
    picture = open_picture(given / "007.bmp", data.spec.given, options)
    assert torch.equal(picture, data.batch(np.array([7])).condition.image)


# A training that reads them -------------------------------------------------------------------------------


QUICK = {"samples": 4, "save_every": "1h", "sample_every": "1h", "evaluate_every": "1h", "device": "cpu"}


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("way", ["pairs", "domain"])
def test_a_family_trains_on_given_pictures_and_resumes_bit_for_bit(folders, tmp_path, way):
    images, given = folders
    for path in images.iterdir():  # no two alike, so that some are held out
        noise = np.random.default_rng(int(path.stem)).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(path)
    data = {way: str(given), "given_size": (4, 12), "flip": True}

    def train(out: str, budget: str, **how):
        return toolkit.train("translator", images, tmp_path / out, preset="tiny", budget=budget, size=16,
                             quiet=True, training=QUICK, data=data, **how)  # fmt: skip

    whole = train("whole", "160img")
    train("parts", "72img")
    train("parts", "160img", resume=True)
    one, two = (checkpoint.resume(tmp_path / name) for name in ("whole", "parts"))
    assert one.live_tensors.keys() == two.live_tensors.keys()
    assert all(torch.equal(one.live_tensors[k], two.live_tensors[k]) for k in one.live_tensors)
    assert all(torch.equal(one.model_tensors[k], two.model_tensors[k]) for k in one.model_tensors)
    assert whole.terms and (tmp_path / "whole" / "samples").is_dir()

    pipeline = toolkit.load(tmp_path / "whole")
    assert pipeline.spec.given == ImageSpec(1, 4, 12)
    made = [pipeline.tensors(1, image=given / name) for name in ("000.bmp", "029.bmp")]
    assert made[0].shape[2:] == (16, 16) and not torch.equal(made[0], made[1])
    with pytest.raises(LimnerError, match="given pictures: name one with --image"):
        pipeline.tensors(1)
    with pytest.raises(LimnerError, match="given pictures: use limner sample"):
        synthesize(tmp_path / "whole", tmp_path / "folder", quiet=True)
    assert not (tmp_path / "folder").exists()


@pytest.mark.usefixtures("toy")
def test_a_family_that_reads_no_given_pictures_gets_none(folders, tmp_path):
    images, given = folders
    with pytest.raises(LimnerError, match="flow does not train on given pictures"):
        toolkit.train("flow", images, tmp_path / "run", preset="tiny", data={"pairs": str(given)}, quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(LimnerError, match="translator needs given pictures"):
        toolkit.train("translator", images, tmp_path / "run", preset="tiny", quiet=True)
