"""What synthetic images are worth: the whole experiment with a small classifier, and the figures by themselves."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner import api, checkpoint, cli, families, files
from limner.core import LimnerError
from limner.data import open_data
from limner.evaluation.real import open_real
from limner.inference.pipeline import Pipeline
from limner.synthesis import training_data
from limner.synthesis.options import TrainingDataOptions
from tests.helpers import paint

STAND_IN = '''
"""One linear layer on pixels."""
from dataclasses import dataclass
import math
from torch import nn
from torch.nn import functional as F
from limner.core import Model, Objective, Optimiser, Preset, Training

@dataclass(frozen=True)
class Config:
    scale: float = 1.0

@dataclass(frozen=True)
class Sampling:
    pass

class Linear(Model):
    Config, Sampling = Config, Sampling
    reads = frozenset({"label"})
    averaged = ("head",)
    presets = {n: Preset(Config(), Training(batch=16, average=0.0, optimisers={"head": Optimiser("adam", lr=3e-3)}))
               for n in ("tiny", "small", "base")}

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.head = nn.Linear(math.prod(spec.shape), len(spec.classes))

    def classify(self, image):
        return self.head(image.flatten(1))

    def objectives(self):
        return [Objective("head", lambda b: {"ce": F.cross_entropy(self.classify(b.image), b.condition.label)})]
'''


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A family that classifies, for as long as a test lasts."""
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "linear.py").write_text(STAND_IN)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "families")])
    yield "linear"
    sys.modules.pop("limner.families.linear", None)


