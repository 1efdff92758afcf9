"""How well drawn images follow their prompts, with the floor and the ceiling of that figure."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import limner as package
from limner.core import LimnerError
from limner.evaluation import matches
from limner.evaluation.evaluate import evaluate
from limner.evaluation.options import EvaluateOptions
from limner.evaluation.results import Evaluation
from limner.evaluation.tables import evaluation_rows
from tests.helpers import train_beside
from tests.inference.test_texts import captioned

QUIET = {"samples": 0}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return captioned(tmp_path_factory.mktemp("source") / "images")


@pytest.fixture(scope="module")
def clip(source) -> Path:
    return train_beside(source, "clip", "960img")


@pytest.fixture(scope="module")
def flow(source) -> Path:
    return train_beside(source, "flow", "32img")


def test_a_run_is_measured_between_a_floor_and_a_ceiling(source, clip, flow, tmp_path):
    options = EvaluateOptions(n=24, features="random", matches=str(clip))
    result = evaluate(flow, [str(source)], options, to=tmp_path, quiet=True, steps=1)
    found = result.matches
    assert found.n == 24 and found.run
    assert found.ceiling.value > 70, "the comparer knows its own images"
    assert found.ceiling.low < found.ceiling.value < found.ceiling.high <= 100
    assert abs(found.score.value - found.floor.value) < 40, "one trained on 32 images draws what it wants"
    label, value, interval, real = next(
        row for row in evaluation_rows(result) if row[0].startswith("CLIP score")
    )
    assert (
        "24 drawn" in label and value == f"{found.score.value:.1f}" and real == f"{found.ceiling.value:.1f}"
    )
    assert interval == f"{found.score.low:.1f} to {found.score.high:.1f}"
    assert (
        Evaluation(of="", against=[], matches=found).to_json()["matches"]["floor"]["value"]
        == found.floor.value
    )


def test_the_floor_gives_every_image_another_prompt():
    order = matches.shuffled(50, seed=3)
    assert sorted(order.tolist()) == list(range(50)) and not (order == torch.arange(50)).any()


def test_the_interval_of_a_mean_is_students():
    mean = matches.mean_of(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    half = 3.182446 * math.sqrt(14 / 3) / 2
    assert mean.value == 3 and mean.low == pytest.approx(3 - half, rel=1e-3)


def test_what_cannot_be_compared_is_refused(source, clip, flow, tmp_path):
    options = EvaluateOptions(n=24, matches=str(flow))
    with pytest.raises(
        LimnerError, match="is a run of flow, which does not compare images with texts: use a run of"
    ):
        evaluate(flow, [str(source)], options, to=tmp_path, quiet=True)
    with pytest.raises(LimnerError, match=r"--matches .* is not a run"):
        evaluate(source, [str(source)], EvaluateOptions(matches=str(clip)), to=tmp_path, quiet=True)
    package.train("vae", source, tmp_path / "vae", preset="tiny", budget="16img", quiet=True, training=QUIET)
    with pytest.raises(LimnerError, match="the run follows no text: leave it out"):
        evaluate(
            tmp_path / "vae", [str(source)], EvaluateOptions(matches=str(clip)), to=tmp_path / "e", quiet=True
        )
