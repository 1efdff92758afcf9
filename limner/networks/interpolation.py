"""From one point to another: along a line, or along a great circle."""

import torch
from torch import Tensor


def lerp(one: Tensor, other: Tensor, t: Tensor) -> Tensor:
    """Linear interpolation: points [..., D] twice and t [S] in [0, 1] -> [S, ..., D]."""
    return torch.lerp(one, other, _broadcast(t, one))


def slerp(one: Tensor, other: Tensor, t: Tensor) -> Tensor:
    """As ``lerp``, but along a great circle round the origin, with linearly changing length (Shoemake 1985).

    In many dimensions Gaussian noise lies near a sphere, so a straight line crosses a region without samples
    (White 2016). Points on one line through the origin are interpolated linearly.
    """
    t_ = _broadcast(t, one)
    here, there = (x.norm(dim=-1, keepdim=True) for x in (one, other))
    cosine = (one * other).sum(-1, keepdim=True) / (here * there).clamp(min=1e-12)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin().clamp(min=1e-12)
    a, b = torch.sin((1 - t_) * angle) / sine, torch.sin(t_ * angle) / sine
    length = torch.lerp(here, there, t_)
    arc = length * (a * one / here.clamp(min=1e-12) + b * other / there.clamp(min=1e-12))
    collinear = (sine < 1e-4) | (here * there < 1e-8)
    return torch.where(collinear, lerp(one, other, t), arc)


def _broadcast(t: Tensor, point: Tensor) -> Tensor:
    return t.to(point).reshape(-1, *[1] * point.ndim)