def colours(folder: Path, count: int, seed: int = 0) -> Path:
    """Red and blue pictures with so much noise that two can hardly be alike."""
    rng = np.random.default_rng(seed)
    for name, colour in (("blue", (60, 60, 190)), ("red", (190, 60, 60))):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noisy = np.array(colour) + rng.normal(0, 40, (16, 16, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("worth")
    colours(root / "images", 60)
    api.train("dcgan", root / "images", root / "run", preset="tiny", budget="320img", quiet=True,
              training={"samples": 4}, data={"holdout": 0.5, "per_class": 12})  # fmt: skip
    return root


@pytest.fixture
def run(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    return tmp_path / "run"


def test_the_whole_experiment(place, run, stand_in, monkeypatch, capsys):
    arguments = ["evaluate", run, place / "images", "--as-training-data", "--classifier-family", stand_in,
                 "--classifier-preset", "tiny", "--classifier-budget", "320img", "--n", "30", "--seed", "3",
                 "--repeats", "1"]  # fmt: skip
    arguments = [str(a) for a in arguments]
    assert cli.run([*arguments, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    report = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert shown["training_data"] == report["training_data"] and report["kid"]["value"]
    report = report["training_data"]
    assert (report["n_test"], report["n_real"], report["n_synthetic"]) == (60, 24, 30)  # twelve of each class
    assert (
        report["classifier"] == stand_in
        and report["budget"] == "320img"
        and report["left_out"] == 0
        and report["checked"]
    )
    assert report["real"]["accuracy"] > 0.95, "red and blue are easily report apart"
    assert report["verdict"] == "unclear" and "One repeat cannot say" in report["said"]
    for name in ("real", "synthetic", "both"):
        assert report[name]["low"] <= report[name]["accuracy"] <= report[name]["high"]
    assert report["real_share_of_both"] == pytest.approx(0.5, abs=0.05)

    folder = run / "evaluation" / "training_data"
    real, made = (open_data(folder / name, size=(16, 16)) for name in ("real", "synthetic"))
    assert real.spec.classes == made.spec.classes == ("blue", "red")
    assert np.bincount(real.labels).tolist() == [12, 12] and np.bincount(made.labels).tolist() == [15, 15]
    whole = open_real([str(place / "images")], Pipeline(run).spec, Pipeline(run).loaded.run.data, False)
    assert np.array_equal(real.array, whole.training.array), "the very images that the run learnt from"
    seen = {p.name: checkpoint.read_model(p)[0]["seen"] for p in (folder / "classifiers").iterdir()}
    assert seen == {"real-3": 320, "synthetic-3": 320, "both-3": 320}
    assert checkpoint.read_model(folder / "classifiers" / "both-3")[0]["spec"]["classes"] == ["blue", "red"]

    # Asked again with more repeats, what is there is not trained again; the figures are the same.
    monkeypatch.setattr(api, "train_run", recorder := Recorder(api.train_run))
    assert cli.run([*arguments[:-1], "2"]) == 0
    said = capsys.readouterr().out
    assert "held-out images" in said and "both, half and half" in said and "over repeats" in said
    again = json.loads((run / "evaluation" / "evaluation.json").read_text())["training_data"]
    assert again["real"]["runs"][0] == report["real"]["runs"][0] and len(again["both"]["runs"]) == 2
    assert recorder.made == ["real-4", "synthetic-4", "both-4"]
    # With other settings the images are made anew.
    options = TrainingDataOptions(
        classifier_family=stand_in, classifier_budget="32img", classifier_preset="tiny", repeats=1
    )
    training_data.as_training_data(run, [str(place / "images")], options, n=20, quiet=True)
    assert (
        len(list((folder / "synthetic").glob("*.png"))) == 20 and (folder / "classifiers" / "real-0").is_dir()
    )
    assert not (folder / "classifiers" / "real-3").exists()


class Recorder:
    """Records which trainings are made."""

    def __init__(self, train):
        self.train, self.made = train, []

    def __call__(self, run, out, **options):
        self.made.append(Path(out).name)
        return self.train(run, out, **options)


def test_images_that_the_generator_learnt_from_are_no_test(place, run, tmp_path):
    """A larger source that holds the generator's own images splits otherwise: they come up among the held-out."""
    source = colours(tmp_path / "more", 40, seed=9)
    for name in ("red", "blue"):
        for path in (place / "images" / name).iterdir():
            shutil.copy(path, source / name / f"old-{path.name}")
    pipeline = Pipeline(run)
    options = pipeline.loaded.run.data
    real = open_real([str(source)], pipeline.spec, options, progress=False)
    own = open_real([str(place / "images")], pipeline.spec, options, progress=False).training
    test, left_out, checked = training_data.find_test_images(pipeline, real, quiet=True)
    taught = {image.tobytes() for image in own.array}
    assert checked and left_out == sum(image.tobytes() in taught for image in real.held_out.array) > 0
    assert len(test) + left_out == len(real.held_out)
    assert not any(image.tobytes() in taught for image in test.array)
    shutil.move(place / "images", place / "elsewhere")
    try:
        test, left_out, checked = training_data.find_test_images(pipeline, real, quiet=True)
        assert (len(test), left_out, checked) == (len(real.held_out), 0, False)
    finally:
        shutil.move(place / "elsewhere", place / "images")


def test_mistakes_are_one_sentence(place, run, stand_in, tmp_path):
    images = str(place / "images")
    api.train("vae", images, tmp_path / "vae", preset="tiny", budget="16img", quiet=True)
    plain = paint(tmp_path / "plain", 30)
    few = colours(tmp_path / "few", 15)
    strange = tmp_path / "strange"
    shutil.copytree(images, strange)
    (strange / "red").rename(strange / "rad")
    for where, source, options, words in (
        (run, images, {"classifier_family": "dcgan"}, "dcgan does not classify"),
        (run, images, {"classifier_family": "nothing"}, "no family 'nothing'"),
        (run, images, {"classifier_budget": "soon"}, "not a valid budget"),
        (run, images, {"repeats": 0}, "choose 1 or more"),
        (run, plain, {}, "no classes"),
        (run, few, {}, "too few to test"),
        (run, strange, {}, "knows no class 'rad'"),
        (tmp_path / "vae", images, {}, "cannot draw images of a given class"),
    ):
        with pytest.raises(LimnerError, match=words):
            options = TrainingDataOptions(**{"classifier_family": stand_in, **options})
            training_data.as_training_data(where, [str(source)], options, quiet=True)
    assert not (run / "evaluation").exists()
    (run / "evaluation" / "training_data" / "real").mkdir(parents=True)  # somebody's own
    with pytest.raises(LimnerError, match="was not made by"):
        options = TrainingDataOptions(classifier_family=stand_in)
        training_data.as_training_data(run, [images], options, quiet=True)


def test_both_halves_count_alike():
    for reals, synthetics in ((1000, 1000), (20, 1000), (700, 1000), (1500, 1000), (50_000, 1000), (3, 1000)):
        a, b = training_data.balance(reals, synthetics)
        assert a >= 1 and b >= 1
        assert a * reals / (a * reals + b * synthetics) == pytest.approx(0.5, abs=0.04)


def test_wilson_against_published_numbers():
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                               (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert training_data.wilson(hits / n, n) == pytest.approx((low, high), abs=2e-4)


def test_the_verdict_follows_the_paired_difference():
    def outcome(gained: int, lost: int, n: int = 500) -> training_data.Difference:
        real = torch.ones(3, n, dtype=torch.bool)
        both = real.clone()
        real[:, :gained] = False
        both[:, gained : gained + lost] = False
        difference = training_data.paired(both, real)
        assert difference.value == pytest.approx((gained - lost) / n)
        return difference

    assert outcome(30, 5).verdict() == "helps" and outcome(5, 30).verdict() == "hurts"
    assert outcome(20, 15).verdict() == "unclear" and outcome(0, 0).verdict() == "unclear"
    assert outcome(0, 0).low < 0 < outcome(0, 0).high, "no difference seen does not prove that there is none"
    # Pairs say more than two separate intervals: these overlap.
    real = (torch.arange(500) < 400).expand(3, -1)
    both = (torch.arange(500) < 412).expand(3, -1)
    assert training_data.wilson(0.8, 500)[1] > training_data.wilson(412 / 500, 500)[0]
    assert training_data.paired(both, real).verdict() == "helps"
    # Repeats that disagree widen it.
    real = torch.zeros(2, 400, dtype=torch.bool)
    both = real.clone()
    both[0, :80] = True
    assert training_data.paired(both[:1].expand(2, -1), real).verdict() == "helps"
    assert training_data.paired(both, real).verdict() == "unclear"
    assert training_data.sentence(0.912, 0.94, training_data.Difference(0.028, 0.009, 0.047), 500) == (
        "Adding synthetic images helps: 91.2% -> 94.0% of 500 held-out images "
        "(+2.8 points, 95% interval +0.9 to +4.7)."
    )


def test_students_factor_against_published_numbers():
    for df, factor in ((1, 12.7062), (2, 4.3027), (4, 2.7764), (10, 2.2281), (30, 2.0423), (10**9, 1.9623)):
        assert training_data.student(df) == pytest.approx(factor, rel=1e-3)


def classifiers(trials, repeats, n, accuracy, spread, generator, gain=0.0):
    """[trials, 2, repeats, n] bool, right answers of two kinds of classifiers, the first better by ``gain``.

    Images differ in difficulty, which all classifiers share; ``spread`` is that of the classifiers' own seeds.
    """

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    total = torch.tensor(1 + spread**2 + 0.25).sqrt()
    levels = torch.special.ndtri(torch.tensor([accuracy + gain, accuracy])) * total
    difficulty = normal(trials, 1, 1, n)
    seeds = spread * normal(trials, 2, repeats, 1)
    return levels.view(1, 2, 1, 1) + difficulty + seeds + 0.5 * normal(trials, 2, repeats, n) > 0


@pytest.mark.parametrize("n", [20, 200, 2000])
@pytest.mark.parametrize("repeats", [1, 3, 5])
def test_equal_classifiers_are_told_apart_in_less_than_5_percent(repeats, n):
    generator = torch.Generator().manual_seed(1)
    for accuracy, spread in ((0.6, 0.0), (0.6, 0.3), (0.95, 0.1), (0.95, 0.3)):
        verdicts = [
            training_data.paired(*pair).verdict()
            for pair in classifiers(300, repeats, n, accuracy, spread, generator)
        ]
        told_apart = 1 - verdicts.count("unclear") / len(verdicts)
        assert told_apart <= 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5, (accuracy, spread)
        if repeats == 1:
            assert told_apart == 0


@pytest.mark.parametrize("repeats", [3, 5])
def test_a_difference_of_several_points_is_found(repeats):
    """Classifiers that differ by 0.6 points from seed to seed."""
    generator = torch.Generator().manual_seed(2)
    for gain, verdict in ((0.05, "helps"), (-0.05, "hurts")):
        trials = classifiers(100, repeats, 1000, 0.85, 0.03, generator, gain)
        assert [training_data.paired(*pair).verdict() for pair in trials].count(verdict) > 90


def test_the_interval_of_an_accuracy_covers_the_seeds():
    generator = torch.Generator().manual_seed(3)
    trials = classifiers(300, 3, 300, 0.85, 0.2, generator)[:, 0]
    scores = [training_data.Score.of(list(rows)) for rows in trials]
    assert sum(score.low <= 0.85 <= score.high for score in scores) / 300 > 0.92
    assert (
        training_data.Score.of([trials[0, 0]] * 3).low
        == training_data.wilson(trials[0, 0].double().mean(), 300)[0]
    )
    perfect = training_data.Score.of([torch.ones(30, dtype=torch.bool)] * 3)
    assert perfect.high == 1 and 0.8 < perfect.low < 1


def test_one_repeat_gives_no_verdict_and_says_why():
    real = torch.zeros(1, 400, dtype=torch.bool)
    difference = training_data.paired(~real, real)
    assert difference == training_data.Difference(1.0, -1.0, 1.0) and difference.verdict() == "unclear"
    assert training_data.sentence(0.0, 1.0, difference, 400, repeats=1) == (
        "One repeat cannot say whether synthetic images help: 0.0% -> 100.0% of 400 held-out images, but equal "
        "classifiers differ by their seed, which only repeats show: use --repeats 3 or more."
    )


@pytest.mark.skipif(
    families.CLASSIFIER not in families.names(),
    reason=f"THE FAMILY {families.CLASSIFIER} IS NOT THERE YET: --as-training-data cannot be run as it is meant",
)
def test_by_the_command_with_the_default_classifier(place, run, limner):
    done = limner("evaluate", run, place / "images", "--as-training-data", "--classifier-preset", "tiny",
                  "--classifier-budget", "640img", "--n", 30, "--repeats", 2)  # fmt: skip
    report = json.loads((run / "evaluation" / "evaluation.json").read_text())["training_data"]
    assert report["said"].split(":")[0] in " ".join(done.stdout.split())
    assert report["classifier"] == families.CLASSIFIER and report["n_test"] == 60
    assert report["real"]["accuracy"] > 0.7


def fill_parts(folder: Path) -> dict[str, str]:
    names = ("real/000000.png", "real/metadata.jsonl", "synthetic/000007.png", "synthetic/.000008.png",
             "synthetic/provenance.json", "synthetic/.lock", "classifiers/both-0/config.json",
             "classifiers/both-0/checkpoints/000000064/live.safetensors", "classifiers/both-0/.lock",
             "classifiers/real-0/samples/000000000064.png")  # fmt: skip
    for name in names:
        files.write_text(folder / name, name)
    return {name: (folder / name).read_text() for name in names}


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_other_settings_remove_what_was_made_and_nothing_else(tmp_path):
    training_data._begin(tmp_path, {"seed": 0})
    made = fill_parts(tmp_path)
    training_data._begin(tmp_path, {"seed": 0})
    assert left(tmp_path) == {"asked.json", *made}
    for name in ("real/mine.jpg", "synthetic/notes.txt", "classifiers/mine/model.pt"):
        files.write_text(tmp_path / name, "mine")
        with pytest.raises(LimnerError, match=rf"{name} was not made by --as-training-data"):
            training_data._begin(tmp_path, {"seed": 1})
        assert left(tmp_path) == {"asked.json", name, *made} and files.read_json(tmp_path / "asked.json") == {
            "seed": 0
        }
        (tmp_path / name).unlink()
    training_data._begin(tmp_path, {"seed": 1})
    assert left(tmp_path) == {"asked.json"} and files.read_json(tmp_path / "asked.json") == {"seed": 1}
    fill_parts(tmp_path)
    (tmp_path / "asked.json").write_bytes(b"\xff")
    with pytest.warns(UserWarning, match="made again"):
        training_data._begin(tmp_path, {"seed": 1})
    assert left(tmp_path) == {"asked.json"}
    (tmp_path / "asked.json").unlink()
    fill_parts(tmp_path)
    with pytest.raises(LimnerError, match="was not made by"):
        training_data._begin(tmp_path, {"seed": 1})


def test_real_images_are_written_to_the_end_by_the_next_call(place, tmp_path, monkeypatch):
    """A full disk, or a kill, in the middle of the real images: the list comes last."""
    data = open_data(place / "images", size=(16, 16))
    write, count = files.write_synced, iter(range(100))

    def fill_up(contents):
        if next(count) == 1:
            raise OSError(28, "No space left on device")
        write(contents)

    monkeypatch.setattr(files, "write_synced", fill_up)
    with pytest.raises(LimnerError, match=r"real cannot be written \(No space left on device\)"):
        training_data._write(data, tmp_path / "real", True)
    assert not (tmp_path / "real" / "metadata.jsonl").exists()
    training_data._write(data, tmp_path / "real", True)
    again = open_data(tmp_path / "real", size=(16, 16))
    assert np.array_equal(again.array, data.array)
