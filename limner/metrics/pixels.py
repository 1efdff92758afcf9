"""Measures on the pixels themselves: of pairs (PSNR, SSIM), and of sets (sliced Wasserstein distance)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from limner.settings import LimnerError

PROJECTED = 2**23  # projections of each set that are held at a time
KEPT = 2**24  # values of patches of each set that are held; more are cut again


def psnr(x: Tensor, y: Tensor, span: float = 2.0) -> Tensor:
    """[B, C, H, W] twice -> peak signal-to-noise ratio [B] in dB; ``span`` is the range of values."""
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(span**2 / error)


def luma(image: Tensor) -> Tensor:
    """RGB [B, 3, H, W] in [-1, 1] -> Y of ITU-R BT.601 [B, 1, H, W] in [16, 235], not rounded.

    Its PSNR has a peak of 255 over this narrower range, which alone makes it 1.3 dB higher than that of RGB.
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=image.device)
    return 16 + ((image.double() + 1) / 2 * weights[:, None, None]).sum(1, keepdim=True)


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
    levels, now = [], images
    while min(now.shape[-2:]) // 2 >= least:
        down = _down(now)
        levels.append(now - _up(down, now))
        now = down
    return [*levels, now]


def pyramid_level(images: Tensor, level: int, least: int) -> Tensor:
    """One level of ``pyramid``, without the work for the others."""
    for _ in range(level):
        images = _down(images)
    return images - _up(_down(images), images) if min(images.shape[-2:]) // 2 >= least else images


def _down(images: Tensor) -> Tensor:
    """Every second pixel of the smoothed images."""
    return _smooth(images, 1, 2)


def _up(images: Tensor, like: Tensor) -> Tensor:
    """To the size of ``like``, twice as large."""
    up = torch.zeros_like(like)
    up[:, :, ::2, ::2] = images
    return _smooth(up, 4, 1)


def _smooth(x: Tensor, gain: int, stride: int) -> Tensor:
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=x.device) / 16
    kernel = gain * (line[:, None] * line).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=stride, groups=x.shape[1])


class Images(Protocol):
    """A set of images that is read in parts: a tensor [N, C, H, W], or what gives one for a slice of it."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass
class _Patches:
    """Square patches from random places of one level of all images' pyramids; many are cut again at every use."""

    images: Images
    level: int
    least: int
    side: int
    tops: Tensor  # int16 [N, P]
    lefts: Tensor
    kept: list[Tensor] | None = None

    @classmethod
    def choose(
        cls, images: Images, n: int, level: int, size: tuple[int, int], least: int, side: int, count: int,
        generator: torch.Generator,
    ) -> _Patches:  # fmt: skip
        """``count`` places in each of the first n images, whose level has this size."""
        tops, lefts = (torch.empty(n, count, dtype=torch.int16) for _ in range(2))
        for i in range(n):
            tops[i] = torch.randint(size[0] - side + 1, (count,), generator=generator)
            lefts[i] = torch.randint(size[1] - side + 1, (count,), generator=generator)
        return cls(images, level, least, side, tops, lefts)

    def parts(self) -> Iterable[Tensor]:
        """[B P, C, side, side] of some images at a time."""
        if self.tops.numel() * self.images[:1].shape[1] * self.side**2 > KEPT:
            return self._cut()
        if self.kept is None:
            self.kept = list(self._cut())
        return self.kept

    def _cut(self) -> Iterator[Tensor]:
        n, step = len(self.tops), 64
        for at in range(0, n, step):
            level = pyramid_level(self.images[at : min(at + step, n)].float(), self.level, self.least)
            windows = level.unfold(2, self.side, 1).unfold(3, self.side, 1)
            rows = torch.arange(len(level))[:, None]
            tops, lefts = (places[at : at + step].long() for places in (self.tops, self.lefts))
            yield windows[rows, :, tops, lefts].flatten(0, 1)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of all values of each channel [C, 1, 1]."""
        sums = [
            (part.double().sum((0, 2, 3)), part.double().square().sum((0, 2, 3))) for part in self.parts()
        ]
        total, squares = (torch.stack(each).sum(0) for each in zip(*sums, strict=True))
        count = self.tops.numel() * self.side**2
        mean = total / count
        std = ((squares - count * mean.square()).clamp(min=0) / (count - 1)).sqrt().clamp(min=1e-8)
        return mean.float()[:, None, None], std.float()[:, None, None]

    def projected(self, directions: Tensor, mean: Tensor, std: Tensor) -> np.ndarray:
        """The patches, normalised by channel, along each of the directions [D, K]: [K, N P], each row sorted."""
        projected, at = np.empty((directions.shape[1], self.tops.numel()), np.float32), 0
        for part in self.parts():
            along = part.sub(mean).div_(std).flatten(1) @ directions  # [B P, K]
            projected[:, at : at + len(along)] = along.T.numpy()
            at += len(along)
        projected.sort(axis=1)
        return projected


def sliced_wasserstein(
    x: Images, y: Images,
    patches: int = 64, directions: int = 256, side: int = 7, least: int = 16, seed: int = 0,
) -> dict[int, float]:  # fmt: skip
    """Sliced Wasserstein distance x1000 between the patches of two sets [N, C, H, W], by the level's height.

    After Karras 2018, section 5: 7x7 patches of each level of a Laplacian pyramid, normalised by channel. Both sets
    are cut to the length of the smaller. Images are read in parts, and again for each part of the directions.
    """
    n = min(len(x), len(y))
    by_height = {}
    generator = torch.Generator().manual_seed(seed)
    together = max(1, PROJECTED // (n * patches))  # directions at a time
    for i, level in enumerate(pyramid(x[:1].float(), least)):
        channels, height, width = level.shape[1:]
        if min(height, width) < side:
            break
        sets = [
            _Patches.choose(images, n, i, (height, width), least, side, patches, generator)
            for images in (x, y)
        ]
        direction = torch.randn(channels * side**2, directions, generator=generator)
        direction = direction / direction.norm(dim=0)
        known = [(each, *each.moments()) for each in sets]
        differences = []
        for some in direction.split(together, dim=1):
            p, q = (each.projected(some, mean, std) for each, mean, std in known)
            differences += [float(np.abs(a - b).mean(dtype=np.float64)) for a, b in zip(p, q, strict=True)]
        by_height[height] = 1000 * sum(differences) / len(differences)
    return by_height
