"""The U-Net of Karras 2022 for small images: Song 2021b's DDPM++, reparametrised (appendix F.2; table 1)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.attention import attend, split_heads
from limner.networks.checks import check_dropout
from limner.networks.layers import Resample, group_norm, init_xavier_all, pad_to_multiple, resample, sinusoids
from limner.networks.shape import FeatureShape

EPS = 1e-6
GROUP = 4  # least channels in a group of a norm
TINY = 1e-5  # gain of the layers that end a residual branch
HALF = 0.5**0.5  # factor of a sum of two, which keeps its variance


def small(layer: nn.Conv2d | nn.Linear, gain: float = TINY) -> nn.Conv2d | nn.Linear:
    init_xavier_all(layer, gain)
    return layer


class SongBlock(nn.Module):
    """Two 3x3 convolutions, the embedding added between, and optionally self-attention with one head."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, dropout: float, attends: bool = False,
        resample: Resample = "",
    ):  # fmt: skip
        super().__init__()
        self.resample = resample
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
        h = self.conv1(resample(F.silu(self.norm1(x)), self.resample))  # [B, O, H', W']
        h = self.norm2(h + self.embedding_proj(embedding)[:, :, None, None])  # [B, O, H', W']
        h = self.conv2(self.dropout(F.silu(h)))  # [B, O, H', W']
        x = (self.shortcut(resample(x, self.resample)) + h) * HALF  # [B, O, H', W']
        if self.norm3 is None:
            return x
        h = self.qkv(self.norm3(x).flatten(2).transpose(1, 2))  # [B, HW, 3O]
        h = attend(*split_heads(h, 1, "mixed")).transpose(1, 2).flatten(2)  # [B, HW, O]
        return (x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])) * HALF  # [B, O, H', W']


class SongUNet(nn.Module):
    """Image [B, channels, H, W] and noise level [B], as Karras 2022's c_noise -> [B, out, H, W].

    Levels that attend do so in every block on the way down and in the last one on the way up. ``augment``: numbers
    that describe an image's augmentation; 0: none. Any height and width: padded inside and cropped again.
    """

    def __init__(self, shape: FeatureShape, augment: int = 0):
        super().__init__()
        s, width, embedding = shape, shape.width, 4 * shape.width
        self.width, self.classes, self.multiple = width, s.classes, 2 ** (len(s.multiples) - 1)
        self.label = nn.Linear(s.classes, width) if s.classes else None
        self.augment = nn.Linear(augment, width, bias=False) if augment else None
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

        def block(inputs: int, outputs: int, attends: bool = False, resample: Resample = "") -> SongBlock:
            return SongBlock(inputs, outputs, embedding, s.dropout, attends, resample)

        self.stem = nn.Conv2d(s.channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        now, skips = width, [width]
        for level, wide in enumerate(s.widths):
            row = [block(now, now, resample="down")] if level else []
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
        embedding = sinusoids(noise, self.width, original=True)  # [B, W]
        if self.label is not None:
            chosen = torch.full((len(x),), -1, device=x.device) if label is None else label  # [B]
            chosen = (chosen[:, None] == torch.arange(self.classes, device=x.device)).float()  # [B, classes]
            embedding = embedding + self.label(chosen * math.sqrt(self.classes))
        if self.augment is not None and augment is not None:
            embedding = embedding + self.augment(augment)  # [B, W]
        embedding = F.silu(self.time(embedding))  # [B, E]
        x = self.stem(pad_to_multiple(x, self.multiple))  # [B, W, H, W]
        skips = [x]
        for level in self.down.children():
            for block in level.children():
                x = block(x, embedding)  # [B, Wl, H/2^l, W/2^l]
                skips.append(x)
        for block in self.middle.children():
            x = block(x, embedding)
        for level in self.up.children():
            for block in level.children():
                if not block.resample:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = block(x, embedding)  # [B, Wl, H/2^l, W/2^l]
        x = self.head(F.silu(self.norm(x)))  # [B, out, H, W]
        return x[..., :height, :width].float()
