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
from limner.config import read_run
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
    data = read([given, images], given="pairs", given_size=(4, 12))
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
    open_data([given, images], size=(8, 8), options=DataOptions(given="pairs", given_size=(8, 8)))
    own, of_given = (line for line in capsys.readouterr().err.splitlines() if "resized" in line)
    assert "--size" in own and "--data.given-size" in of_given and "--size" not in of_given


def test_a_flip_flips_both(folders):
    images, given = folders
    data = read([given, images], given="pairs", given_size=(4, 12))
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
    data = read([images, images], given="pairs", given_channels=1, given_size=(8, 8))
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
    data = read(tmp_path / "maps", halves=True, reverse=half == "right")
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
    data = read(tmp_path / "a", size=(16, 16), halves=True, max_bad=0.6)
    assert len(data) == 1 and [p.reason for p in data.problems] == ["it is too narrow to be cut in two"]
    batch = data.batch(np.arange(1))
    assert batch.image.min() > 0.97 and batch.condition.image.max() < -0.97


def test_domains_have_orders_of_their_own_that_depend_on_the_images_seen_alone(tmp_path):
    a, b = flat(tmp_path / "a", list(range(25))), flat(tmp_path / "b", list(range(100, 140)))
    data = read([b, a], given="domains", given_channels=1)
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
    same = read([a, a], given="domains")
    chosen = same.select(0, 25, 3)
    assert chosen.index.tolist() != chosen.given.tolist(), "the two orders are keyed apart"
    batch = data.batch(drawn[:64])
    assert values(batch.condition.image) == [100 + i for i in drawn.given[:64]]
    assert values(batch.image) == drawn.index[:64].tolist()
    assert values(data.batch(np.array([3, 24])).condition.image) == [103, 124], "without an order: in turn"

    train_on, held_out = data.split(0.2)
    assert len(train_on.given) == 32 and len(held_out.given) == 8
    assert not set(train_on.given.names) & set(held_out.given.names)
    assert train_on.epoch == 32 and data.epoch == 40, "an epoch is the larger domain"
    flips = data.select(0, 64, 3, flip=True)
    assert flips.flip.any() and (flips.flip != flips.given_flip).any(), "each domain is mirrored by itself"
    batch = data.batch(flips)
    assert np.array_equal(flips.given_flip, [v > 170 for v in values(batch.condition.image)])
    assert np.array_equal(flips.flip, [v > 60 for v in values(batch.image)])


def test_a_domain_is_split_as_if_it_were_alone(tmp_path):
    folders = [
        flat(tmp_path / name, list(range(start, start + 25)))
        for name, start in zip("abc", (0, 50, 100), strict=True)
    ]
    a, b, c = folders
    held = {
        (one.name, other.name): read([one, other], given="domains").split(0.2, twins=True)[1]
        for one, other in ((a, b), (c, b), (b, a))
    }
    assert (
        held["a", "b"].names
        == held["c", "b"].names
        == held["b", "a"].given.names
        == read(b).split(0.2, twins=True)[1].names
    )
    assert held["a", "b"].given.names == held["b", "a"].names


def test_a_domain_that_is_too_small_to_hold_out_says_so(tmp_path):
    few, many = flat(tmp_path / "few", list(range(12))), flat(tmp_path / "many", list(range(60)))
    held_out = read([few, many], given="domains").split(0.2, twins=True)[1]
    assert held_out.trained_on and "trained on" in held_out.held_out_notes[-1]
    assert not read([many, few], given="domains").split(0.2, twins=True)[1].held_out_notes
    enough = read([many, flat(tmp_path / "more", list(range(100, 140)))], given="domains")
    assert not enough.split(0.2, twins=True)[1].trained_on


