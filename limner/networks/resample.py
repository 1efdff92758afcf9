"""Up, filter, down: how StyleGAN resizes without aliasing (Karras 2019; the filter [1, 3, 3, 1])."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BINOMIAL = (1, 3, 3, 1)


def kernel(taps: Sequence[float] = BINOMIAL, like: Tensor | None = None) -> Tensor:
    """[n, n], the separable filter with sum 1."""
    row = torch.tensor(taps, dtype=torch.float32 if like is None else like.dtype)
    row = row if like is None else row.to(like.device)
    return torch.outer(row, row) / row.sum() ** 2


def upfirdn2d(
    x: Tensor,
    filter: Tensor,
    up: int = 1,
    down: int = 1,
    pad: tuple[int, int, int, int] = (0, 0, 0, 0),
    gain: float = 1.0,
) -> Tensor:
    """[B, C, H, W]: ``up`` - 1 zeros after each pixel, padding, convolution, every ``down``-th pixel kept.

    ``pad`` is (left, right, top, bottom).
    """
    size, channels, height, width = x.shape
    if up > 1:
        x = F.pad(x[:, :, :, None, :, None], (0, up - 1, 0, 0, 0, up - 1))
        x = x.reshape(size, channels, height * up, width * up)
    x = F.pad(x, pad)
    weight = (filter * gain).flip(0, 1)[None, None].expand(channels, 1, -1, -1).to(x.dtype)
    return F.conv2d(x, weight, stride=down, groups=channels)


def upsample2d(x: Tensor, filter: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W]"""
    n = len(filter)
    before, after = (n + 1) // 2, (n - 2) // 2
    return upfirdn2d(x, filter, up=2, pad=(before, after, before, after), gain=4)


def downsample2d(x: Tensor, filter: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H/2, W/2]"""
    n = len(filter)
    before, after = (n - 1) // 2, (n - 2) // 2
    return upfirdn2d(x, filter, down=2, pad=(before, after, before, after))


def filter2d(x: Tensor, filter: Tensor) -> Tensor:
    """[B, C, H, W] -> the same size."""
    n = len(filter)
    return upfirdn2d(x, filter, pad=(n // 2, (n - 1) // 2, n // 2, (n - 1) // 2))
