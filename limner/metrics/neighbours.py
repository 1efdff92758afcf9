"""Measures by nearest neighbours: precision and recall, density and coverage, copies of training images."""

from __future__ import annotations

import torch
from torch import Tensor


def distances(x: Tensor, y: Tensor) -> Tensor:
    """[N, D], [M, D] -> Euclidean distances [N, M], exact where points coincide."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def radii(x: Tensor, k: int) -> Tensor:
    """[N]: each point's distance to its kth neighbour, itself not counted."""
    return torch.cat([distances(part, x).kthvalue(k + 1, dim=1).values for part in x.split(1024)])


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of drawn features inside the real manifold, and of real inside the drawn (Kynkaanniemi 2019).

    A manifold is the union of balls around the points [N, D]; a radius is the distance to the kth neighbour.
    """
    pairs = (drawn, real), (real, drawn)
    precision, recall = (float(inside(x, y, radii(y, k)).double().mean()) for x, y in pairs)
    return precision, recall


def inside(points: Tensor, others: Tensor, reach: Tensor) -> Tensor:
    """[N] bool: points inside the ball of any of ``others`` [M, D], whose radii are ``reach`` [M]."""
    return torch.cat([(distances(part, others) <= reach).any(1) for part in points.split(1024)])


def density_coverage(real: Tensor, drawn: Tensor, k: int = 5) -> tuple[float, float]:
    """Mean number of real balls around a drawn point, over k; share of real balls that hold one (Naeem 2020)."""
    reach = radii(real, k)
    counts = [(distances(part, real) < reach).sum(0) for part in drawn.split(1024)]
    within = torch.stack(counts).sum(0).double()
    return float(within.sum() / (k * len(drawn))), float((within > 0).double().mean())


def nearest_distances(x: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
    """Of each point, the distance to the nearest of ``to`` [N], and its index [N]."""
    least = [distances(part, to).min(1) for part in x.split(256)]
    return torch.cat([m.values for m in least]), torch.cat([m.indices for m in least])


def memorised(drawn: Tensor, training: Tensor, held_out: Tensor, share: float = 0.05) -> Tensor:
    """[N] bool: drawn features nearer to a training image than all but ``share`` of the held-out real ones are."""
    return copies(drawn, training, usual_distance(training, held_out, share))


def usual_distance(training: Tensor, held_out: Tensor, share: float = 0.05) -> Tensor:
    """[]: the distance to the nearest training image that all but ``share`` of held-out features exceed."""
    return nearest_distances(held_out, training)[0].quantile(share, interpolation="lower")


def copies(drawn: Tensor, training: Tensor, usual: Tensor) -> Tensor:
    """[N] bool: drawn features nearer to a training image than ``usual``."""
    distance = nearest_distances(drawn, training)[0]
    # Where the data itself holds duplicates, the usual distance is 0: only exact copies count.
    return (distance < usual) | ((distance == 0) & (usual == 0))