def test_names_without_a_partner_are_named_counted_and_skipped(folders, capsys):
    images, given = folders
    (given / "004.bmp").unlink()
    (given / "009.bmp").write_bytes(b"BM nothing")
    shutil.copy(given / "005.bmp", given / "lonely.bmp")
    Image.open(given / "006.bmp").save(given / "006.png")
    both, options = [given, images], DataOptions(given="pairs", given_size=(8, 8))
    data = open_data(both, size=(8, 8), options=options)
    assert len(data) == 28 and {"004.png", "009.png"}.isdisjoint(data.names)
    batch = data.batch(np.arange(28))
    assert [v + 100 for v in values(batch.image)] == values(batch.condition.image)
    told = {p.path: p.reason for p in data.problems}
    assert "no partner" in told["004.png"] and "no partner" in told["009.png"]
    assert f"{given}: lonely.bmp" in told and f"{given}: 009.bmp" in told
    assert "without a partner" in (said := " ".join(capsys.readouterr().err.split())) and "left out 5" in said
    assert "006.bmp" in told[f"{given}: 006.png"]
    found = check(both, options, progress=False)
    assert {"004.png", f"{given}: lonely.bmp"} <= {p.path for p in found.problems}


def test_no_partner_at_all_and_settings_that_contradict_are_one_sentence(folders, tmp_path):
    images, _ = folders
    others = flat(tmp_path / "others", [200])
    with pytest.raises(
        LimnerError,
        match=r"None of the 30 images, such as '000.png', has a partner .*others.*same subfolders\.$",
    ):
        read([others, images], given="pairs")
    with pytest.raises(LimnerError, match="There is no source"):
        read([tmp_path / "nowhere", images], given="pairs")
    with pytest.raises(LimnerError, match=r"leave out --data\.given domains"):
        DataOptions(given="domains", halves=True)
    with pytest.raises(LimnerError, match="there are none"):
        read(images, given_channels=1)
    with pytest.raises(LimnerError, match="given-size 0 is out of range"):
        read([images, images], given="pairs", given_size=(0, 4))
    for sources in ([images], [images, images, images]):
        with pytest.raises(
            LimnerError, match=rf"Pairs of pictures come from two sources, not from {len(sources)}: name"
        ):
            read(sources, given="pairs")
        with pytest.raises(
            LimnerError, match=rf"two domains come from two sources, not from {len(sources)}: name"
        ):
            read(sources, given="domains")


def test_names_are_equal_but_for_case_and_extension(tmp_path):
    """Exactly equal ones first: on some disks A.png and a.png are two pictures."""
    given, images = tmp_path / "given", tmp_path / "images"
    for folder, suffix in ((given, ".bmp"), (images, ".PNG")):
        flat(folder / "cats", [1, 2], suffix)
        flat(folder / "dogs", [1, 2], suffix)
    (given / "dogs" / "002.bmp").rename(given / "dogs" / "Max.bmp")
    (images / "dogs" / "002.PNG").rename(images / "dogs" / "max.PNG")
    shutil.copy(given / "cats" / "001.bmp", given / "dogs" / "MAX.bmp")
    shutil.copy(images / "cats" / "002.PNG", images / "dogs" / "MAX.PNG")
    data = read([given, images], given="pairs", labels=False)
    batch = data.batch(np.arange(5))
    named = list(zip(data.names, data.given.names, strict=True))
    assert ("dogs/MAX.PNG", "dogs/MAX.bmp") in named and ("dogs/max.PNG", "dogs/Max.bmp") in named
    assert ("cats/001.PNG", "cats/001.bmp") in named and len(data) == 5 and not data.problems
    assert values(batch.image)[:2] == values(batch.condition.image)[:2] == [1, 2]


def test_names_nearest_to_a_match_are_told(tmp_path):
    """Where folders have other structures, the same file in other folders; else similar names."""
    given, images = tmp_path / "sketches", tmp_path / "drawings"
    flat(given / "one", [1, 2]), flat(given / "two", [1, 2]), flat(images, [1, 2])
    with pytest.raises(
        LimnerError, match=r"'001.png', .* \(nearest: 'one/001.png' and 'two/001.png'\): both"
    ):
        read([given, images], given="pairs")
    others = flat(tmp_path / "others", [5])
    (others / "005.png").rename(others / "sketch_001.png")
    with pytest.raises(LimnerError, match=r"in .*others \(nearest: 'sketch_001.png'\): both"):
        read([others, images], given="pairs")


