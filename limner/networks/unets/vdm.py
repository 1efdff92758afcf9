"""The 3D U-Net of video diffusion (Ho 2022), as lucidrains' video-diffusion-pytorch has it.

Its convolutions are on each frame; attention along time follows each level. Frames lie in the batch, [B T, C, H, W].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.attention import attend
from limner.networks.layers import at_least_float32, pad_to_multiple, sinusoids
from limner.networks.unets.space_time import frame_angles, frames_seen, relative_buckets, turn

FARTHEST = 32  # frames, from where on relative positions share one bucket


@dataclass(frozen=True)
class VDMLevels:
    """A part of a family's Config."""

    width: int = 64  # vdm: unit of channels
    # vdm: channels of each level in those units; each halves the side
    multiples: tuple[int, ...] = (1, 2, 4, 8)
    heads: int = 8  # vdm: of attention, 32 channels each


class ScaledRMSNorm(nn.Module):
    """[B, C, H, W]: each position's channels at length sqrt(C), times a weight each."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (len(self.weight) ** 0.5 * self.weight)[:, None, None]


class ChannelNorm(nn.Module):
    """[B, C, H, W]: each position's channels less their mean and over their deviation, times a weight each."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        h = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight)  # [B, H, W, C]
        return h.permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two 3x3 convolutions, each with its norm; the first is scaled and shifted by the embedding, where it has one."""

    def __init__(self, inputs: int, outputs: int, embedding: int = 0):
        super().__init__()
        self.modulation = nn.Linear(embedding, 2 * outputs) if embedding else None
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, padding=1), ScaledRMSNorm(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1), ScaledRMSNorm(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.norm1(self.conv1(x))  # [B, O, H, W]
        if self.modulation is not None and embedding is not None:
            scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)  # 2 x [B, O, 1, 1]
            h = torch.addcmul(shift, h, scale + 1)  # [B, O, H, W]
        h = F.silu(self.norm2(self.conv2(F.silu(h))))  # [B, O, H, W]
        return h + self.shortcut(x)  # [B, O, H, W]


class LinearAttention(nn.Module):
    """Over the positions of a frame, in time linear in them (Shen 2021), added to [B, C, H, W]."""

    def __init__(self, width: int, heads: int, head_width: int = 32):
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(width)
        self.qkv = nn.Conv2d(width, 3 * heads * head_width, 1, bias=False)
        self.out = nn.Conv2d(heads * head_width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.flatten(2).unflatten(1, (self.heads, -1)) for y in self.qkv(self.norm(x)).chunk(3, dim=1)
        )  # [B, h, D, HW] each
        context = k.softmax(dim=3) @ v.transpose(2, 3)  # [B, h, D, D]
        h = context.transpose(2, 3) @ (q.softmax(dim=2) * q.shape[2] ** -0.5)  # [B, h, D, HW]
        return x + self.out(h.flatten(1, 2).unflatten(2, x.shape[2:]))  # [B, C, H, W]


class Attention(nn.Module):
    """Over the frames of each place, or over the places of each frame, added to [B T, C, H, W].

    Along time keys and queries are turned by their times (Su 2021), and each head's ``bias`` [h, T, T] is added.
    """

    def __init__(self, width: int, heads: int, head_width: int = 32):
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``bias``: along time; None: over the places of a frame."""
        height, width = x.shape[2:]
        h = self.norm(x).flatten(2).transpose(1, 2)  # [B T, HW, C]
        if bias is not None:
            h = h.unflatten(0, (-1, bias.shape[-1])).transpose(1, 2).flatten(0, 1)  # [B HW, T, C]
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [., h, L, D] each
        if bias is not None:
            angles = frame_angles(bias.shape[-1], q.shape[3], q.device)
            q, k = turn(torch.stack([q, k]), angles, neighbours=True)
            bias = bias.to(q.dtype)
        h = self.out(attend(q, k, v, bias).transpose(1, 2).flatten(2))  # [., L, C]
        if bias is not None:
            h = h.unflatten(0, (-1, height * width)).transpose(1, 2).flatten(0, 1)  # [B T, HW, C]
        return x + h.transpose(1, 2).unflatten(2, (height, width))  # [B T, C, H, W]


