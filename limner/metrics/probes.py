"""Accuracy of labels predicted from features: by nearest neighbours, or by one linear layer.

Features are [N, D], labels [N] class indices, accuracies in [0, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Z95 = 1.959964  # standard deviations: half-width of a Gaussian's central 95%


def knn_accuracy(
    features: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor,
    k: int = 20, temperature: float = 0.07,
) -> float:  # fmt: skip
    """Accuracy on ``test`` [M, D] of the vote of its k nearest by cosine, weighted by exp(cosine / temperature).

    As in Wu 2018 (section 3.4) and Caron 2021.
    """
    features, classes = F.normalize(features.float()), int(labels.max()) + 1
    right = 0
    for part, truth in zip(F.normalize(test.float()).split(256), test_labels.split(256), strict=True):
        near = (part @ features.T).topk(min(k, len(features)), dim=1)  # [B, k]
        votes = part.new_zeros(len(part), classes)
        votes.scatter_add_(1, labels[near.indices], (near.values / temperature).exp())
        right += int((votes.argmax(1) == truth).sum())
    return right / len(test)


def probe_accuracy(
    features: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, decay: float = 1e-3, steps: int = 100
) -> float:
    """Accuracy on ``test`` of a linear layer trained on standardised ``features`` to convergence.

    L-BFGS minimises the mean cross entropy + ``decay`` |weight|^2.
    """
    # In float64, so that a constant feature becomes 0 rather than rounding error.
    mean, std = features.double().mean(0), features.double().std(0, correction=0).clamp(min=1e-6)
    x, y = ((part.double() - mean).div(std).float() for part in (features, test))
    weight = x.new_zeros(x.shape[1], int(labels.max()) + 1, requires_grad=True)
    bias = x.new_zeros(weight.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, labels) + decay * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        return float(((y @ weight + bias).argmax(1) == test_labels).double().mean())


def sample_per_class(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Indices of ``per_class`` random images of each class; all of a class that has fewer."""
    order = torch.randperm(len(labels), generator=generator)
    return torch.cat([order[labels[order] == c][:per_class] for c in labels.unique()])


def few_probe_accuracy(
    features: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor,
    per_class: int, draws: int = 5, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Mean and deviation over ``draws`` of ``probe_accuracy`` on ``per_class`` random images of each class."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [sample_per_class(labels, per_class, generator) for _ in range(draws)]
    accuracies = [probe_accuracy(features[rows], labels[rows], test, test_labels) for rows in chosen]
    drawn = torch.tensor(accuracies, dtype=torch.float64)
    return float(drawn.mean()), float(drawn.std())


def student(df: float) -> float:
    """The factor of a 95% interval with ``df`` degrees of freedom: the 0.975 quantile of Student's t.

    With t = sqrt(df) tan(a), the angle a has the density cos(a)^(df - 1), which is summed up here.
    """
    df = min(df, 1000.0)
    angle = (torch.arange(2**14, dtype=torch.float64) + 0.5) * (math.pi / 2**15)
    mass = ((df - 1) * angle.cos().log()).exp().cumsum(0)
    return math.sqrt(df) * math.tan(float(angle[torch.searchsorted(mass, 0.95 * mass[-1])]))


def wilson(share: float, n: float, factor: float = Z95) -> tuple[float, float]:
    """The 95% interval of a share that was counted over ``n`` cases (Wilson 1927); always within [0, 1].

    ``factor`` is the quantile that the interval reaches to, in standard errors.
    """
    z = factor * factor / n
    centre = (share + z / 2) / (1 + z)
    half = math.sqrt(z * (share * (1 - share) + z / 4)) / (1 + z)
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))  # against rounding
