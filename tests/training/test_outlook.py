"""What a budget will give is said before the first step, by injected rates and through whole trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from limner import config, families
from limner.config import parse_budget
from limner.data import open_data
from limner.distributed import ALONE
from limner.families import _by_images as by_images
from limner.training.loop import Loop
from limner.training.outlook import ENOUGH, FEW, Outlook, other_size, too_short
from limner.training.trial import rate_at
from tests.helpers import paint


def outlook(budget: str, rate: float, size: tuple[int, int] = (64, 64), **changes: Any) -> Outlook:
    return Outlook(parse_budget(budget, 4_000), budget, rate, 32, 4_000, size, **changes)


def said(o: Outlook, there: float) -> tuple[str, list[tuple[int, int]]]:
    """The sentence on another size, whose rate is ``there``, and the sizes that were tried."""
    tried: list[tuple[int, int]] = []

    def rate_at(size: tuple[int, int]) -> float:
        tried.append(size)
        return there

    return other_size(o, rate_at), tried


def test_half_the_size_is_named_where_a_budget_sees_few_images() -> None:
    sentence, tried = said(outlook("2m", 50), 150)
    assert tried == [(32, 32)]
    assert sentence == (
        "In 2m about 6,000 images will be seen, 1.5 passes: at 64 that gives shapes without detail. Take --size 32, "
        "which sees about 18,000, or --budget 6m."
    )
    assert "Take --size 32x64" in said(outlook("2m", 50, (64, 128)), 150)[0]


@pytest.mark.parametrize(
    "o",
    [
        outlook("6kimg", 50),  # as many images at any size
        outlook("2m", 50, (40, 64)),  # half of it would be smaller than any that was compared
        outlook("2m", 1.01 * FEW / 120),
        outlook("10m", 200, own=(100, 200)),  # not twice as large
    ],
    ids=["images", "small", "enough", "own"],
)
def test_no_other_size_is_tried_without_need(o: Outlook) -> None:
    assert said(o, 1e6) == ("", [])


def test_a_size_that_gains_nothing_is_not_named() -> None:
    assert said(outlook("2m", 50), 60) == ("", [(32, 32)])
    assert said(outlook("2m", 50), 0) == ("", [(32, 32)])  # a family that does not take it


def test_twice_the_size_is_named_where_the_images_have_it_and_the_budget_suffices() -> None:
    large = outlook("20m", 150, (32, 32), own=(72, 72))
    assert said(large, 50) == (
        "The images are larger than 32: --size 64 sees about 60,000 in 20m, which is enough for it.",
        [(64, 64)],
    )
    assert said(large, ENOUGH / 1_300) == ("", [(64, 64)])


def test_a_run_that_goes_on_counts_what_it_has_seen() -> None:
    o = outlook("10m", 20, seen=14_000, seconds=570)
    assert o.reached(o.rate) == 14_600 and not too_short(o)
    assert too_short(outlook("10m", 20, seen=1_000, seconds=570)).startswith(
        "The budget of 10m ends after about 1,600 of 4,000 images, before each was seen once."
    )


def test_what_follows_the_images_follows_another_size_and_a_persons_own_choice_stays() -> None:
    large, small = by_images.Images(64, 64, 100), by_images.Images(32, 32, 100)
    default = config.preset_run("flow", "small").model
    settled = by_images.settle(default, large)
    assert by_images.resettle(settled, large, small) == by_images.settle(default, small) != settled
    own = replace(settled, widths=(8, 16))
    assert by_images.resettle(own, large, small) == own


@pytest.mark.parametrize("family", ["flow", "dit", "dcgan", "drifting"])
def test_a_trial_at_another_size_changes_nothing(tmp_path: Path, family: str) -> None:
    """The smaller network sees more images; the weights and the random draws of the training stay."""
    data = open_data(paint(tmp_path / "pictures", 24, (64, 64)), size=(64, 64), progress=False)
    run = config.preset_run(family, "tiny")
    images = by_images.Images(64, 64, len(data))
    run = replace(run, model=by_images.settle(run.model, images))
    loop = Loop(run, families.build(family, run.model, data.spec), data, torch.device("cpu"), ALONE)
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    state, here = torch.get_rng_state(), run.training.batch / loop.estimate_cost()[0]
    torch.set_rng_state(state)
    assert rate_at(loop, (16, 16)) > here
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())


def test_a_size_that_a_family_does_not_take_has_no_rate(tmp_path: Path) -> None:
    data = open_data(paint(tmp_path / "pictures", 24, (64, 64)), size=(64, 64), progress=False)
    run = config.preset_run("mae", "tiny")
    loop = Loop(run, families.build("mae", run.model, data.spec), data, torch.device("cpu"), ALONE)
    assert rate_at(loop, (37, 37)) == 0  # which patches do not divide


@pytest.mark.process
def test_a_training_names_the_size_that_suits_its_budget(tmp_path: Path, limner: Any) -> None:
    pictures = paint(tmp_path / "pictures", 60, (64, 64))
    run = "--preset", "tiny", "--budget", "2s", "--training.samples", "0"
    done = limner("train", "flow", pictures, "--out", tmp_path / "run", *run)
    told = " ".join(done.stderr.split())
    assert "In 2s about" in told and "Take --size 32, which sees about" in told
    again = limner("train", "flow", pictures, "--out", tmp_path / "run", *run, "--resume", "--budget", "3s")
    assert "Take --size" not in again.stderr  # a run keeps its size
