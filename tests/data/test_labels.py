"""What paths say: classes, splits, and what is passed over; the same in folders, archives and patterns."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.data import check, open_data
from limner.data.annotations.folder_names import hidden, passed_over, shards, splits_of
from limner.data.annotations.labels import classes_of, few, read_paths
from limner.data.items import Item
from limner.settings import DataOptions, LimnerError
from tests.helpers import paint


def images(**folders: int) -> list[str]:
    """Names of so many images below each folder; '' is the top."""
    return [f"{folder}/{i}.png".lstrip("/") for folder, n in folders.items() for i in range(n)]


def classes(names: list[str], how: str = "") -> dict[str | None, int]:
    labels = read_paths(names, how).labels
    return {label: labels.count(label) for label in dict.fromkeys(labels)}


# Names ------------------------------------------------------------------------------------------------------

PASSED_OVER = [".git", ".ipynb_checkpoints", "__MACOSX", "__macosx", "@eaDir", "$RECYCLE.BIN"] + [
    "System Volume Information", ".Trash-1000", "lost+found", ".thumbnails", "#recycle", "__pycache__",
]  # fmt: skip


@pytest.mark.parametrize("name", PASSED_OVER)
def test_hidden_and_system_folders(name):
    assert passed_over(name) and hidden(f"cat/{name}/x.png") and hidden(f"{name}/cat/x.png")
    assert not hidden(f"cat/{name}"), "a file is not a folder"
    assert not hidden("./cat/x.png") and not passed_over("cat")


SPLITS = {
    "train test": "train test",
    "Train Test": "train test",
    "TRAIN VAL TEST": "train val test",
    "training validation testing": "train val test",
    "train valid": "train val",
    "train2017 val2017 test2017": "train val test",
    "train_images test-images": "train test",
    "TrainSet TestSet": "train test",
    "train test1": "train test",  # dogs against cats
    "DIV2K_train_HR DIV2K_valid_HR": "train val",
    "pets_train pets_test": "train test",
    "train-00000-of-00002.parquet train-00001-of-00002.parquet test-00000-of-00001.parquet": "train train test",
    "train-00000-of-00001-a09b74b3ef9c3b56.parquet test-00000-of-00001-75bd8d8d8d8d8d8d.parquet": "train test",
    "train test unlabeled": "train test train",
    "train test extra": "train test train",
    "train dev": "train val",
    "训练集 测试集": "train test",
    "train": "train",
    "test": "test",
    "train test cats": "train test -",
    "bus train car": "- - -",  # a train beside a bus
    "control test": "- -",
    "dev eval": "- -",
    "trainA trainB testA testB": "- - - -",
    "cats_train dogs_test": "- -",
    "trainer tester": "- -",
    "cat dog": "- -",
}


@pytest.mark.parametrize(("names", "splits"), SPLITS.items())
def test_names_of_splits(names, splits):
    found = splits_of(names.split(" "))
    assert [found.get(name, "-") for name in names.split(" ")] == splits.split(" ")


def same(n: int) -> list[str]:
    return [f"{i}.png" for i in range(n)]


def test_names_of_shards():
    for names in (
        "shard-0001 shard-0002",
        "part_3",
        "part1 part2",
        "images_001 images_002",
        "Chunk-7",
        "x-batch-1",
    ):
        assert shards({name: same(3) for name in names.split(" ")}), names
    stylegan = {f"{i:05d}": [f"img{i * 1000 + k:08d}.png" for k in range(4 - 2 * (i == 2))] for i in range(3)}
    assert shards(stylegan) and shards({f"{i * 1000:05d}": same(5) for i in range(4)})
    assert shards({f"{i:02x}": same(1 + i % 3) for i in range(0, 256, 8)}), "of a hash"

    for names in (
        "0 1 2 3",
        "1 2 10 11",
        "00 01 02",
        "cat dog",
        "part_3 cat",
        "n01440764 n01443537",
        "a b c",
    ):
        assert not shards({name: same(3) for name in names.split(" ")}), names
    assert not shards({"1999": same(3), "2000": same(3)}), "years"
    assert not shards({"02691156": same(3), "02958343": same(3), "03001627": same(3)}), "identifiers"
    signs = {f"{i:05d}": [f"{k:05d}.ppm" for k in range(10 + 7 * i % 5)] for i in range(9)}
    assert not shards(signs), "numbers of classes: other counts, the same names in each"


# Layouts ----------------------------------------------------------------------------------------------------

LAYOUTS = {
    "one folder around": ({"pets/cat": 3, "pets/dog": 4}, {"cat": 3, "dog": 4}),
    "two folders around": ({"a/b/cat": 3, "a/b/dog": 4}, {"cat": 3, "dog": 4}),
    "a cover at the top": ({"": 1, "pets/cat": 9, "pets/dog": 4}, {None: 1, "cat": 9, "dog": 4}),
    "strays beside classes": ({"": 2, "cat": 9, "dog": 9}, {None: 2, "cat": 9, "dog": 9}),
    "strays on two levels": ({"": 1, "pets": 1, "pets/cat": 9, "pets/dog": 9}, {None: 2, "cat": 9, "dog": 9}),
    "a split": ({"Train/cat": 3, "Train/dog": 3, "Test/cat": 2, "Test/dog": 1}, {"cat": 5, "dog": 4}),
    "a split in a folder": ({"pets/train/cat": 3, "pets/test/dog": 2}, {"cat": 3, "dog": 2}),
    "a split below images": ({"images/train/cat": 3, "images/val/dog": 2}, {"cat": 3, "dog": 2}),
    "a split below classes": ({"cat/train": 3, "cat/test": 1, "dog/train": 2, "dog/test": 1}, {"cat": 4, "dog": 3}),
    "a split alone": ({"train2017": 9, "val2017": 3}, {None: 12}),
    "images below each": ({"Autumn/contents/images": 3, "Elarun/contents/images": 2}, {"Autumn": 3, "Elarun": 2}),
    "images below a split": ({"train/images/cat": 3, "test/images/dog": 3}, {"cat": 3, "dog": 3}),
    "shards": ({"00000": 4, "00001": 4, "00002": 2}, {None: 10}),
    "shards in a folder": ({"ffhq/00000": 4, "ffhq/00001": 4}, {"ffhq": 8}),
    "shards of a split": ({"train/part_1/cat": 2, "train/part_2/dog": 2, "test/part_1/cat": 1}, {"cat": 3, "dog": 2}),
    "shards of a class": ({"cat/shard-0": 2, "cat/shard-1": 2, "dog/shard-0": 2}, {"cat": 4, "dog": 2}),
    "digits": ({str(i): 3 for i in range(10)}, {str(i): 3 for i in range(10)}),
    "months": ({str(i): 2 for i in range(1, 13)}, {str(i): 2 for i in range(1, 13)}),
    "vehicles": ({"bus": 3, "train": 3}, {"bus": 3, "train": 3}),
    "images and masks": ({"images": 3, "masks": 3}, {"images": 3, "masks": 3}),
    "no folder": ({"": 5}, {None: 5}),
    "one folder": ({"photos": 5}, {None: 5}),
    "one class": ({"cat": 5}, {"cat": 5}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    folders, expected = LAYOUTS[layout]
    assert classes(images(**folders)) == expected


NESTED = {  # folders: class of each by itself, then of each with first, last and path
    "few paths": (
        {"cat/old": 9, "cat/young": 9, "dog/wolf": 9},
        [["cat/old", "cat/young", "dog/wolf"], ["cat", "cat", "dog"], ["old", "young", "wolf"]],
    ),
    "a folder in each": (
        {"cat/a": 9, "dog/b": 9}, [["cat", "dog"], ["cat", "dog"], ["a", "b"]],
    ),
    "classes of each person": (
        {"p1/no": 1, "p1/yes": 1, "p2/no": 1, "p2/yes": 1, "p3/no": 1},
        [["no", "yes", "no", "yes", "no"], ["p1", "p1", "p2", "p2", "p3"], ["no", "yes", "no", "yes", "no"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", NESTED)
def test_nested_folders(layout):
    folders, (chosen, first, last) = NESTED[layout]
    each = {how: read_paths(images(**folders), how) for how in ("", "first", "last", "path")}
    labels = {
        how: list(dict(zip(images(**folders), found.labels, strict=True)).values())
        for how, found in each.items()
    }
    expected = {"": chosen, "first": first, "last": last, "path": list(folders)}
    for how, names in expected.items():
        assert labels[how] == [
            name for name, n in zip(names, folders.values(), strict=True) for _ in range(n)
        ], how
    (note,) = each[""].about_classes
    assert "--data.classes" in note and not each["path"].about_classes


def test_many_paths_with_few_images_become_their_first_folder():
    folders = {f"{top}/{i}{top}": 4 for top in ("animals", "food", "tools") for i in range(8)}
    found = read_paths(images(**folders))
    assert set(found.labels) == {"animals", "food", "tools"}
    assert "24 whole paths would have 4.0 images each" in found.about_classes[0]


def test_wallpapers_of_two_kinds_become_their_theme():
    folders = {
        f"{theme}/contents/{kind}": 3
        for theme in ("Autumn", "Elarun", "Oak")
        for kind in ("images", "images_dark")
    }
    assert set(read_paths(images(**folders)).labels) == {"Autumn", "Elarun", "Oak"}


def test_a_few_images_beside_the_folders_in_a_class_change_no_choice():
    kinds = (("images", 9), ("images_dark", 9), ("", 1))
    themes = {f"{top}/contents/{kind}": n for top in ("Autumn", "Elarun", "Oak") for kind, n in kinds}
    assert set(read_paths(images(**themes)).labels) == {"Autumn", "Elarun", "Oak"}
    covers = {"dog": 1, "dog/wolf": 9, "dog/fox": 9, "cat": 2, "cat/lion": 9, "hen": 9}
    assert classes(images(**covers)) == {None: 3, "dog/wolf": 9, "dog/fox": 9, "cat/lion": 9, "hen": 9}
    assert classes(images(**covers), "first") == {"dog": 19, "cat": 11, "hen": 9}
    many = {"dog": 9, "dog/wolf": 9, "cat": 9, "cat/lion": 9}
    assert classes(images(**many)) == many


def test_what_looks_like_shards_is_taken_where_it_is_asked_for():
    names = images(**{"00000": 3, "00001": 3})
    assert classes(names) == {None: 6} and classes(names, "last") == {"00000": 3, "00001": 3}
    assert "'00000' to '00001' look like shards" in read_paths(names).about_classes[0]


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ({"trainA": 3, "trainB": 3}, "'trainA' and 'trainB' look like splits"),
        ({"bus": 3, "train": 3}, "'train' looks like a split"),
        ({"00": 3, "01": 3, "02": 3}, "'00' to '02' are numbers"),
    ],
)
def test_classes_that_look_like_splits_or_shards_are_said(folders, words):
    assert words in read_paths(images(**folders)).about_classes[-1]


def test_splits():
    found = read_paths(images(**{"train/cat": 3, "val/cat": 2, "test/dog": 1}))
    assert found.splits == ["train"] * 3 + ["val"] * 2 + ["test"]
    assert found.about_splits == [
        "Trained on: the 3 images of 'train'; held out to measure on: the 3 images of 'test' and 'val'."
    ]
    for folders in ({"train/cat": 3}, {"test/cat": 3}, {"val/cat": 3, "test/cat": 3}):
        assert set(read_paths(images(**folders)).splits) == {""}, (
            "there is nothing to hold out, or to train on"
        )


def test_images_beside_a_held_out_folder_are_trained_on():
    found = read_paths(images(**{"": 8, "test": 3}))
    assert found.splits == [""] * 8 + ["test"] * 3 and "8 images that lie outside" in found.about_splits[0]
    both = read_paths(images(**{"": 1, "train": 8, "test": 3}))
    assert "Trained on: the 8 images of 'train' and 1 outside;" in both.about_splits[0]
    cover = read_paths(images(**{"": 1, "test/cat": 4, "test/dog": 4}))
    assert set(cover.splits) == {""}


def test_archives_may_name_a_split_and_never_a_class():
    names, archives = ["cat/1.png", "dog/1.png", "cat/2.png"], ["pets-train", "pets-train", "pets-test"]
    found = read_paths(names, archives=archives)
    assert found.splits == ["train", "train", "test"] and found.labels == ["cat", "dog", "cat"]
    inside = read_paths(["train/cat/1.png", "test/dog/1.png"], archives=["a", "b"])
    assert inside.splits == ["train", "test"] and inside.labels == ["cat", "dog"]
    assert read_paths(["1.png", "1.png"], archives=["cat", "dog"]).labels == [None, None]


# Images without a class -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "total"), [(1, 5), (1, 11), (2, 26), (3, 20), (10, 100), (0, 0)])
def test_few(count, total):
    assert few(count, total)


@pytest.mark.parametrize(("count", "total"), [(1, 3), (2, 6), (4, 30), (11, 100)])
def test_many(count, total):
    assert not few(count, total)


def items(labels: str, splits: str = "") -> list[Item]:
    """One image a letter: its class, '.' for none; then its split: t(rain), v(al) or ' '."""
    splits = splits.ljust(len(labels))
    of = {" ": "", "t": "train", "v": "val"}
    return [
        Item(f"{i}.png", open, None if a == "." else a, split=of[b])
        for i, (a, b) in enumerate(zip(labels, splits, strict=True))
    ]


@pytest.mark.parametrize(
    ("labels", "splits", "names", "words"),
    [
        ("aabb", "", ("a", "b"), None),
        ("aaaa", "", (), None),
        ("....", "", (), None),
        (
            "aaabbb.",
            "",
            ("a", "b"),
            "1 of 7 images, such as '6.png', has no class and is left out of training and measuring",
        ),
        ("aabb...", "", (), "Classes are left out: 3 of 7 images"),
        ("aabb...", "ttttvvv", ("a", "b"), "3 of 7 images, such as '4.png', have no class"),
        ("..bbaab", "ttttvvv", (), "Classes are left out"),
    ],
)
def test_the_classes_of_images(labels, splits, names, words):
    found = classes_of(items(labels, splits))
    assert found.names == names
    assert [words in note for note in found.notes()] == ([True] if words else [])


def test_numbers_of_any_length_are_in_order():
    named = ["10", "9", "x", "1" * 5000, "010"]
    assert classes_of(Item("", open, name) for name in named).names == ("9", "010", "10", "1" * 5000, "x")


# Sources ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LIMNER_CACHE", str(folder))
    return folder


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(i))
    return folder


def every_kind(folder: Path, names: list[str]) -> dict[str, Path]:
    """The same files as a folder, a zip, a tar, and a pattern."""
    fill(folder / "set", names)
    packed = {
        kind: Path(shutil.make_archive(str(folder / "set"), kind, folder / "set"))
        for kind in ("zip", "gztar")
    }
    return {"folder": folder / "set", **packed, "pattern": folder / "set" / "*"}


def read(source, **options):
    return open_data(source, options=DataOptions(**options), progress=False)


def test_one_rule_for_every_source(tmp_path):
    names = [
        f"pets/{split}/{kind}/{i}.png"
        for split in ("Train", "Test")
        for kind in ("cat", "dog")
        for i in range(6)
    ]
    hidden_files = [
        f"pets/Train/cat/{folder}/x.png" for folder in (".ipynb_checkpoints", "__MACOSX", "@eaDir")
    ]
    fingerprints = {}
    for kind, source in every_kind(tmp_path, [*names, *hidden_files, "pets/cover.png"]).items():
        data = read(source)
        assert len(data) == 25 and data.spec.classes == ("cat", "dog"), kind
        training, held = data.split(0.05)
        assert (len(training), len(held)) == (12, 12), kind
        assert all("Test/" in name for name in held.names) and all(
            "Train/" in name for name in training.names
        )
        assert (
            "cover.png" in data.notes[-1]
            and "held out to measure on: the 12 images of 'Test'" in data.notes[0]
        )
        report = check(source, progress=False)
        assert report.classes == {"cat": 12, "dog": 12} and report.notes == data.notes, kind
        fingerprints[kind] = data.fingerprint
    assert len(set(fingerprints.values())) == 1


def test_named_splits_are_held_out_whatever_the_share(tmp_path):
    names = [
        f"{split}/{kind}/{i}.png" for split in ("train", "val") for kind in ("cat", "dog") for i in range(6)
    ]
    data = read(fill(tmp_path / "pets", names))
    for share in (0, 0.05, 0.5):
        training, held = data.split(share)
        assert {name.split("/")[0] for name in training.names} == {"train"}
        assert {name.split("/")[0] for name in held.names} == {"val"}
    few, held = data.split(0.05, per_class=2)
    assert len(few) == 4 and len(held) == 12
    assert data.part(np.arange(3)).splits == ["train"] * 3
    alone = read(tmp_path / "pets" / "val")
    assert alone.splits is None and len(alone.split(0.5)[0]) == 12, (
        "12 images are too few to hold out a share"
    )


def test_splits_are_part_of_what_the_data_is(tmp_path):
    names = [f"train/{kind}/{i}.png" for kind in ("cat", "dog") for i in range(3)]
    whole = read(fill(tmp_path / "a", names))
    os.rename(tmp_path / "a" / "train" / "dog" / "2.png", tmp_path / "a" / "train" / "dog" / "2x.png")
    assert read(tmp_path / "a").fingerprint == whole.fingerprint, "names are not"
    (tmp_path / "a" / "val" / "dog").mkdir(parents=True)
    os.rename(tmp_path / "a" / "train" / "dog" / "2x.png", tmp_path / "a" / "val" / "dog" / "2.png")
    assert read(tmp_path / "a").fingerprint != whole.fingerprint


def test_archives_named_by_their_split(tmp_path):
    for split in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as archive:
            for i, kind in enumerate(("cat", "dog", "cat", "dog")):
                archive.writestr(f"{split}/{kind}/{i}.png", png(i))
    for source in (tmp_path, tmp_path / "*.zip"):
        data = read(source)
        assert data.spec.classes == ("cat", "dog") and data.splits == ["test"] * 4 + ["train"] * 4


def test_a_held_out_split_without_classes_is_left_out(tmp_path):
    names = [f"train/{kind}/{i}.png" for kind in ("cat", "dog") for i in range(4)]
    data = read(fill(tmp_path / "pets", names + [f"test1/{i}.png" for i in range(6)]))
    training, held = data.split(0)
    assert data.spec.classes == ("cat", "dog") and len(training) == 8 and not len(held)
    plain = read(tmp_path / "pets", labels=False)
    assert [len(part) for part in plain.split(0)] == [8, 6]


def test_the_class_of_nested_folders_is_chosen_or_named(tmp_path):
    folder = fill(
        tmp_path / "a", [f"{a}/{b}/{i}.png" for a in ("x", "y") for b in (a + "1", a + "2") for i in range(2)]
    )
    assert read(folder).spec.classes == ("x/x1", "x/x2", "y/y1", "y/y2")
    assert read(folder, classes="first").spec.classes == ("x", "y")
    assert read(folder, classes="last").spec.classes == ("x1", "x2", "y1", "y2")
    assert read(folder, classes="path").spec.classes == read(folder).spec.classes


# dataset.json -----------------------------------------------------------------------------------------------

NAMES = [f"{i // 4:05d}/img{i:08d}.png" for i in range(12)]


@pytest.mark.parametrize("kind", ["folder", "zip", "wrapped zip", "tar"])
@pytest.mark.parametrize("form", ["pairs", "table"])
def test_the_labels_of_a_dataset_json(tmp_path, kind, form):
    pairs = [[name, i % 2] for i, name in enumerate(NAMES)]
    root = fill(tmp_path / "set", NAMES)
    (root / "dataset.json").write_text(json.dumps({"labels": pairs if form == "pairs" else dict(pairs)}))
    source = root
    if kind == "wrapped zip":
        source = Path(shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path, "set"))
    elif kind != "folder":
        source = Path(shutil.make_archive(str(tmp_path / "a"), kind, root))
    data = read(source)
    assert data.spec.classes == ("0", "1") and data.labels.tolist() == [0, 1] * 6
    assert any("dataset.json: 12 of 12 images" in note for note in data.notes)
    assert not any("shards" in note for note in data.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"labels": null}', "holds no labels"),
        ("{}", "holds no labels"),
        ('{"labels": [["00000/img00000000.png", [0.5, 1]]]}', "vectors"),
        ('{"labels": 5}', "not pairs"),
        ('{"labels": [1, 2]}', "not pairs"),
        ("[" * 100_000, "JSON"),
        ("\xff", "JSON"),
    ],
)
def test_a_dataset_json_without_classes_gives_none(tmp_path, content, words):
    root = fill(tmp_path / "set", NAMES)
    (root / "dataset.json").write_text(content, "latin-1")
    data = read(root)
    said = data.notes + [p.reason for p in data.problems]
    assert data.spec.classes == () and any(words in sentence for sentence in said)
    assert not any("training skips" in sentence for sentence in check(str(root), progress=False).advice)
    assert any("'00000' to '00002' look like shards" in note for note in data.notes)


# Patterns ---------------------------------------------------------------------------------------------------


def test_labels_of_a_dataset_json_have_one_form(tmp_path):
    """NFC, as those of folders and tables; without halves of characters, which cannot be written."""
    paint(tmp_path, 4, (8, 8))
    labels = [["000.png", "Cafe\u0301"], ["001.png", "Caf\u00e9"], ["002.png", "x\ud800"], ["003.png", 1.0]]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert check(str(tmp_path), progress=False).classes == {"Caf\u00e9": 2, "x\ufffd": 1, "1": 1}


def test_folders_a_thousand_deep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("a")
        os.chdir("a")
    Image.new("RGB", (8, 8)).save("x.png")
    monkeypatch.chdir(tmp_path)
    report = check(str(tmp_path), progress=False)
    assert report.images == 1 and not report.problems
    while os.path.isdir("a"):  # shutil.rmtree is recursive
        os.rename("a", "b")
        for name in os.listdir("b"):
            os.rename(f"b/{name}", name)
        os.rmdir("b")


def test_a_pattern_may_match_other_files_and_folders(tmp_path):
    fill(tmp_path, ["cat/1.png", "cat/2.png", "dog/1.png", "3.png", ".hidden/x.png"])
    (tmp_path / "readme.md").write_text("cats and dogs")
    (tmp_path / "3.txt").write_text("a stray")
    data = read(tmp_path / "*")
    assert data.names == ["3.png", "cat/1.png", "cat/2.png", "dog/1.png"] and data.captions[0] == "a stray"
    assert read(tmp_path / "**" / "*.png").names == data.names
    with pytest.raises(LimnerError, match=r"readme\.md.* is not a folder, image, archive or parquet file"):
        read(tmp_path / "readme.md")


@pytest.mark.parametrize("name", ["cat/metadata.csv", "metadata.jsonl", "dataset.json"])
def test_a_pattern_says_which_tables_it_does_not_read(tmp_path, name):
    fill(tmp_path, ["cat/1.png", "cat/2.png", "dog/1.png"])
    (tmp_path / name).write_text("{}")
    assert (
        f"{name} is not read for a pattern: name the folder instead." in read(tmp_path / "*" / "*.png").notes
    )


def test_a_tar_within_a_folder_of_images_is_said(tmp_path):
    fill(tmp_path, ["1.png", "2.png"])
    with tarfile.open(tmp_path / "more.tar", "w"):
        pass
    for source in (tmp_path, tmp_path / "*"):
        assert any("1 archives are not read: name them as sources" in note for note in read(source).notes)
        report = check(source, progress=False)
        assert sum("archives are not read" in line for line in str(report).splitlines()) == 1


def test_a_pattern_of_what_is_no_file(tmp_path):
    fill(tmp_path, ["1.png"])
    os.mkfifo(tmp_path / "2.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "3.png")
    assert read(tmp_path / "*").names == read(tmp_path / "*.png").names == ["1.png"]
    (tmp_path / "empty" / "er").mkdir(parents=True)
    with pytest.raises(LimnerError, match="it has no files"):
        read(tmp_path / "empty" / "*")
