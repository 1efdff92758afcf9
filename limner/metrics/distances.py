"""Distances between two sets of features [N, D], in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from limner.metrics.probes import student, wilson

PAIRS = 2**20  # pairs of features that are compared at a time
ROUNDING = (
    1e-8  # of a Frechet distance, relative to the variances: square roots of eigenvalues that should be 0
)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D] -> mean [D] and covariance [D, D] with N - 1 below, in float64."""
    mean = features.mean(0, dtype=torch.float64)
    covariance = mean.new_zeros(len(mean), len(mean))
    for part in features.split(1024):
        centred = part.double() - mean
        covariance += centred.T @ centred
    return mean, covariance / (len(features) - 1)


def frechet(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians (Heusel 2017, eq. 6).

    tr (A B)^(1/2) is taken as that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: real eigenvalues only.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other_covariance.double() @ root).clamp(min=0).sqrt().sum()
    offset = (mean - other_mean).double()
    variance = covariance.trace() + other_covariance.trace()
    return _distance(offset, variance, cross)


def _distance(offset: Tensor, variance: Tensor, cross: Tensor) -> float:
    """What is within rounding of 0 is 0."""
    distance = float(offset @ offset + variance - 2 * cross)
    return distance if distance > ROUNDING * float(variance) else 0.0


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The Frechet distance between the Gaussians nearest to two sets of features [N, D] and [M, D].

    Where either set has fewer images than D, the covariances are not formed: tr (A B)^(1/2) is the sum of the singular
    values of X Y^T / sqrt((N - 1) (M - 1)), X and Y centred, and N x M takes less time than D x D.
    """
    if min(len(x), len(y)) >= x.shape[1]:
        return frechet(*moments(x), *moments(y))
    (x, mean), (y, other_mean) = (_centred(each) for each in (x, y))
    product = x @ y.T  # [N, M]
    gram = product @ product.T if len(x) < len(y) else product.T @ product
    cross = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
    offset, variance = mean - other_mean, x.square().sum() + y.square().sum()
    return _distance(offset, variance, cross)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Features without their mean, in float64, so that their squares sum to the variance; and the mean."""
    mean = x.mean(0, dtype=torch.float64)
    return (x.double() - mean) / math.sqrt(len(x) - 1), mean


def kernel_distance(x: Tensor, y: Tensor, equal: tuple[Tensor, Tensor] | None = None) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski 2018, eq. 4; Gretton 2012, eq. 3).

    Features [N, D] and [M, D]; may be a little below 0 for two samples of one distribution. ``equal`` are rows of
    x and of y [K] that are one image on both sides (see ``equal_pairs``): the estimate supposes that the samples are
    drawn apart, so these pairs are left out, as each point's pair with itself is within a set.
    """
    within = _mean_kernel(x) + _mean_kernel(y)
    total, count = _sum_kernel(x, y), len(x) * len(y)
    if equal is not None and 0 < len(equal[0]) < count:
        same = (x[equal[0]].double() * y[equal[1]].double()).sum(1) / x.shape[1] + 1
        total, count = total - float(same.pow(3).sum()), count - len(same)
    distance = within - 2 * total / count
    return distance if abs(distance) > 1e-12 * within else 0.0  # float64's rounding


def equal_pairs(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    """Rows [K] of x and of y that hold the same key; of several with one key each takes part in one pair.

    Keys are int64 [N] and [M], such as digests of images.
    """
    of = np.unique(np.concatenate([x, y]), return_inverse=True)[1]
    one, other = (_with_rank(part, len(of)) for part in (of[: len(x)], of[len(x) :]))
    _, in_x, in_y = np.intersect1d(one, other, assume_unique=True, return_indices=True)
    return torch.from_numpy(in_x), torch.from_numpy(in_y)


def _with_rank(numbers: np.ndarray, more: int) -> np.ndarray:
    """[N], all different: number * more + how many equal ones come before it."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    rank = np.empty(len(numbers), np.int64)
    rank[order] = np.arange(len(numbers)) - np.searchsorted(ordered, ordered)
    return numbers * more + rank


def _sum_kernel(x: Tensor, y: Tensor) -> float:
    """Of all pairs, in float64, in parts."""
    y = y.double().T.contiguous()
    parts = x.split(max(1, PAIRS // max(y.shape[1], 1)))
    return sum(float((part.double() @ y).div_(len(y)).add_(1).pow_(3).sum()) for part in parts)


def _mean_kernel(x: Tensor) -> float:
    """Over all pairs within a set, but those of a point with itself."""
    own = float((x.double().square().sum(1) / x.shape[1] + 1).pow_(3).sum())
    return (_sum_kernel(x, x) - own) / (len(x) * (len(x) - 1))


def variance(of_halves: Tensor, of_rest: Tensor, excess: float = 0.0) -> float:
    """Of a figure of a sample, from its values [R] on random halves and on what each of them leaves.

    A half and its rest are independent samples, and both vary about the mean of all halves: minus their covariance
    estimates the variance of that mean without bias, whatever the figure is (Wang and Lindsay 2014). The variance of
    the halves, the delete-half jackknife, is right where images act one by one. Where pairs of them act, as in a
    distance between samples of one distribution, it is three times too large: so the estimate, which is noisier,
    is kept between a third of the jackknife and all of it. ``excess`` is the share of the difference to the
    jackknife that is added.
    """
    mean = (of_halves.mean() + of_rest.mean()) / 2
    one, rest = of_halves - mean, of_rest - mean
    jackknife = float(one.square().sum() + rest.square().sum()) / (2 * len(one) - 1)
    shared = min(max(-float(one @ rest) / (len(one) - 0.5), jackknife / 3), jackknife)
    return shared + excess * (jackknife - shared)


def share_interval(share: float, variance: float, degrees: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share of this variance, which is known to ``degrees`` of freedom; within [0, 1].

    Wilson's, of as many independent images as would give the variance; of ``count`` for a share of 0 or 1.
    """
    same = share * (1 - share) / variance if variance > 0 else 0.0
    return wilson(share, same or count, student(degrees))


def disjoint(total: int, n: int, repeats: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """``repeats`` random choices of n of ``total`` indices, each with all the others."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(repeats):
        order = torch.randperm(total, generator=generator)
        yield order[:n], order[n:]
