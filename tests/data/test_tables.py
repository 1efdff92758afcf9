"""Parquet files of images, and metadata.parquet: their columns, shards and damage."""

import io

import numpy as np
import pytest
from PIL import Image

from limner.data import open_data
from limner.settings import LimnerError
from tests.helpers import paint

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path, columns, kinds=None):
    """A parquet file; ``kinds``: what `datasets` writes of columns."""
    table = pa.table(columns)
    if kinds:
        import json

        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    pq.write_table(table, path)


def read(folder):
    return open_data(str(folder), size=(8, 8), progress=False)


def classes(data):
    return [data.spec.classes[i] for i in data.labels]


def numbered(*names):
    return {"label": {"_type": "ClassLabel", "names": list(names)}}


@pytest.mark.parametrize("kind", ["bytes", "dict", "path"])
@pytest.mark.parametrize("column", ["image", "Image", "img", "jpg"])
def test_images_are_bytes_dicts_or_paths(tmp_path, kind, column):
    paint(tmp_path / "images", 3, (8, 8))
    files = sorted((tmp_path / "images").iterdir())
    contents = [file.read_bytes() for file in files]
    values = {
        "bytes": contents,
        "dict": [{"bytes": content, "path": None} for content in contents],
        "path": [f"../images/{file.name}" for file in files],
    }[kind]
    (tmp_path / "t").mkdir()
    write(
        tmp_path / "t" / "a.parquet", {column: values, "Caption": ["a", "b", "c"], "class": [1.0, 2.0, 1.0]}
    )
    data, plain = read(tmp_path / "t"), read(tmp_path / "images")
    assert np.array_equal(data.array, plain.array)
    assert data.captions == ["a", "b", "c"] and classes(data) == ["1", "2", "1"]
    assert data.notes[0] == "a.parquet: captions from Caption, labels from class."


def test_shards_join_their_classes_by_name(tmp_path):
    for shard, names in enumerate((["cat", "dog"], ["dog", "cat"], ["owl"])):
        content = {"image": [png(shard), png(9)], "label": [0, 0]}
        write(tmp_path / f"{shard}.parquet", content, numbered(*names))
    data = read(tmp_path)
    assert classes(data) == ["cat", "cat", "dog", "dog", "owl", "owl"]
    assert data.array[2, 0, 0, 0] == 1 and "0.parquet and 2 more files" in data.notes[0]


def test_names_beside_numbers_are_refused_by_file_and_column(tmp_path):
    write(tmp_path / "0.parquet", {"image": [png(0)], "label": [0]}, numbered("cat"))
    write(tmp_path / "1.parquet", {"image": [png(0)], "label": [0]})
    with pytest.raises(
        LimnerError, match=r"column label holds names in 0\.parquet and numbers in 1\.parquet"
    ):
        read(tmp_path)


def test_a_shard_of_other_columns_is_named(tmp_path):
    write(tmp_path / "0.parquet", {"image": [png(0)], "text": ["a"], "size": [3]})
    write(tmp_path / "1.parquet", {"image": [png(1)], "title": ["b"]})
    data = read(tmp_path)
    assert data.captions == ["a", ""]
    assert "0.parquet: captions from text; columns that are not used: size." in data.notes
    assert "1.parquet: neither captions nor labels; of its columns title none is text" in data.notes[1]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"picture_id": [1]}, r"1\.parquet has no column of images; its columns are picture_id"),
        ({"image": [[1, 2]]}, r"column image of 1\.parquet holds list<.*>, not images"),
    ],
)
def test_a_shard_without_images_is_named(tmp_path, columns, words):
    write(tmp_path / "0.parquet", {"image": [png(0)]})
    write(tmp_path / "1.parquet", columns)
    with pytest.raises(LimnerError, match=words):
        read(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path / "0.parquet", {"image": [png(0)] * 50})
    whole = (tmp_path / "0.parquet").read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2] + b"x" * 50, b"PAR1" + bytes(200) + b"PAR1"):
        (tmp_path / "0.parquet").write_bytes(content)
        with pytest.raises(LimnerError, match=r"0\.parquet cannot be read as parquet"):
            read(tmp_path)


def test_rows_without_an_image_are_problems(tmp_path):
    write(tmp_path / "0.parquet", {"image": [png(0), None, png(1), b"no image", *map(png, range(20))]})
    data = read(tmp_path)
    assert len(data) == 22 and [p.path for p in data.problems] == ["image/1", "image/3"]


def test_metadata_parquet(tmp_path):
    paint(tmp_path, 4, (8, 8))
    columns = {
        "file_name": [f"{i:03d}.png" for i in range(4)], "text": [["a", "b"], [], ["c"], None],
        "label": [1, 0, 1, 0], "score": [0.5] * 4,
    }  # fmt: skip
    write(tmp_path / "Metadata.parquet", columns, numbered("cat", "dog"))
    data = read(tmp_path)
    assert data.captions == ["a", "", "c", ""] and classes(data) == ["dog", "cat", "dog", "cat"]
    assert "not used: score" in data.notes[0]
    (tmp_path / "Metadata.parquet").write_bytes(b"PAR1" + bytes(99))
    with pytest.raises(LimnerError, match=r"Metadata\.parquet cannot be read .*fix or remove it"):
        read(tmp_path)


@pytest.mark.parametrize(
    "names", [("train-00000-of-00001", "test-00000-of-00001"), ("train/0", "test/0"), ("Train", "Val")]
)
def test_files_named_by_their_split_are_held_out(tmp_path, names):
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / f"{name}.parquet", {"image": [png(i), png(9)], "label": ["cat", "dog"]})
    for source in (
        (tmp_path, tmp_path / "*" / "0.parquet") if "/" in names[0] else (tmp_path, tmp_path / "*.parquet")
    ):
        training, held = read(source).split(0.05)
        assert [int(part.array[0].max()) for part in (training, held)] == [0, 1]
        assert any("held out to measure on: the 2 images" in note for note in training.notes)
    alone = read(tmp_path / f"{names[1]}.parquet")
    assert len(alone.split(0.05)[0]) == 2


@pytest.mark.parametrize(
    ("splits", "trained", "held"),
    [("train validation test", 2, 4), ("train", 2, 0), ("test extra", 2, 0), ("train unsupervised", 2, 0)],
)
def test_splits_of_the_hub(monkeypatch, splits, trained, held):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    tables = {}
    for n, split in enumerate(splits.split()):  # no image twice, which would not be held out
        rows = {"img": [{"bytes": png(10 * n + i), "path": None} for i in (1, 2)], "label": [0, 1]}
        tables[split] = datasets.Dataset.from_dict(rows, features=kinds)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a: tables)
    data = read(f"hf:me/{splits.replace(' ', '-')}")
    assert data.spec.classes == ("cat", "dog") and [len(part) for part in data.split(0)] == [trained, held]
