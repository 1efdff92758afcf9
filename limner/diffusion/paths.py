"""The straight path from noise to data (Lipman 2023; Liu 2023): data at t = 1, noise at t = 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def like(t: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] with as many axes as x."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = t data + (1 - t) noise, for times t [B]."""
    t = like(t, data)
    return t * data + (1 - t) * noise


def velocity(data: Tensor, x_t: Tensor, t: Tensor, nearest: float = 0.0) -> Tensor:
    """v = (data - x_t) / (1 - t), which is data - noise; 1 - t is taken as at least ``nearest``."""
    return (data - x_t) / (1 - like(t, x_t)).clamp(min=nearest)


def data(velocity: Tensor, x_t: Tensor, t: Tensor, nearest: float = 0.0) -> Tensor:
    """The inverse of `velocity`: x_t + (1 - t) v."""
    return x_t + (1 - like(t, x_t)).clamp(min=nearest) * velocity


def evenly(n: int, device: torch.device | str = "cpu") -> Tensor:
    """[n] numbers in (0, 1), one at random from each nth part, in random order (after Kingma 2021, app. I.1).

    Each is uniform, but a batch of them covers the whole range, so a loss over them varies less.
    """
    part = torch.randperm(n, device=device) + torch.rand(n, device=device)
    return (part / n).clamp(1e-6, 1 - 1e-6)


def logit_normal(uniform: Tensor, mean: float, std: float) -> Tensor:
    """Uniform numbers in (0, 1) -> times sigmoid(z), z ~ N(mean, std^2) (Esser 2024, eq. 19)."""
    return torch.sigmoid(mean + std * math.sqrt(2) * torch.erfinv(2 * uniform - 1))
