"""How near pictures that a run makes of given ones are to the true ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import limner as package
from limner import families
from limner.core import ImageSpec
from limner.data.dataset import Data
from limner.data.given import joined
from limner.evaluation.evaluate import evaluate
from limner.evaluation.options import EvaluateOptions
from limner.evaluation.tables import translation_heads, translation_rows
from limner.evaluation.translation import compare, target
from limner.families.cyclegan import CycleGANSampling
from limner.metrics import pixels
from tests.helpers import golden, paint


def test_psnr_on_y_equals_the_golden():
    inputs, expected = golden("psnr_y")
    a, b = (inputs[name][None] / 127.5 - 1 for name in ("image", "other"))
    crop = (..., *[slice(int(inputs["crop"]), -int(inputs["crop"]))] * 2)
    y, other = pixels.luma(a), pixels.luma(b)
    found = {
        "psnr_rgb": pixels.psnr(a, b), "psnr_rgb_cropped": pixels.psnr(a[crop], b[crop]),
        "psnr_y_cropped": pixels.psnr(y[crop], other[crop], 255.0),
    }  # fmt: skip
    for name, value in found.items():
        assert float(value[0]) == pytest.approx(expected[name], rel=1e-9), name
    measured = compare(a, b, 2, "random")
    assert measured.psnr.value == pytest.approx(expected["psnr_rgb"], rel=1e-6)
    assert measured.psnr_y and measured.psnr_y.value == pytest.approx(expected["psnr_y_cropped"], rel=1e-6)


def test_backward_results_should_be_like_those_of_the_first_domain():
    spec, rows, names = ImageSpec(3, 8, 8), np.arange(2), ["a", "b"]
    one, other = (
        Data(spec, name, np.zeros((2, 8, 8, 3), np.uint8), rows, names) for name in ("one", "other")
    )
    domains = joined(other, one, paired=False)
    assert (
        target(domains, CycleGANSampling("backward")) is one
        and target(domains, CycleGANSampling()) is domains
    )


def test_equal_pictures_and_grey_ones():
    x = torch.rand(3, 1, 24, 24) * 2 - 1
    same = compare(x, x, 1, "random")
    assert same.psnr.value == 100 and same.perceptual.value == pytest.approx(0, abs=1e-5)
    assert same.ssim and same.ssim.value == pytest.approx(1) and same.psnr_y is same.ssim_y is None
    alone = compare(x[:1], -x[:1], 1, "random")
    assert alone.psnr.low == alone.psnr.value == alone.psnr.high
    noisy = compare((x + 0.2 * torch.randn_like(x)).clamp(-1, 1), x, 1, "random")
    assert noisy.psnr.low < noisy.psnr.value < 30 and noisy.perceptual.value > 0.01


def test_rgba_is_compared_over_white_and_alpha_by_itself():
    true = torch.full((2, 4, 16, 16), -1.0)  # transparent, so white to the eye
    made = true.clone()
    made[:, 3] = 1.0  # opaque black
    found = compare(made, true, 1, "random")
    assert found.psnr.value == 0 and found.psnr_alpha and found.psnr_alpha.value == 0
    white = torch.ones(2, 4, 16, 16)
    found = compare(white, true, 1, "random")
    assert found.psnr.value == 100 and found.ssim and found.ssim.value == pytest.approx(1)
    assert found.psnr_alpha and found.psnr_alpha.value == 0 == found.perceptual.value
    assert compare(made[:, :3], made[:, :3], 1, "random").psnr_alpha is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """A run of the toy family that doubles pictures, made of 80 of 24 x 24."""
    home, toy = tmp_path_factory.mktemp("translation"), str(Path(__file__).parents[1] / "toy")
    images = paint(home / "images", 80, (24, 24))
    families.__path__.append(toy)
    try:
        settings = {"samples": 0, "precision": "float32"}
        package.train("restorer", images, home / "run", preset="tiny", budget="800img", size=24, quiet=True,
                      training=settings, data={"holdout": 0.3})  # fmt: skip
        yield home
    finally:
        families.__path__.remove(toy)


def test_figures_stand_beside_those_of_bicubic(run: Path, tmp_path: Path):
    result = evaluate(
        run / "run", [str(run / "images")], EvaluateOptions(features="random"), to=tmp_path, quiet=True
    )
    found = result.translation
    assert found and (found.n, found.scale, found.beside) == (24, 2, "bicubic") and result.fidelity is None
    assert found.result and found.given and found.given.psnr.value > 20  # smooth pictures
    assert found.given.psnr_y.value > found.given.psnr.value
    assert found.kid and found.kid_given and found.kid.floor == found.kid_given.floor
    stored = json.loads((tmp_path / "evaluation.json").read_text())["translation"]
    assert stored["given"]["psnr"]["value"] == found.given.psnr.value and stored["network"] == found.network
    sheet = np.asarray(Image.open(tmp_path / "translated.png"))
    assert sheet.shape[0] > sheet.shape[1]  # rows of three
    heads, rows = translation_heads(found), translation_rows(found)
    assert heads[3] == "bicubic" and all(len(row) == len(heads) for row in rows) and len(rows) == 7
    again = evaluate(
        run / "run", [str(run / "images")], EvaluateOptions(features="random"), to=tmp_path, quiet=True
    )
    assert again.translation == found


def test_the_given_pictures_are_those_that_the_model_degrades(run: Path):
    """Bicubic of twice averaged pixels, by hand."""
    from limner.evaluation.real import as_saved, open_whole
    from limner.evaluation.translation import translate_rows
    from limner.inference.pipeline import Pipeline
    from limner.networks.images.bicubic import bicubic_to

    pipeline = Pipeline(run / "run")
    real = open_whole([str(run / "images")], pipeline.spec, pipeline.loaded.run.data, False)
    rows = np.arange(3)
    shown = translate_rows(pipeline.model, real.held_out, rows, pipeline.sampling({}))
    truth = real.held_out.batch(rows).image
    assert shown.true is not None and torch.allclose(shown.true, truth, atol=1e-6)
    by_hand = as_saved(bicubic_to(as_saved(torch.nn.functional.avg_pool2d(truth, 2)), (24, 24)))
    assert float((shown.given - by_hand).abs().max()) < 1e-6
    assert shown.result.shape == truth.shape
