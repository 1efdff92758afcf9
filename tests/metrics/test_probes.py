"""Probes of features: votes worked by hand, and a linear probe beside scikit-learn's."""

import math

import pytest
import torch

from limner.metrics.probes import few_probe_accuracy, knn_accuracy, probe_accuracy, sample_per_class, wilson


def clusters(n: int, classes: int, width: int, noise: float, seed: int = 0):
    """Points about random centres [n, width] and the class of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return centres[labels] + noise * torch.randn(n, width, generator=generator), labels


def at(*cosines: float) -> torch.Tensor:
    """Unit vectors [N, 2] at these cosines to (1, 0)."""
    return torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines])


def test_the_temperature_decides_a_vote():
    """One neighbour at 0.9 against two at 0.8: exp(0.1 / 0.07) = 4.2 outvotes two, exp(0.1 / 1) = 1.1 does not."""
    features, labels = at(0.9, 0.8, 0.8), torch.tensor([0, 1, 1])
    query, truth = torch.tensor([[3.0, 0.0]]), torch.tensor([0])  # its length does not matter
    assert knn_accuracy(features, labels, query, truth) == 1.0
    assert knn_accuracy(features, labels, query, truth, temperature=1.0) == 0.0
    assert knn_accuracy(features, labels, query, truth, k=1, temperature=1.0) == 1.0


def test_only_the_k_nearest_vote():
    features, labels = at(0.9, 0.89, *[0.88] * 30), torch.tensor([0, 0, *[1] * 30])
    query, truth = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert knn_accuracy(features, labels, query, truth, k=3) == 1.0
    assert knn_accuracy(features, labels, query, truth, k=20) == 0.0


def test_separable_classes_are_told_and_shuffled_labels_are_not():
    x, labels = clusters(600, 4, 16, 0.3)
    y, truth = clusters(300, 4, 16, 0.3, seed=1)
    shuffled = labels[torch.randperm(600, generator=torch.Generator().manual_seed(2))]
    for accuracy in (knn_accuracy, probe_accuracy):
        assert accuracy(x, labels, y, truth) == 1.0
        assert accuracy(x, shuffled, y, truth) < 0.5


@pytest.mark.parametrize("decay", [1e-3, 0.1])
def test_the_probe_is_logistic_regression_at_its_minimum(decay):
    """Few points and many features, where the decay decides how well it does."""
    linear = pytest.importorskip("sklearn.linear_model")
    x, labels = clusters(60, 5, 40, 3.0)
    y, truth = clusters(2000, 5, 40, 3.0, seed=1)
    mean, std = x.mean(0), x.std(0, correction=0)
    # Its objective is |w|^2 / 2 + C * the summed cross entropy.
    peer = linear.LogisticRegression(C=1 / (2 * decay * len(x)), max_iter=1000, tol=1e-8)
    peer.fit(((x - mean) / std).numpy(), labels.numpy())
    expected = peer.score(((y - mean) / std).numpy(), truth.numpy())
    assert 0.5 < expected < 0.9
    assert probe_accuracy(x, labels, y, truth, decay) == pytest.approx(expected, abs=2.5 / len(y))


def test_the_probe_takes_any_scale_and_features_that_never_vary():
    x, labels = clusters(400, 5, 12, 1.5)
    y, truth = clusters(400, 5, 12, 1.5, seed=1)
    plain = probe_accuracy(x, labels, y, truth)
    scales = torch.logspace(-3, 3, 12)
    x, y = x * scales + 100 * scales, y * scales + 100 * scales
    x, y = (torch.cat([part, torch.full((400, 3), 123.456)], 1) for part in (x, y))
    y[:, -1] += 5  # a unit that was silent in training is told nothing of
    assert probe_accuracy(x, labels, y, truth) == pytest.approx(plain, abs=0.01)


def test_features_of_inference_mode_can_be_probed():
    with torch.inference_mode():
        x, labels = clusters(60, 3, 8, 0.1)
    assert probe_accuracy(x, labels.clone(), x, labels) == 1.0


def test_few_labels():
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 2)
    rows = sample_per_class(labels, 5, torch.Generator().manual_seed(0))
    assert labels[rows].bincount().tolist() == [5, 5, 2] and len(set(rows.tolist())) == 12
    assert rows.tolist() != sample_per_class(labels, 5, torch.Generator().manual_seed(1)).tolist()

    x, labels = clusters(400, 5, 12, 1.5)
    y, truth = clusters(400, 5, 12, 1.5, seed=1)
    mean, spread = few_probe_accuracy(x, labels, y, truth, 3)
    assert 0.2 < mean < probe_accuracy(x, labels, y, truth) and 0 < spread < 0.2
    assert (mean, spread) == few_probe_accuracy(x, labels, y, truth, 3)
    all_of_them, none = few_probe_accuracy(x, labels, y, truth, 80)
    assert all_of_them == pytest.approx(probe_accuracy(x, labels, y, truth), abs=0.005) and none < 0.005


def test_wilson():
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # of its 1927 formula, by hand
    assert wilson(0.0, 10)[0] == 0.0 and 0.2 < wilson(0.0, 10)[1] < 0.3
    assert wilson(1.0, 10)[1] == pytest.approx(1.0) and wilson(1.0, 10)[1] <= 1.0
    low, high = wilson(0.5, 10_000)
    assert high - low == pytest.approx(2 * 1.96 * 0.005, rel=1e-3)
