"""Measures by nearest neighbours: precision and recall, density and coverage, copies of training images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from limner.metrics.distances import PAIRS


def distances(x: Tensor, y: Tensor) -> Tensor:
    """[N, D], [M, D] -> Euclidean distances [N, M], exact where points coincide."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _parts(x: Tensor, others: int) -> Iterator[Tensor]:
    """x [N, D] in parts, so that few distances to ``others`` points are held at a time."""
    yield from x.split(max(1, PAIRS // max(others, 1)))


def radii(x: Tensor, k: int) -> Tensor:
    """[N]: each point's distance to its kth neighbour, itself not counted."""
    return torch.cat([distances(part, x).kthvalue(k + 1, dim=1).values for part in _parts(x, len(x))])


def inside(points: Tensor, others: Tensor, reach: Tensor) -> Tensor:
    """[N] bool: points inside the ball of any of ``others`` [M, D], whose radii are ``reach`` [M]."""
    parts = _parts(points, len(others))
    return torch.cat([(distances(part, others) <= reach).any(1) for part in parts])


@dataclass(frozen=True)
class Overlap:
    """How the manifolds of two sets overlap: unions of balls around their points, each to the kth neighbour."""

    precision: float  # share of drawn points inside the real manifold (Kynkaanniemi 2019)
    recall: float  # share of real points inside the drawn manifold
    density: float  # mean number of real balls around a drawn point, over k (Naeem 2020)
    coverage: float  # share of real balls that hold a drawn point


def overlap(real: Tensor, drawn: Tensor, k: int) -> Overlap:
    """Of real features [M, D] and drawn ones [N, D]; each pair is compared once."""
    reach, drawn_reach = radii(real, k), radii(drawn, k)
    precise, recalled = [], torch.zeros(len(real), dtype=torch.bool)
    within = torch.zeros(len(real), dtype=torch.float64)
    for part, own in zip(_parts(drawn, len(real)), _parts(drawn_reach, len(real)), strict=True):
        distance = distances(part, real)
        precise.append((distance <= reach).any(1))
        recalled |= (distance <= own[:, None]).any(0)
        within += (distance < reach).sum(0)
    precision, recall, coverage = (
        float(each.double().mean()) for each in (torch.cat(precise), recalled, within > 0)
    )
    return Overlap(precision, recall, float(within.sum() / (k * len(drawn))), coverage)


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3) -> tuple[float, float]:
    """See ``Overlap``."""
    found = overlap(real, drawn, k)
    return found.precision, found.recall


def density_coverage(real: Tensor, drawn: Tensor, k: int = 5) -> tuple[float, float]:
    """See ``Overlap``."""
    found = overlap(real, drawn, k)
    return found.density, found.coverage
