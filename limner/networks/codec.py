"""The convolutional encoder and decoder of VQGAN and of latent diffusion (Esser 2021, table 7; Rombach 2022, app. E).

An image becomes a grid of short vectors, one for each ``2^halvings`` pixels, and back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.attention import attend
from limner.networks.checks import check_dropout


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, width), width, eps=1e-6)


class Block(nn.Module):
    """Norm, activation, 3x3 convolution, twice, and a shortcut: a 1x1 convolution where the width changes."""

    def __init__(self, width: int, out: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.conv1 = norm(width), nn.Conv2d(width, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.dropout = nn.Dropout(check_dropout(dropout))
        self.shortcut = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # [B, out, H, W]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))  # [B, out, H, W]
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Self-attention over all positions, with one head."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.qkv, self.out = (
            norm(width),
            nn.Conv2d(width, 3 * width, 1),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None]  # [B, 1, HW, 3C]
        h = attend(*qkv.chunk(3, dim=-1))[:, 0]  # [B, HW, C]
        return x + self.out(h.transpose(1, 2).unflatten(2, x.shape[2:]))  # [B, C, H, W]


class Down(nn.Module):
    """Half the size; the padding is at the right and below only."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # [B, C, H/2, W/2]


class Up(nn.Module):
    """Twice the size."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))  # [B, C, 2H, 2W]


def middle(width: int, dropout: float) -> list[nn.Module]:
    return [Block(width, width, dropout), Attention(width), Block(width, width, dropout)]


class Encoder(nn.Module):
    """[B, channels, H, W] -> [B, out, h, w]; what does not divide is padded at the right and below.

    Level i has ``widths[i]`` channels and ``blocks`` blocks; the levels in ``attention`` attend after each. Each
    level but the last halves the size. ``patch`` pixels a side are folded into one place first.
    """

    def __init__(
        self, channels: int, out: int, widths: Sequence[int], blocks: int, attention: Sequence[int] = (),
        patch: int = 1, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.patch, self.factor = patch, patch * 2 ** (len(widths) - 1)
        layers: list[nn.Module] = [nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)]
        for level, (before, width) in enumerate(pairwise([widths[0], *widths])):
            for _ in range(blocks):
                layers += [Block(before, width, dropout), *([Attention(width)] if level in attention else [])]
                before = width
            if level + 1 < len(widths):
                layers.append(Down(width))
        self.layers = nn.Sequential(*layers, *middle(widths[-1], dropout))
        self.norm, self.last = norm(widths[-1]), nn.Conv2d(widths[-1], out, 3, padding=1)

    def describe(self, image: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, widths[-1], h, w], what the code is made from."""
        height, width = image.shape[-2:]
        image = F.pad(image, (0, -width % self.factor, 0, -height % self.factor), mode="replicate")
        return F.silu(self.norm(self.layers(F.pixel_unshuffle(image, self.patch))))

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.describe(image)).float()  # [B, out, h, w]


class Decoder(nn.Module):
    """[B, code, h, w] -> [B, channels, H, W]: the encoder backwards, with one block more at each level."""

    def __init__(
        self, channels: int, code: int, widths: Sequence[int], blocks: int, attention: Sequence[int] = (),
        patch: int = 1, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.patch, before = patch, widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(code, before, 3, padding=1), *middle(before, dropout)]
        for level in reversed(range(len(widths))):
            width = widths[level]
            for _ in range(blocks + 1):
                layers += [Block(before, width, dropout), *([Attention(width)] if level in attention else [])]
                before = width
            if level:
                layers.append(Up(width))
        self.layers, self.norm = nn.Sequential(*layers), norm(widths[0])
        self.last = nn.Conv2d(widths[0], channels * patch**2, 3, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        x = self.last(F.silu(self.norm(self.layers(code))))  # [B, channels patch^2, H/patch, W/patch]
        return F.pixel_shuffle(x, self.patch).float()  # [B, channels, H, W]
