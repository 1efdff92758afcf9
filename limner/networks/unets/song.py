"""The U-Nets of Karras 2022 for small images: Song 2021b's DDPM++ and NCSN++, as in its appendix F.2."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.attention import attend, split_heads
from limner.networks.checks import check_dropout
from limner.networks.images.resample import downsample2d, kernel, resample2d, upsample2d
from limner.networks.layers import (
    Resample,
    at_least_float32,
    group_norm,
    init_xavier_all,
    pad_to_multiple,
    resample,
    sinusoids,
)
from limner.networks.shape import FeatureShape

EPS = 1e-6
GROUP = 4  # least channels in a group of a norm
TINY = 1e-5  # gain of the layers that end a residual branch
HALF = 0.5**0.5  # factor of a sum of two, which keeps its variance


def small(layer: nn.Conv2d | nn.Linear, gain: float = TINY) -> nn.Conv2d | nn.Linear:
    init_xavier_all(layer, gain)
    return layer


class SongBlock(nn.Module):
    """Two 3x3 convolutions, the embedding added between, and optionally self-attention with one head.

    ``filtered``: resampling has the filter [1, 3, 3, 1] instead of means and nearest neighbours.
    """

    filter: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, embedding: int, dropout: float, attends: bool = False,
        resample: Resample = "", filtered: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.resample = resample
        self.register_buffer("filter", kernel() if resample and filtered else None, persistent=False)
        self.norm1, self.conv1 = group_norm(inputs, EPS, GROUP), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embedding_proj = nn.Linear(embedding, outputs)
        self.norm2, self.conv2 = group_norm(outputs, EPS, GROUP), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(check_dropout(dropout))
        projects = inputs != outputs or resample
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if projects else nn.Identity()
        self.norm3 = group_norm(outputs, EPS, GROUP) if attends else None
        init_xavier_all(self)
        small(self.conv2)
        if attends:
            self.qkv = small(nn.Linear(outputs, 3 * outputs), 0.2**0.5)
            self.out = small(nn.Linear(outputs, outputs))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self.resized(F.silu(self.norm1(x))))  # [B, O, H', W']
        h = self.norm2(h + self.embedding_proj(embedding)[:, :, None, None])  # [B, O, H', W']
        h = self.conv2(self.dropout(F.silu(h)))  # [B, O, H', W']
        x = (self.shortcut(self.resized(x)) + h) * HALF  # [B, O, H', W']
        if self.norm3 is None:
            return x
        h = self.qkv(self.norm3(x).flatten(2).transpose(1, 2))  # [B, HW, 3O]
        h = attend(*split_heads(h, 1, "mixed")).transpose(1, 2).flatten(2)  # [B, HW, O]
        return (x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])) * HALF  # [B, O, H', W']

    def resized(self, x: Tensor) -> Tensor:
        if self.filter is None:
            return resample(x, self.resample)
        return (downsample2d if self.resample == "down" else upsample2d)(x, self.filter)  # [B, C, H', W']


class InputResidual(nn.Module):
    """What NCSN++ adds at each halving of its encoder: a 3x3 convolution of the input so far, filtered and halved."""

    filter: Tensor

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=2)
        self.register_buffer("filter", kernel(), persistent=False)
        init_xavier_all(self)

    def forward(self, x: Tensor) -> Tensor:
        return resample2d(self.conv(x), self.filter, down=2)  # [B, O, H/2, W/2]


class SongUNet(nn.Module):
    """Image [B, channels, H, W] and noise level [B], as Karras 2022's c_noise -> [B, out, H, W].

    Levels that attend do so in every block on the way down and in the last one on the way up. ``augment``: numbers
    that describe an image's augmentation; 0: none. Any height and width: padded inside and cropped again.
    ``ncsnpp``: NCSN++, with random Fourier features of the noise level, filtered resampling, and the input added to the
    encoder at each halving; else DDPM++.
    """

    frequencies: Tensor | None  # of the Fourier features

    def __init__(self, shape: FeatureShape, augment: int = 0, ncsnpp: bool = False):
        super().__init__()
        s, width, embedding = shape, shape.width, 4 * shape.width
        self.width, self.classes, self.multiple = width, s.classes, 2 ** (len(s.multiples) - 1)
        self.register_buffer("frequencies", 16 * torch.randn(width) if ncsnpp else None)
        features = 2 * width if ncsnpp else width  # of the noise level
        self.label = nn.Linear(s.classes, features) if s.classes else None
        self.augment = nn.Linear(augment, features, bias=False) if augment else None
        self.time = nn.Sequential(nn.Linear(features, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

        def block(inputs: int, outputs: int, attends: bool = False, resample: Resample = "") -> SongBlock:
            return SongBlock(inputs, outputs, embedding, s.dropout, attends, resample, ncsnpp)

        self.stem = nn.Conv2d(s.channels, width, 3, padding=1)
        self.down, self.up, self.residual = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        now, skips = width, [width]
        for level, wide in enumerate(s.widths):
            row = [block(now, now, resample="down")] if level else []
            if level and ncsnpp:
                self.residual.append(InputResidual(now if level > 1 else s.channels, now))
            row += [block(now if i == 0 else wide, wide, level in s.attention) for i in range(s.blocks)]
            self.down.append(nn.ModuleList(row))
            skips += [now, *[wide] * s.blocks] if level else [wide] * s.blocks
            now = wide
        self.middle = nn.ModuleList([block(now, now, True), block(now, now)])
        for level, wide in reversed(list(enumerate(s.widths))):
            row = [] if level + 1 == len(s.widths) else [block(now, now, resample="up")]
            for i in range(s.blocks + 1):
                row.append(block(skips.pop() + now, wide, i == s.blocks and level in s.attention))
                now = wide
            self.up.append(nn.ModuleList(row))
        self.norm = group_norm(now, EPS, GROUP)
        self.head = nn.Conv2d(now, s.out, 3, padding=1)
        for layer in filter(None, (self.stem, self.time, self.label, self.augment)):
            init_xavier_all(layer)
        small(self.head)

    def forward(
        self, x: Tensor, noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """``label`` [B] is -1 for none; ``augment`` [B, A] is 0 for an image that was not augmented."""
        height, width = x.shape[-2:]
        embedding = self.noise_features(noise)  # [B, F]
        if self.label is not None:
            chosen = torch.full((len(x),), -1, device=x.device) if label is None else label  # [B]
            chosen = (chosen[:, None] == torch.arange(self.classes, device=x.device)).float()  # [B, classes]
            embedding = embedding + self.label(chosen * math.sqrt(self.classes))
        if self.augment is not None and augment is not None:
            embedding = embedding + self.augment(augment)  # [B, F]
        embedding = F.silu(self.time(embedding))  # [B, E]
        residual, residuals = pad_to_multiple(x, self.multiple), iter(self.residual.children())
        x = self.stem(residual)  # [B, W, H, W]
        skips = [x]
        for level in self.down.children():
            for block in level.children():
                x = block(x, embedding)  # [B, Wl, H/2^l, W/2^l]
                if block.resample and len(self.residual):
                    residual = x = (x + next(residuals)(residual)) * HALF
                skips.append(x)
        for block in self.middle.children():
            x = block(x, embedding)
        for level in self.up.children():
            for block in level.children():
                if not block.resample:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = block(x, embedding)  # [B, Wl, H/2^l, W/2^l]
        x = self.head(F.silu(self.norm(x)))  # [B, out, H, W]
        return at_least_float32(x[..., :height, :width])

    def noise_features(self, noise: Tensor) -> Tensor:
        """[B] -> [B, F]: sines, then cosines, of fixed wavelengths, or of random frequencies (Tancik 2020)."""
        if self.frequencies is None:
            return sinusoids(noise, self.width, original=True)
        angle = 2 * math.pi * noise[:, None] * self.frequencies  # [B, F/2]
        return torch.cat([angle.sin(), angle.cos()], dim=1)