def test_a_name_that_comes_twice_is_a_problem(tmp_path):
    given, images = flat(tmp_path / "given", [1, 2]), flat(tmp_path / "images", [1, 2])
    shutil.copy(images / "001.png", images / "001.bmp")
    shutil.copy(given / "002.png", given / "002.bmp")
    data = read([given, images], given="pairs")
    told = {p.path: p.reason for p in data.problems}
    assert data.names == ["001.bmp", "002.png"] and told["001.png"] == "has the name of '001.bmp'"
    assert told[f"{given}: 002.png"] == "has the name of '002.bmp'"


def test_pairs_of_unequal_sizes_are_left_out_by_name(tmp_path, capsys):
    given, images = flat(tmp_path / "given", list(range(6))), flat(tmp_path / "images", list(range(6)))
    for name, size in {"001": (16, 18), "002": (24, 24), "003": (32, 32), "004": (32, 48)}.items():
        Image.new("RGB", size[::-1]).save(images / f"{name}.png")
    data = open_data([given, images], size=(8, 8), options=DataOptions(given="pairs"))
    assert data.names == ["000.png", "005.png"]
    told = {p.path: p.reason for p in data.problems}
    assert told["001.png"] == "has 16x18 pixels and its partner 16x16, neither equal nor one a whole multiple"
    assert told["003.png"] == "has 32x32 pixels and its partner 16x16, another scale than other pairs"
    assert "left out 4 without a partner that fits" in " ".join(capsys.readouterr().err.split())
    assert (
        told.items()
        <= {p.path: p.reason for p in check([given, images], DataOptions(given="pairs")).problems}.items()
    )
    with pytest.raises(LimnerError, match=r"All 2 pairs are of unequal sizes: '001.png' has 16x18 pixels"):
        for name in ("000", "002", "003", "005"):
            (images / f"{name}.png").unlink()
        read([given, images], size=(8, 8), given="pairs")


