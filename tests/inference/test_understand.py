"""Features, classes and likeness of images, and how much of their labels a run has understood."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from limner import checkpoint, cli, families, files
from limner.config import Run
from limner.core import DataOptions, ImageSpec, LimnerError, Model, Training
from limner.data import open_data
from limner.evaluation.evaluate import evaluate
from limner.evaluation.options import EvaluateOptions
from limner.evaluation.real import open_real, with_labels
from limner.evaluation.tables import evaluation_rows
from limner.inference import understand
from limner.inference.pipeline import Pipeline
from tests.helpers import paint

TINY = ("--preset", "tiny", "--training.samples", 4)
COLOURS = {"blue": (40, 60, 220), "green": (40, 220, 60), "red": (220, 60, 40)}


def coloured(folder: Path, count: int, names: dict[str, str], size: tuple[int, int] = (16, 16)) -> Path:
    """``count`` noisy pictures in a folder of each name, of the colour that it names; no two alike."""
    rng = np.random.default_rng(len(names))
    for name, colour in names.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = rng.integers(-30, 31, (*size, 3)) + rng.integers(-20, 21, 3)
            pixels = (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return coloured(tmp_path_factory.mktemp("source") / "images", 20, {name: name for name in COLOURS})


@pytest.fixture(scope="module")
def run(source, limner) -> Path:
    """A vae that never saw a label."""
    out = source.parent / "vae"
    limner("train", "vae", source, "--out", out, *TINY, "--budget", "640img", "--data.no-labels")
    return out


@pytest.fixture(scope="module")
def blind(source, limner) -> Path:
    """A run that neither describes nor classifies."""
    out = source.parent / "dcgan"
    limner("train", "dcgan", source, "--out", out, *TINY, "--budget", "32img")
    return out


# A stand-in that describes an image by its mean colour, and names the strongest -------------------------


@dataclass(frozen=True)
class Settings:
    gain: float = 4.0


class Brightest(Model):
    Config = Settings
    Sampling = Settings

    def __init__(self, config: Settings, spec: ImageSpec):
        super().__init__(config, spec)
        self.network = nn.Linear(3, 3, bias=False)

    def features(self, image: Tensor) -> Tensor:
        return image.mean((2, 3))

    def classify(self, image: Tensor) -> Tensor:
        return self.config.gain * self.network(self.features(image))


@pytest.fixture
def brightest(tmp_path, monkeypatch) -> Path:
    """A run of the stand-in, loaded as any other."""
    known = families.load
    monkeypatch.setattr(families, "load", lambda name: Brightest if name == "brightest" else known(name))
    options = DataOptions(holdout=0.5)
    spec = ImageSpec(3, 16, 16, classes=tuple(COLOURS))
    run = Run(
        "brightest", ("x",), "tiny", None, "1img", 0, Settings(), Training(precision="float32"), options
    )
    (tmp_path / "brightest").mkdir()
    weights = {"network.weight": torch.eye(3).flip(0).contiguous()}  # blue, green, red
    header = checkpoint.make_header(run, spec, 0)
    checkpoint.write_model(tmp_path / "brightest" / checkpoint.MODEL, weights, header)
    return tmp_path / "brightest"


# Embedding ----------------------------------------------------------------------------------------------


def test_embed_writes_the_same_to_every_kind_of_file(run, source, limner, tmp_path):
    from safetensors import safe_open

    parquet = pytest.importorskip("pyarrow.parquet")
    for suffix in ("npz", "safetensors", "parquet"):
        report = json.loads(
            limner("embed", run, source, "--to", tmp_path / "to" / f"x.{suffix}", "--json").stdout
        )
        assert report["n"] == 60 and report["features"] == 4 and report["labels"] == 3 and report["run"]
    assert len(list((tmp_path / "to").iterdir())) == 3, "nothing unfinished is left"

    with np.load(tmp_path / "to" / "x.npz", allow_pickle=False) as file:
        paths, labels, features = (file[name] for name in ("path", "label", "features"))
    assert features.shape == (60, 4) and features.dtype == np.float32
    assert [path.split("/")[0] for path in paths] == labels.tolist() and set(labels) == set(COLOURS)
    with safe_open(tmp_path / "to" / "x.safetensors", "np") as file:
        assert json.loads(file.metadata()["path"]) == paths.tolist()
        assert json.loads(file.metadata()["label"]) == labels.tolist()
        assert np.array_equal(file.get_tensor("features"), features)
    table = parquet.read_table(tmp_path / "to" / "x.parquet").to_pydict()
    assert table["path"] == paths.tolist() and table["label"] == labels.tolist()
    assert np.array_equal(np.array(table["features"], np.float32), features)

    pipeline = Pipeline(run)  # and they are what the model says of each file
    data = open_data([str(source)], size=(16, 16), options=DataOptions(channels=3))
    with torch.inference_mode():
        alone = pipeline.model.features(data.batch(np.array([37])).image)
    assert data.names[37] == paths[37] and np.allclose(alone, features[37], atol=0.02)


def test_images_without_labels_have_empty_ones(run, limner, tmp_path):
    paint(tmp_path / "images", 3)
    limner("embed", run, tmp_path / "images", "--to", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert file["label"].tolist() == [""] * 3 and file["features"].shape == (3, 4)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "x.npz").write_text("before")
    with pytest.raises(KeyboardInterrupt), files.atomic(tmp_path / "x.npz") as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"] and (tmp_path / "x.npz").read_text() == "before"
    with pytest.raises(LimnerError, match="cannot be written"), files.atomic(tmp_path / "x.npz" / "y"):
        pass


def test_parquet_names_its_extra(run, source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LimnerError, match=r"limner\[data\]"):
        understand.embed(run, [str(source)], tmp_path / "x.parquet", quiet=True)


# Searching ----------------------------------------------------------------------------------------------


def test_search_finds_a_picture_however_it_is_stored(run, source, limner, tmp_path):
    """The query goes through the same door as the source: turned by EXIF, in another format, larger."""
    picture = Image.open(source / "green" / "007.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned = picture.transpose(Image.Transpose.ROTATE_90).resize((32, 32), Image.Resampling.NEAREST)
    turned.save(tmp_path / "query.png", exif=exif)
    done = limner("search", run, source, tmp_path / "query.png", "--n", 5, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    found = report["found"]
    assert found[0]["path"] == "green/007.png" and found[0]["similarity"] > 0.999
    assert len(found) == 5 and report["n"] == 60
    assert [row["similarity"] for row in found] == sorted((row["similarity"] for row in found), reverse=True)
    sheet = np.asarray(Image.open(tmp_path / "search.png"))
    assert sheet.shape[1] > 3 * 128, "the query and five more, enlarged"

    said = limner("search", run, source, source / "red" / "000.png", "--n", 99, "--to", tmp_path / "all.png")
    assert "red/000.png" in said.stdout and "1.0000" in said.stdout and "60 images" in said.stdout


def test_searching_keeps_no_query(run, source, limner, tmp_path):
    cache = tmp_path / "cache"
    limner(
        "search", run, source, source / "red" / "000.png", "--to", tmp_path / "x.png", LIMNER_CACHE=str(cache)
    )
    assert len(list((cache / "packed").iterdir())) == 1, "the source alone"


# Classifying --------------------------------------------------------------------------------------------


def test_classify_by_hand(brightest, tmp_path):
    """Of the folder red two pictures are green: 28 of 30 are right, and it says which are not."""
    folder = coloured(tmp_path / "images", 10, {name: name for name in COLOURS})
    for i in (3, 8):
        (folder / "red" / f"{i:03d}.png").write_bytes((folder / "green" / f"{i:03d}.png").read_bytes())
    result = understand.classify(brightest, [str(folder)], quiet=True)
    assert result.accuracy.value == pytest.approx(28 / 30) and result.accuracy.n == 30
    assert result.accuracy.low == pytest.approx(0.7868, abs=1e-4)
    wrong = [p.path for p in result.predictions if p.predicted != p.label]
    assert wrong == ["red/003.png", "red/008.png"]
    mean = open_data([str(folder)], size=(16, 16)).batch(np.array([0])).image.mean((2, 3))[0]
    (first, *_) = result.to_json()["predictions"]
    expected = (4 * mean).softmax(0)[2]
    assert first["predicted"] == "blue" and first["probability"] == pytest.approx(float(expected), abs=1e-5)
    assert first["top"][0]["class"] == "blue" and sum(t["probability"] for t in first["top"]) == (
        pytest.approx(1)
    )
    with open(brightest / "predictions.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 30 and lines[0]["predicted"] == "blue" and lines[23]["label"] == "red"
    assert float(lines[0]["probability"]) == first["probability"]
    assert Image.open(brightest / "predictions.png").width > 5 * 128

    result = understand.classify(brightest, [str(folder)], tmp_path / "p.json", labels=False, quiet=True)
    assert result.accuracy is None and {p.label for p in result.predictions} == {""}
    assert (
        json.loads((tmp_path / "p.json").read_text()) == result.to_json()
        and "accuracy" not in result.to_json()
    )
    assert len(json.loads((tmp_path / "p.json").read_text())["predictions"][0]["top"]) == 3


def test_labels_go_by_name(brightest, tmp_path):
    """A source with fewer classes in other places; and one with a class that the run does not know."""
    folder = coloured(tmp_path / "two", 5, {"green": "green", "red": "red"})
    assert understand.classify(brightest, [str(folder)], quiet=True).accuracy.value == 1.0
    coloured(tmp_path / "two", 5, {"redd": "red"})
    with pytest.raises(LimnerError, match=r"no class 'redd'.*Did you mean red.*--no-labels"):
        understand.classify(brightest, [str(folder)], quiet=True)


def test_captions_of_predictions():
    prediction = understand.Prediction("a.png", "", "cat", 0.974, [])
    assert prediction.caption() == "cat, 97%" == replace(prediction, label="cat").caption()
    assert replace(prediction, label="dog").caption() == "cat, 97% (is dog)"


def test_nothing_that_is_read_or_somebody_elses_is_replaced(brightest, source, tmp_path):
    mine = tmp_path / "cat.png"
    mine.write_bytes((source / "red" / "000.png").read_bytes())
    before = mine.read_bytes()
    with pytest.raises(LimnerError, match=r"cat.png exists already and would be replaced, beside .*cat.csv"):
        understand.classify(brightest, [str(source)], tmp_path / "cat.csv", quiet=True)
    with pytest.raises(LimnerError, match=r"cat.png is read here and would be replaced: name another file"):
        understand.search(brightest, str(source), mine, to=mine, quiet=True)
    assert mine.read_bytes() == before and not (tmp_path / "cat.csv").exists()
    for _ in range(2):  # its own sheet is replaced
        understand.classify(brightest, [str(source)], tmp_path / "dog.csv", quiet=True)


def test_classify_with_every_family_that_can(source, limner, tmp_path):
    able = [name for name in families.names() if hasattr(families.load(name), "classify")]
    if not able:
        pytest.skip("NO FAMILY CLASSIFIES YET: `limner classify` is tested by a stand-in only")
    for name in able:
        out = tmp_path / name
        limner("train", name, source, "--out", out, *TINY, "--budget", "320img")
        report = json.loads(limner("classify", out, source, "--json").stdout)
        assert report["n"] == 60 and 0 <= report["accuracy"]["low"] <= report["accuracy"]["value"]
        assert all(len(p["top"]) == 3 for p in report["predictions"])
        said = limner("classify", out, source, "--to", tmp_path / "p.csv").stdout
        assert "blue/000.png" in said and "95% interval" in said and (tmp_path / "p.png").exists()
        report = json.loads(limner("evaluate", out, source, "--json").stdout)
        assert report["accuracy"]["n"] == 3


# Measuring ----------------------------------------------------------------------------------------------


def test_evaluate_reads_labels_that_training_did_not(run, source, limner):
    report = json.loads(limner("evaluate", run, source, "--n", 30, "--labels-per-class", 2, "--json").stdout)
    for name in ("knn_accuracy", "probe_accuracy"):
        assert (
            0 <= report[name]["low"] <= report[name]["value"] <= report[name]["high"] <= 1
            and report[name]["n"] == 3
        )
    few = report["few_probe_accuracy"]
    assert few["labels_per_class"] == 2 and few["draws"] == 5 and 0 <= few["value"] <= 1
    assert "accuracy" not in report and report["kid"], "what it draws is measured as before"
    kept = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert kept["probe_accuracy"] == report["probe_accuracy"]
    result = evaluate(run, [str(source)], EvaluateOptions(n=30, labels_per_class=2), quiet=True)
    said = "\n".join(row[0] for row in evaluation_rows(result))
    assert "20 nearest" in said and "linear probe" in said and "2 labels a class" in said


def test_the_split_stays_that_of_training(run, source):
    """Reading labels must not move images that were trained on into the held-out part."""
    pipeline = Pipeline(run)
    options = replace(pipeline.loaded.run.data, holdout=0.3)
    real = open_real([str(source)], pipeline.spec, options, progress=False)
    assert real.training.labels is None
    labelled = with_labels(pipeline, [str(source)], real, progress=False)
    assert labelled.held_out.names == real.held_out.names and len(labelled.held_out) == 18
    for part in (labelled.training, labelled.held_out):
        assert understand.class_names(part) == [name.split("/")[0] for name in part.names]


def test_a_run_that_only_understands_is_measured_without_drawing(brightest, source):
    result = evaluate(brightest, [str(source)], EvaluateOptions(labels_per_class=1), quiet=True)
    found = result.understanding
    for accuracy in (found.accuracy, found.knn_accuracy, found.probe_accuracy):
        assert accuracy.value == 1.0 and accuracy.n == 30 and 0.8 < accuracy.low < 0.9
    assert found.few_probe_accuracy.value > 0.9
    assert "kid" not in result.to_json() and len(evaluation_rows(result)) == 4
    assert {p.name for p in (brightest / "evaluation").iterdir()} == {"evaluation.json"}


def test_features_are_measured_where_classes_are_unknown(brightest, tmp_path):
    folder = coloured(tmp_path / "images", 15, {"apple": "red", "leaf": "green"})
    with pytest.warns(UserWarning, match="no class 'apple'"):
        found = evaluate(brightest, [str(folder)], quiet=True).understanding
    assert found.probe_accuracy.value == 1.0 and found.accuracy is None


def test_without_labels_there_is_nothing_to_measure(brightest, tmp_path):
    paint(tmp_path / "images", 30)
    with pytest.raises(LimnerError, match="no labels"):
        evaluate(brightest, [str(tmp_path / "images")], quiet=True)
    coloured(tmp_path / "few", 3, {"red": "red", "blue": "blue"})
    with pytest.raises(LimnerError, match="held out"):
        evaluate(brightest, [str(tmp_path / "few")], quiet=True)


# Mistakes and help --------------------------------------------------------------------------------------


def test_mistakes_are_one_sentence(run, blind, source, limner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = source / "red" / "000.png"
    cases = (
        (
            ("embed", blind, source, "--to", "x.npz"),
            "does not describe images: use a run of autoencoder, clip, dino, mae, vae or vit",
        ),
        (("search", run, source, "nowhere.png"), "no picture nowhere.png"),
        (("evaluate", blind, source, "--labels-per-class", 2), "does not describe images"),
    )
    for arguments, words in cases:
        done = limner(*arguments, ok=False)
        assert done.returncode == 2 and words in done.stderr, (arguments, done.stderr)
    for arguments, words in (  # the same door, without a process for each
        (
            ("search", blind, source, picture),
            "does not describe images: use a run of autoencoder, clip, dino, mae, vae or vit",
        ),
        (("classify", run, source), "does not classify images"),
        (("evaluate", run, source, "--labels-per-class", -1), "choose 0 or more"),
        (("evaluate", source, source, "--labels-per-class", 1), "--labels-per-class"),
        (("embed", run, source, "--to", "x.csv"), ".npz, .safetensors or .parquet"),
        (("embed", run, "--to", "x.npz"), "No source is given"),
        (("classify", run, source, "--to", "x.txt"), ".csv or .json"),
        (("search", run, source, source), "no picture"),
        (("search", run, source, run / "config.json"), "is not a folder, image"),
        (("search", run, source, picture, "--n", 0), "choose 1 or more"),
        (("search", run, source, picture, "--to", "x.gif"), ".png"),
        (("search", tmp_path / "none", source, picture), "none"),
    ):
        with pytest.raises(LimnerError) as mistake:
            cli.run([str(argument) for argument in arguments])
        assert words in str(mistake.value), arguments
    assert not list(tmp_path.iterdir()), "nothing half-written is left"


@pytest.mark.parametrize("command", ["embed", "classify", "search"])
def test_help_does_not_import_torch(command):
    code = (
        f"import sys; sys.argv = ['limner', {command!r}, '--help']\n"
        "from limner.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr
