"""Upsampling, filtering and downsampling without aliasing, as in StyleGAN (Karras 2019; filter [1, 3, 3, 1])."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

SMALL = 64  # largest side in pixels of an image that a CPU filters by matrices


Padding = tuple[int, int, int, int]  # (left, right, top, bottom)


def kernel(taps: Sequence[float] = (1, 3, 3, 1), like: Tensor | None = None) -> Tensor:
    """[n, n], the separable filter with sum 1."""
    row = torch.tensor(taps, dtype=torch.float32) if like is None else like.new_tensor(taps)
    return torch.outer(row, row) / row.sum() ** 2


def upfirdn2d(
    x: Tensor, filter: Tensor, up: int = 1, down: int = 1, pad: Padding = (0, 0, 0, 0), gain: float = 1.0
) -> Tensor:
    """[B, C, H, W]: ``up`` - 1 zeros after each pixel, padding, convolution, every ``down``-th pixel."""
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
    return resample2d(x, filter, up=2, pad=(before, after, before, after), gain=4)


def downsample2d(x: Tensor, filter: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H/2, W/2]"""
    n = len(filter)
    before, after = (n - 1) // 2, (n - 2) // 2
    return resample2d(x, filter, down=2, pad=(before, after, before, after))


def resample2d(
    x: Tensor, filter: Tensor, up: int = 1, down: int = 1, pad: Padding = (0, 0, 0, 0), gain: float = 1.0
) -> Tensor:
    """``upfirdn2d`` for a filter that `kernel` gave, faster for small images on a CPU.

    There the backward pass of a depthwise convolution is slow; a matrix along each axis takes a fifth of the time,
    and its second derivatives are cheap.
    """
    if x.device.type != "cpu" or max(x.shape[2:]) > SMALL:
        return upfirdn2d(x, filter, up, down, pad, gain)
    taps = tuple(filter.sum(0).tolist())
    across = _matrix(x.shape[3], taps, up, down, pad[0], pad[1], gain**0.5).to(x.dtype)  # [W', W]
    along = _matrix(x.shape[2], taps, up, down, pad[2], pad[3], gain**0.5).to(x.dtype)  # [H', H]
    y = across @ x.permute(0, 2, 3, 1)  # [B, H, W', C]
    y = (along @ y.flatten(2)).unflatten(2, (len(across), -1))  # [B, H', W', C]
    return y.permute(0, 3, 1, 2)  # [B, C, H', W'], channels last


@lru_cache(maxsize=256)
def _matrix(
    length: int, taps: tuple[float, ...], up: int, down: int, before: int, after: int, gain: float
) -> Tensor:
    """[out, length]: upfirdn along one axis, as a matrix."""
    with torch.device("cpu"), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        pixels = torch.eye(length)[:, None]  # [length, 1, length]
        if up > 1:
            pixels = F.pad(pixels[..., None], (0, up - 1)).flatten(2)
        weight = gain * torch.tensor(taps).flip(0)[None, None]
        return F.conv1d(F.pad(pixels, (before, after)), weight, stride=down)[:, 0].T.contiguous()