@pytest.mark.parametrize("turn", [1, 6])
def test_pairs_may_differ_by_a_whole_scale(tmp_path, turn):
    """The given pictures take their part of the size, whichever is larger, however both are turned."""
    given, images = tmp_path / "given", tmp_path / "images"
    given.mkdir(), images.mkdir()
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = turn
    for i in range(4):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        small.save(given / f"{i}.png", exif=exif)
        small.resize((48, 36), Image.Resampling.NEAREST).save(images / f"{i}.tif")
        turned = small.transpose(Image.Transpose.ROTATE_270) if turn == 6 else small
        turned.resize((3 * turned.width, 3 * turned.height), 0).save(images / f"{i}.tif")
    size = (48, 36) if turn == 6 else (36, 48)
    data = read([given, images], size, given="pairs")
    assert data.spec.given == ImageSpec(3, size[0] // 3, size[1] // 3)
    batch = data.batch(np.arange(4))
    assert torch.equal(batch.image[:, :, ::3, ::3], batch.condition.image)
    back = read([images, given], (12, 12), given="pairs")
    assert back.spec.shape == (3, 12, 12) and back.spec.given.shape == (3, 36, 36)
    with pytest.raises(
        LimnerError, match=r"3 times as large .* cannot be 32x32: choose a --size that 3 divides"
    ):
        read([given, images], (32, 32), given="pairs")


def test_the_fingerprint_depends_on_what_is_given_and_on_nothing_without_it(folders, tmp_path):
    images, given = folders
    sized = {"given_size": (8, 8)}
    alone, pairs = read(images), read([given, images], given="pairs", **sized)
    assert alone.spec.given is None and alone.batch(np.arange(2)).condition.image is None
    moved = shutil.copytree(given, tmp_path / "moved")
    assert read([moved, images], given="pairs", **sized).fingerprint == pairs.fingerprint
    (moved / "000.bmp").rename(moved / "x.bmp")
    (moved / "001.bmp").rename(moved / "000.bmp")
    (moved / "x.bmp").rename(moved / "001.bmp")
    swapped = read([moved, images], given="pairs", **sized).fingerprint
    domains = read([given, images], given="domains", **sized).fingerprint
    assert len({alone.fingerprint, pairs.fingerprint, swapped, domains}) == 4


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
    options = DataOptions(given="pairs", given_size=(4, 12), given_channels=3)
    both = [str(given), str(images)]
    data = open_data(both, size=(8, 8), options=options, progress=False)
    again = open_like(both, data.spec, options, progress=False)
    assert again.spec == data.spec and again.fingerprint == data.fingerprint
    picture = open_picture(given / "007.bmp", data.spec.given, options)
    assert torch.equal(picture, data.batch(np.array([7])).condition.image)


def test_what_is_measured_leaves_out_the_pairs_that_training_leaves_out(tmp_path):
    images, given = (flat(tmp_path / name, list(range(60))) for name in ("images", "given"))
    flat(given, [7, 40], size=(16, 20))
    both, options = [str(given), str(images)], DataOptions(given="pairs")
    trained = open_data(both, options=options, progress=False)
    measured = open_like(both, trained.spec, options, progress=False)
    assert len(trained) == 58 and measured.names == trained.names
    assert measured.fingerprint == trained.fingerprint
    assert measured.split(0.1)[1].names == trained.split(0.1)[1].names


# A training that reads them -------------------------------------------------------------------------------


QUICK = {"samples": 4, "save_every": "1h", "sample_every": "1h", "evaluate_every": "1h", "device": "cpu"}


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("way", ["pairs", "domains"])
def test_a_family_trains_on_given_pictures_and_resumes_bit_for_bit(folders, tmp_path, way):
    images, given = folders
    for path in images.iterdir():  # no two alike, so that some are held out
        noise = np.random.default_rng(int(path.stem)).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(path)
        Image.fromarray(noise[:8, :, 0]).resize((24, 8)).save(given / f"{path.stem}.bmp")
    data = {"given": way, "given_size": (4, 12), "flip": True}

    def train(out: str, budget: str, **how):
        return toolkit.train("translator", [given, images], tmp_path / out, preset="tiny", budget=budget, size=16,
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
        toolkit.train(
            "flow", [given, images], tmp_path / "run", preset="tiny", data={"given": "pairs"}, quiet=True
        )
    with pytest.raises(LimnerError, match="flow does not train on given pictures"):
        toolkit.train("flow", "pairs:shapes", tmp_path / "run", preset="tiny", quiet=True)
    with pytest.raises(
        LimnerError, match="translator trains on pairs of pictures from two sources, not from 1"
    ):
        toolkit.train("translator", images, tmp_path / "run", preset="tiny", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_real_command_trains_on_two_folders_and_says_what_is_no_pair(folders, tmp_path, limner):
    images, given = folders
    for i, path in enumerate(sorted(given.iterdir())):
        Image.new("L", (16, 16), i).save(path)
    out = tmp_path / "run"
    quick = ("--preset", "tiny", "--budget", "16img", "--training.samples", 2, "--out", out)
    limner("train", "bridge", given, images, *quick)
    run = read_run(out)
    assert run.data.given == "pairs" and run.sources == (str(given), str(images))
    spec = toolkit.load(out).spec
    assert spec.given == ImageSpec(1, 16, 16) and len(list((out / "samples").iterdir())) == 1
    (tmp_path / "others" / "sub").mkdir(parents=True)
    for path in images.iterdir():
        shutil.copy(path, tmp_path / "others" / "sub" / path.name)
    quick = (*quick[:-1], tmp_path / "none")
    for sources, said in (
        ((tmp_path / "others", images), "(nearest: 'sub/000.png'): both"),
        ((images,), "name two sources"),
    ):
        done = limner("train", "bridge", *sources, *quick, ok=False)
        assert done.returncode == 2 and not (tmp_path / "none").exists()
        assert said in " ".join(done.stderr.split())
