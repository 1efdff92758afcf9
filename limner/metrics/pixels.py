"""Measures on the pixels themselves: of pairs (PSNR, SSIM), and of sets (sliced Wasserstein distance)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from limner.settings import LimnerError


def psnr(x: Tensor, y: Tensor, span: float = 2.0) -> Tensor:
    """[B, C, H, W] twice -> peak signal-to-noise ratio [B] in dB; ``span`` is the range of values."""
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(span**2 / error)


def _similarity(x: Tensor, y: Tensor, span: float) -> tuple[Tensor, Tensor]:
    """Mean SSIM [B], and mean of its contrast and structure alone [B]."""
    channels = x.shape[1]
    offset = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-0.5 * (offset / 1.5) ** 2)
    weight = (window / window.sum()).to(x.device).expand(channels, 1, -1)

    def blur(z: Tensor) -> Tensor:  # only where the whole window lies inside
        z = F.conv2d(z, weight[:, :, :, None], groups=channels)
        return F.conv2d(z, weight[:, :, None, :], groups=channels)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    whole = structure * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return whole.flatten(1).mean(1), structure.flatten(1).mean(1)


def ssim(x: Tensor, y: Tensor, span: float = 2.0) -> Tensor:
    """[B, C, H, W] twice -> structural similarity [B] (Wang 2004): Gaussian window of 11, sigma 1.5.

    Raises LimnerError below 11 pixels a side.
    """
    if min(x.shape[-2:]) < 11:
        raise LimnerError(f"SSIM needs images of 11 pixels a side, not {x.shape[-2]}x{x.shape[-1]}.")
    return _similarity(x.double(), y.double(), span)[0]


MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ms_ssim(x: Tensor, y: Tensor, span: float = 2.0) -> Tensor:
    """As ``ssim``, over five scales that halve (Wang 2003), or fewer where a side would be under 11 pixels.

    The weights of fewer scales are normalised to sum to 1. Raises LimnerError below 11 pixels a side.
    """
    x, y = x.double(), y.double()
    scales = min(len(MS_WEIGHTS), math.floor(math.log2(min(x.shape[-2:]) / 11)) + 1)
    if scales < 1:
        raise LimnerError(f"MS-SSIM needs images of 11 pixels a side, not {x.shape[-2]}x{x.shape[-1]}.")
    total = sum(MS_WEIGHTS[:scales])
    product = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale in range(scales):
        whole, structure = _similarity(x, y, span)
        last = scale + 1 == scales
        product = product * (whole if last else structure).clamp(min=0) ** (MS_WEIGHTS[scale] / total)
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product


def pyramid(images: Tensor, least: int) -> list[Tensor]:
    """Laplacian pyramid, finest first, down to ``least`` pixels a side (Burt and Adelson 1983)."""
    channels = images.shape[1]
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16
    kernel = (line[:, None] * line).expand(channels, 1, 5, 5)

    def smooth(x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)

    levels, now = [], images
    while min(now.shape[-2:]) // 2 >= least:
        down, up = smooth(now, kernel)[:, :, ::2, ::2], torch.zeros_like(now)
        up[:, :, ::2, ::2] = down
        levels.append(now - smooth(up, 4 * kernel))
        now = down
    return [*levels, now]


def _patches(level: Tensor, count: int, side: int, generator: torch.Generator) -> Tensor:
    """[B, C, H, W] -> [B count, C side side], from random places, normalised by channel over all of them."""
    height, width = level.shape[-2:]
    cut = []
    for image in level:
        tops = torch.randint(height - side + 1, (count,), generator=generator)
        lefts = torch.randint(width - side + 1, (count,), generator=generator)
        rows, columns = (start[:, None] + torch.arange(side) for start in (tops, lefts))  # [count, side]
        cut.append(image[:, rows[:, :, None], columns[:, None, :]].movedim(0, 1))  # [count, C, side, side]
    patches = torch.cat(cut)
    patches = patches - patches.mean((0, 2, 3), keepdim=True)
    return (patches / patches.std((0, 2, 3), keepdim=True).clamp(min=1e-8)).flatten(1)


def sliced_wasserstein(
    x: Tensor, y: Tensor,
    patches: int = 64, directions: int = 256, side: int = 7, least: int = 16, seed: int = 0,
) -> dict[int, float]:  # fmt: skip
    """Sliced Wasserstein distance x1000 between the patches of two sets [N, C, H, W], by the level's height.

    After Karras 2018, section 5: 7x7 patches of each level of a Laplacian pyramid, normalised by channel. Both sets
    are cut to the length of the smaller.
    """
    n = min(len(x), len(y))
    by_height = {}
    generator = torch.Generator().manual_seed(seed)
    for a, b in zip(pyramid(x[:n].float(), least), pyramid(y[:n].float(), least), strict=True):
        if min(a.shape[-2:]) < side:
            break
        p, q = (_patches(level, patches, side, generator) for level in (a, b))
        direction = torch.randn(p.shape[1], directions, generator=generator)
        direction = direction / direction.norm(dim=0)
        difference = (p @ direction).sort(0).values - (q @ direction).sort(0).values
        by_height[int(a.shape[-2])] = 1000 * float(difference.abs().mean())
    return by_height
