"""Measures by nearest neighbours: precision and recall, density and coverage, copies of training images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from limner.metrics.distances import PAIRS

TIE = 1e-10  # squared distances that differ by less, relative to the features' mean square, are equal


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


def overlap(real: Tensor, drawn: Tensor, k: int, density_k: int | None = None) -> Overlap:
    """Of real features [M, D] and drawn ones [N, D]; each pair is compared once, by its squared distance in float64.

    Balls reach to the ``k``th neighbour for precision and recall, to the ``density_k``th (default: k) for density and
    coverage, or to the last one where there are fewer. Distances that differ by rounding count as equal.
    """
    centre = real.mean(0, dtype=torch.float64)
    real, drawn = real.double() - centre, drawn.double() - centre
    tie = TIE * float(real.square().sum(1).mean())
    reach, ball = _squared_radii(real, (k, density_k or k))
    (drawn_reach,) = _squared_radii(drawn, (k,))
    precise, recalled = [], torch.zeros(len(real), dtype=torch.bool)
    within = torch.zeros(len(real), dtype=torch.int64)
    for part, own in zip(_parts(drawn, len(real)), _parts(drawn_reach, len(real)), strict=True):
        distance = _squared(part, real)
        precise.append((distance <= reach + tie).any(1))
        recalled |= (distance <= own[:, None] + tie).any(0)
        within += (distance < ball - tie).sum(0)
    precision, recall, coverage = (
        float(each.double().mean()) for each in (torch.cat(precise), recalled, within > 0)
    )
    return Overlap(precision, recall, float(within.sum()) / ((density_k or k) * len(drawn)), coverage)


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances [N, M] by one product of matrices, so not exactly 0 where points coincide."""
    return torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1)[:, None])


def _squared_radii(x: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """[N] for each of ``neighbours``: every point's squared distance to that neighbour, itself not counted."""
    last = min(max(neighbours), len(x) - 1) + 1
    nearest = torch.cat([_squared(part, x).topk(last, 1, largest=False).values for part in _parts(x, len(x))])
    return [nearest[:, min(k, last - 1)] for k in neighbours]


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3) -> tuple[float, float]:
    """See ``Overlap``."""
    found = overlap(real, drawn, k)
    return found.precision, found.recall


def density_coverage(real: Tensor, drawn: Tensor, k: int = 5) -> tuple[float, float]:
    """See ``Overlap``."""
    found = overlap(real, drawn, k)
    return found.density, found.coverage
