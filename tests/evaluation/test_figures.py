"""What the figures' floors and intervals say of generators whose truth is known."""

import numpy as np
import pytest
import torch

from limner.evaluation import figures
from limner.evaluation.figures import Described
from limner.metrics import distances
from limner.settings import LimnerError

NAMES = {"kid", "frechet", "precision", "recall", "density", "coverage"}


def described(n, seed, scale=1.0, d=8):
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale
    return Described(features, np.arange(n) + 10_000 * seed)


def measure(drawn, real, **options):
    return figures.measure(drawn, real, lambda share: None, **options)


def trials(n, real, count, scale=1.0):
    return [measure(described(n, 2 * i + 1, scale), described(real, 2 * i + 2)) for i in range(count)]


def test_value_and_floor_compare_as_many_images():
    assert figures.sizes(300, 300) == (150, 150)
    assert figures.sizes(1000, 1797) == (898, 899)
    assert figures.sizes(200, 600) == (200, 400)
    assert figures.sizes(5000, 20_000) == (5000, 10_000)
    assert figures.sizes(20, 20_000) == (20, 2000)
    assert figures.sizes(20, 20) == (10, 10)


@pytest.mark.parametrize("n, real", [(60, 60), (60, 150)])
def test_a_perfect_generator_is_on_both_sides_of_the_floor(n, real):
    found = trials(n, real, 40)
    assert set(found[0]) == NAMES
    for name in NAMES:
        below = np.mean([each[name].value < each[name].floor for each in found])
        assert 0.2 <= below <= 0.8, name
        middle = np.mean([each[name].value - each[name].floor for each in found])
        spread = np.std([each[name].value for each in found])
        assert abs(middle) < 0.6 * spread, name


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_intervals_hold_the_truth_and_little_more(scale):
    found = trials(80, 240, 40, scale)
    for name in NAMES:
        values = np.array([each[name].value for each in found])
        low, high = (np.array([getattr(each[name], side) for each in found]) for side in ("low", "high"))
        assert np.mean((low <= values.mean()) & (values.mean() <= high)) >= 0.85, name
        assert (low <= values).all() and (values <= high).all(), name
        widest = 4 if name in figures.K else 3  # of its deviations on either side; a jackknife has 4 to 7
        assert np.mean(high - low) < 2 * widest * values.std(), name
        if name in figures.SHARES:
            assert (low >= 0).all() and (high <= 1).all(), name


def test_floors_are_what_real_images_score_at_the_values_size():
    found = measure(described(60, 1, 3.0), described(200, 2))
    real = described(200, 2)
    splits = list(distances.disjoint(200, 60, 20))
    usual = np.mean([distances.frechet_distance(real.features[i], real.features[j]) for i, j in splits])
    assert found["frechet"].floor == pytest.approx(usual, rel=0.15)
    assert all(figure.floor_n == 60 for figure in found.values())


def test_neighbours_are_those_of_the_papers_or_as_many_as_asked_for():
    drawn, real = described(60, 1), described(200, 2)
    found, five = measure(drawn, real), measure(drawn, real, k=5)
    assert [found[name].k for name in ("precision", "recall", "density", "coverage", "kid")] == [
        3,
        3,
        5,
        5,
        None,
    ]
    assert {five[name].k for name in figures.K} == {5}
    assert found["precision"].value < five["precision"].value and found["density"] == five["density"]
    with pytest.raises(
        LimnerError, match="--k 60 needs more than 60 images on both sides, but 60 are compared"
    ):
        measure(drawn, real, k=60)


def test_equal_sets_are_0_apart_in_any_order():
    real = described(60, 1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    found = measure(real[order], real)
    assert found["kid"].value == found["frechet"].value == 0 < found["frechet"].high
    assert found["precision"].value == found["recall"].value == 1 > found["precision"].low
