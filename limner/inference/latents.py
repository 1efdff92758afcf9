"""Points of a latent: ways between them, directions along which images change, the point of an image.

A painter here is any function [B, D] -> [B, ...] that autograd can follow; points may also be [B, L, D].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["arc", "descend", "line", "loop", "plane", "principal", "strongest"]

Painter = Callable[[Tensor], Tensor]
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


# Ways ---------------------------------------------------------------------------------------------------


def line(one: Tensor, other: Tensor, shares: Tensor) -> Tensor:
    """Points [..., D] twice and shares [S] -> [S, ..., D], straight from the one to the other."""
    return torch.lerp(one, other, _beside(shares, one))


def arc(one: Tensor, other: Tensor, shares: Tensor) -> Tensor:
    """As ``line``, but along a great circle round the origin, the length changing evenly (Shoemake 1985).

    In many dimensions noise lies near a sphere: a straight way cuts through its empty inside (White 2016).
    Where the two lie on one line through the origin, the way is straight.
    """
    share = _beside(shares, one)
    here, there = one.norm(dim=-1, keepdim=True), other.norm(dim=-1, keepdim=True)
    cosine = (one * other).sum(-1, keepdim=True) / (here * there).clamp(min=1e-12)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin().clamp(min=1e-12)
    a, b = torch.sin((1 - share) * angle) / sine, torch.sin(share * angle) / sine
    length = torch.lerp(here, there, share)
    turned = length * (a * one / here.clamp(min=1e-12) + b * other / there.clamp(min=1e-12))
    straight = (sine < 1e-4) | (here * there < 1e-8)
    return torch.where(straight, line(one, other, shares), turned)


def loop(points: Tensor, frames: int, way: Way) -> Tensor:
    """[N, ..., D] -> [N * frames, ..., D]: from each point to the next, and from the last to the first."""
    shares = torch.arange(frames, device=points.device) / frames
    return torch.cat([way(*pair, shares) for pair in zip(points, points.roll(-1, 0), strict=True)])


def plane(corners: Tensor, side: int, way: Way) -> Tensor:
    """Four points [4, ..., D], two above and two below -> [side, side, ..., D] between them."""
    shares = torch.linspace(0, 1, side, device=corners.device)
    above, below = way(corners[0], corners[1], shares), way(corners[2], corners[3], shares)
    return way(above, below, shares)


def _beside(shares: Tensor, point: Tensor) -> Tensor:
    return shares.to(point).reshape(-1, *[1] * point.ndim)


# Directions ---------------------------------------------------------------------------------------------


def principal(points: Tensor, count: int) -> Tensor:
    """[N, D] -> [K, D] of length 1 along which the points vary most, K <= count (Harkonen 2020)."""
    found = torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh
    return _signed(found[: min(count, len(points) - 1)])


def strongest(
    paint: Painter,
    points: Tensor,
    count: int,
    step: float,
    passes: int = 4,
    watch: Callable[[float], None] | None = None,
) -> Tensor:
    """[K, D] of length 1 along which images change most at the points [P, D], K <= count.

    The eigenvectors of the mean of J^T J, J the painter's Jacobian (Wang and Ponce 2021), by subspace
    iteration: J v is a central difference over ``step`` each way, J^T u comes from autograd.
    """
    generator = torch.Generator().manual_seed(0)
    size = points.shape[-1]
    width = min(size, count + 4)  # a few more than are wanted make those converge sooner
    basis = torch.linalg.qr(torch.randn(size, width, generator=generator).to(points)).Q  # [D, K]
    seen = torch.zeros(width, width)
    for turn in range(passes):
        slopes, columns = [], []
        for i, v in enumerate(basis.T):
            with torch.no_grad():
                slope = (paint(points + step * v) - paint(points - step * v)) / (2 * step)  # [P, ...]
            at = points.clone().requires_grad_()
            columns.append(torch.autograd.grad(paint(at), at, slope)[0].mean(0))  # [D]
            slopes.append(slope.flatten())
            if watch:
                watch((turn + (i + 1) / width) / passes)
        seen = torch.stack(slopes) @ torch.stack(slopes).T  # [K, K]: J^T J inside the subspace
        if turn + 1 < passes:
            basis = torch.linalg.qr(torch.stack(columns, dim=1)).Q
    order = torch.linalg.eigh(seen).eigenvectors.flip(1)  # the greatest first
    return _signed((basis @ order).T[:count])


def _signed(directions: Tensor) -> Tensor:
    """An eigenvector's sign is an accident: the largest number becomes positive."""
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)


# The point of an image ----------------------------------------------------------------------------------


def descend(
    loss: Callable[[Tensor], Tensor],
    starts: Tensor,
    steps: int,
    rate: float,
    watch: Callable[[float], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The best points [B, ..., D] that Adam comes by, and their losses [B]; each start goes its own way.

    ``loss`` is [B, ..., D] -> [B]. The rate falls as a cosine to 0; a loss that is not finite is never best.
    """
    points = starts.clone().requires_grad_()
    adam = torch.optim.Adam([points], lr=rate)
    best = starts.clone()
    least = torch.full((len(starts),), math.inf, device=starts.device)
    for step in range(steps + 1):
        losses = loss(points)
        better = losses.detach() < least
        best[better], least[better] = points.detach()[better], losses.detach()[better].to(least)
        adam.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
        (points.grad,) = torch.autograd.grad(losses.sum(), points)
        adam.step()
        if watch:
            watch(step / max(steps, 1))
    return best, least