class Level(nn.Module):
    """Two blocks, attention over the frame and along time, then half or twice the size where it is not the last."""

    def __init__(self, inputs: int, outputs: int, embedding: int, heads: int, resample: nn.Module):
        super().__init__()
        self.block1, self.block2 = Block(inputs, outputs, embedding), Block(outputs, outputs, embedding)
        self.over_frame, self.along_time = LinearAttention(outputs, heads), Attention(outputs, heads)
        self.resample = resample

    def forward(self, x: Tensor, embedding: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The features before their size changes [B T, O, H, W], and after."""
        x = self.block2(self.block1(x, embedding), embedding)
        x = self.along_time(self.over_frame(x), bias)
        return x, self.resample(x)


class VDMUNet(nn.Module):
    """Frames [B T, channels, H, W] at times [B T] in steps -> [B T, out, H, W].

    ``causal``: no frame sees a later one.
    """

    def __init__(self, channels: int, out: int, levels: VDMLevels, causal: bool = False):
        super().__init__()
        c, self.causal = levels, causal
        widths = [c.width, *(c.width * multiple for multiple in c.multiples)]
        self.width, self.embedding, last = c.width, 4 * c.width, len(c.multiples) - 1
        self.multiple = 2**last
        self.bias = nn.Embedding(32, c.heads)
        self.stem, self.stem_attention = (
            nn.Conv2d(channels, c.width, 7, padding=3),
            Attention(c.width, c.heads),
        )
        self.time = nn.Sequential(
            nn.Linear(c.width, self.embedding), nn.GELU(), nn.Linear(self.embedding, self.embedding)
        )
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (inputs, outputs) in enumerate(pairwise(widths)):
            halve = nn.Identity() if level == last else nn.Conv2d(outputs, outputs, 4, 2, 1)
            double = nn.ConvTranspose2d(inputs, inputs, 4, 2, 1) if level else nn.Identity()
            self.down.append(Level(inputs, outputs, self.embedding, c.heads, halve))
            self.up.insert(0, Level(2 * outputs, inputs, self.embedding, c.heads, double))
        wide = widths[-1]
        self.middle1, self.middle2 = (Block(wide, wide, self.embedding) for _ in range(2))
        self.middle_over_frame, self.middle_along_time = (Attention(wide, c.heads) for _ in range(2))
        self.last = Block(2 * c.width, c.width)
        self.head = nn.Conv2d(c.width, out, 1)

    def time_bias(self, frames: int) -> Tensor:
        """[h, T, T], added to the logits of attention along time."""
        device = self.bias.weight.device
        bias = self.bias(relative_buckets(frames, 32, FARTHEST).to(device)).permute(2, 0, 1)  # [h, T, T]
        seen = frames_seen(frames, self.causal, device)
        return bias if seen is None else bias.masked_fill(~seen, -torch.inf)

    def forward(self, x: Tensor, t: Tensor, frames: int, added: Tensor | None = None) -> Tensor:
        """``added`` [B T, 4 width] is added to the time's embedding."""
        height, width = x.shape[2:]
        bias = self.time_bias(frames)  # [h, T, T]
        embedding = self.time(sinusoids(t, self.width, original=True))  # [B T, E]
        embedding = F.silu(embedding if added is None else embedding + added)  # [B T, E]
        first = x = self.stem_attention(self.stem(pad_to_multiple(x, self.multiple)), bias)  # [B T, W, H, W]
        skips: list[Tensor] = []
        for level in self.down.children():
            skip, x = level(x, embedding, bias)  # 2 x [B T, Wl, H/2^l, W/2^l], the second halved
            skips.append(skip)
        x = self.middle1(x, embedding)
        x = self.middle_along_time(self.middle_over_frame(x), bias)
        x = self.middle2(x, embedding)
        for level in self.up.children():
            _, x = level(torch.cat([x, skips.pop()], dim=1), embedding, bias)
        x = self.head(self.last(torch.cat([x, first], dim=1)))  # [B T, out, H, W]
        return at_least_float32(x[..., :height, :width])
