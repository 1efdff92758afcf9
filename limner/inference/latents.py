"""Points of a latent space: interpolation, directions along which images change, the point of an image.

``paint`` is any differentiable function [B, D] -> [B, ...]; points may also be [B, L, D], one for each layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from limner.inference.threads import THREADS
from limner.progress import Watch, ignore

Interpolate = Callable[[Tensor, Tensor, Tensor], Tensor]


def loop(points: Tensor, frames: int, interpolate: Interpolate) -> Tensor:
    """[N, ..., D] -> [N * frames, ..., D]: from each point to the next, and from the last to the first."""
    t = torch.arange(frames, device=points.device) / frames
    return torch.cat([interpolate(*pair, t) for pair in zip(points, points.roll(-1, 0), strict=True)])


def evenly(points: Tensor, frames: int, interpolate: Interpolate) -> Tensor:
    """[N, ..., D] -> [frames, ..., D]: round the points as ``loop`` goes, in equal shares of the way between them."""
    at = torch.arange(frames, device=points.device, dtype=torch.float64) * len(points) / frames  # [frames]
    legs = zip(points, points.roll(-1, 0), strict=True)
    return torch.cat([interpolate(*leg, at[at.floor() == i] - i) for i, leg in enumerate(legs)])


def plane(corners: Tensor, side: int, interpolate: Interpolate) -> Tensor:
    """Four points [4, ..., D], the upper two first -> [side, side, ..., D] between them."""
    t = torch.linspace(0, 1, side, device=corners.device)
    above, below = interpolate(corners[0], corners[1], t), interpolate(corners[2], corners[3], t)
    return interpolate(above, below, t)


def principal_directions(points: Tensor, count: int) -> Tensor:
    """[N, D] -> [K, D] of length 1 along which the points vary most, K <= count (Harkonen 2020)."""
    components = torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh
    return _signed(components[: min(count, len(points) - 1)])


def jacobian_directions(
    paint: Callable[[Tensor], Tensor], points: Tensor, count: int, step: float, passes: int = 4, watch: Watch = ignore,
) -> Tensor:  # fmt: skip
    """[K, D] of length 1 along which images change most at the points [P, D], K <= count.

    The eigenvectors of the mean of J^T J, J the Jacobian of ``paint`` (Wang and Ponce 2021), by subspace
    iteration: J v is a central difference over ``step`` each way, J^T u comes from autograd.
    """
    generator = torch.Generator().manual_seed(0)
    size = points.shape[-1]
    width = min(size, count + 4)  # a few extra vectors make the wanted ones converge sooner
    basis = torch.linalg.qr(torch.randn(size, width, generator=generator).to(points)).Q  # [D, K]
    gram = torch.zeros(width, width)
    for i in range(passes):
        slopes, columns = [], []
        for j, v in THREADS.each(enumerate(basis.T), "jacobian"):
            with torch.no_grad():
                slope = (paint(points + step * v) - paint(points - step * v)) / (2 * step)  # [P, ...]
            at = points.clone().requires_grad_()
            columns.append(torch.autograd.grad(paint(at), at, slope)[0].mean(0))  # [D]
            slopes.append(slope.flatten())
            watch((i + (j + 1) / width) / passes)
        gram = torch.stack(slopes) @ torch.stack(slopes).T  # [K, K]: J^T J inside the subspace
        if i + 1 < passes:
            basis = torch.linalg.qr(torch.stack(columns, dim=1)).Q
    order = torch.linalg.eigh(gram).eigenvectors.flip(1)  # the largest first
    return _signed((basis @ order).T[:count])


def _signed(directions: Tensor) -> Tensor:
    """With the largest coordinate positive, since the sign of an eigenvector is arbitrary."""
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)


def descend(
    loss: Callable[[Tensor], Tensor], starts: Tensor, steps: int, rate: float, watch: Watch = ignore
) -> tuple[Tensor, Tensor]:
    """The best points [B, ..., D] that Adam reaches from each start, and their losses [B].

    ``loss`` is [B, ..., D] -> [B]. The learning rate decays to 0 as a cosine; a loss that is not finite is never best.
    """
    points = starts.clone().requires_grad_()
    adam = torch.optim.Adam([points], lr=rate)
    best = starts.clone()
    least = torch.full((len(starts),), math.inf, device=starts.device)
    with THREADS.at_work(starts.device):
        for step in THREADS.each(range(steps + 1), "descend"):
            losses = loss(points)
            better = losses.detach() < least
            best[better], least[better] = points.detach()[better], losses.detach()[better].to(least)
            adam.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
            (points.grad,) = torch.autograd.grad(losses.sum(), points)
            adam.step()
            watch(step / max(steps, 1))
    return best, least
