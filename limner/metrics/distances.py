"""Distances between two sets of features [N, D], in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D] -> mean [D] and covariance [D, D] with N - 1 below, in float64."""
    x = features.double()
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def frechet(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians (Heusel 2017, eq. 6).

    tr (A B)^(1/2) is taken as that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: real eigenvalues only.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other_covariance.double() @ root).clamp(min=0).sqrt().sum()
    offset = (mean - other_mean).double()
    return float(offset @ offset + covariance.trace() + other_covariance.trace() - 2 * cross)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The Frechet distance between the Gaussians nearest to two sets of features [N, D] and [M, D]."""
    return frechet(*moments(x), *moments(y))


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski 2018, eq. 4; Gretton 2012, eq. 3).

    Features [N, D] and [M, D]; may be a little below 0 for two samples of one distribution.
    """
    return _mean_kernel(x, x, own=True) + _mean_kernel(y, y, own=True) - 2 * _mean_kernel(x, y)


def _mean_kernel(x: Tensor, y: Tensor, own: bool = False) -> float:
    """Mean of the kernel over all pairs; with ``own``, pairs of a point with itself are left out."""
    x, y = x.double(), y.double()
    total = sum(float((part @ y.T / x.shape[1] + 1).pow_(3).sum()) for part in x.split(1024))
    if own:
        total -= float((x.square().sum(1) / x.shape[1] + 1).pow_(3).sum())
    return total / (len(x) * (len(y) - own))


def halves(n: int, repeats: int, seed: int = 0) -> Iterator[Tensor]:
    """``repeats`` random halves [n // 2] of n indices."""
    return (half for half, _ in disjoint(n, n // 2, repeats, seed))


def interval(value: float, of_halves: list[float], share: float = 0.95) -> tuple[float, float]:
    """Confidence interval (low, high) of a figure at level ``share``, from its values on random halves of the sample.

    The delete-half jackknife (Shao and Tu 1995, ch. 2): half of a sample, drawn without replacement, varies
    about the mean of all halves as the whole sample varies about the true value. A bootstrap with replacement
    would repeat images, which biases Frechet distances and neighbourhoods.
    """
    if len(of_halves) < 2:
        return value, value
    drawn = torch.tensor(of_halves, dtype=torch.float64)
    spread = drawn.std().item() * math.sqrt(2) * torch.erfinv(torch.tensor(share, dtype=torch.float64)).item()
    return value - spread, value + spread


def disjoint(total: int, n: int, repeats: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """``repeats`` random choices of n of ``total`` indices, each with all the others."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(repeats):
        order = torch.randperm(total, generator=generator)
        yield order[:n], order[n:]
