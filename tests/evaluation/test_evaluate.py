"""Measuring runs and folders, and comparing families, through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.core import DataOptions, ImageSpec, LimnerError
from limner.data import Data, batches, open_data
from limner.evaluation.evaluate import evaluate
from limner.evaluation.fidelity import Samples, compute_features, measure_fidelity, nearest_pairs
from limner.evaluation.options import EvaluateOptions
from limner.evaluation.real import Real, as_saved, condition_like, open_real
from limner.evaluation.results import Fidelity
from limner.evaluation.tables import evaluation_rows
from limner.families.flow import Flow
from limner.metrics.features import random_vgg
from limner.pictures.grid import to_pil
from tests.helpers import paint

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
    assert found.memorised <= 0.1 and found.memorised_held_out <= 0.05
    assert found.precision.value > 0.8 and found.recall.value > 0.8
    assert found.n == len(half) and found.features == "random" and found.resize


def test_training_images_count_as_memorised(digits):
    images = torch.cat(list(batches(digits.training, 200)))
    copies = as_saved(images + 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)))
    samples = Samples(copies)
    assert fidelity(samples, digits).memorised > 0.95
    sheet, captions = nearest_pairs(samples, digits, compute_features(samples, digits, random_vgg()), 4)
    assert sheet.shape == (8, 1, 16, 16) and len(captions) == 8
    assert (sheet[0::2] - sheet[1::2]).abs().mean() < 0.05  # beside each copy its original


def test_noise_is_far_away(digits):
    noise = torch.rand(200, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = fidelity(Samples(noise), digits)
    assert found.kid.low > found.kid.floor
    assert found.frechet.value > 5 * found.frechet.floor
    assert found.recall.value < 0.1 and found.memorised == 0


def test_too_few_images_are_refused(digits):
    with pytest.raises(LimnerError, match="at least 20"):
        compute_features(Samples(torch.zeros(3, 1, 16, 16)), digits, random_vgg())


def test_a_folder_that_any_program_made(limner, tmp_path):
    pytest.importorskip("sklearn")
    data = open_data("digits", size=(16, 16), options=DataOptions(channels=1))
    made = write(tmp_path / "made", data.batch(np.arange(60)).image)
    done = limner("evaluate", made, "digits", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["n"] == 60 and report["memorised"] > 0.9
    for name in ("kid", "frechet", "precision", "recall", "density", "coverage"):
        assert report[name]["low"] <= report[name]["value"] <= report[name]["high"]
        assert np.isfinite(report[name]["floor"]) and report[name]["floor_n"] == 60
    out = tmp_path / "made-evaluation"
    assert json.loads((out / "evaluation.json").read_text())["n"] == 60
    assert Image.open(out / "nearest.png").size[0] > 16 and (out / "drawn.png").exists()
    said = limner("evaluate", made, "digits", cwd=tmp_path).stdout
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


def test_images_that_changed_since_the_training_are_reported(limner, tmp_path):
    folder = paint(tmp_path / "images", 60)
    limner("train", "vae", folder, "--out", tmp_path / "run", *TINY, "--budget", "32img")
    measured = ("evaluate", tmp_path / "run", folder, "--n", 20, "--json")
    assert "has changed since training" not in limner(*measured).stderr
    to_pil(torch.zeros(3, 16, 16)).save(folder / "one more.png")
    assert "has changed since training" in limner(*measured).stderr


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
