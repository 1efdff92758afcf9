"""What a U-Net of images needs for clips: layers along time, beside its layers on each frame.

The frames of all clips lie in the batch, [B T, C, H, W], clip after clip, so that layers on frames need no change. The
layers here begin as the identity: then a clip's frames are what the network makes of single images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limner.networks.attention import attend, head_count
from limner.networks.blocks import norm
from limner.networks.layers import zero_init

Positions = Literal["rotary", "relative"]


def fold_frames(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B T, C, H, W]"""
    return x.transpose(1, 2).flatten(0, 1)


def unfold_frames(x: Tensor, frames: int) -> Tensor:
    """[B T, C, H, W] -> [B, C, T, H, W]"""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


class TemporalConv(nn.Conv2d):
    """A 3x1x1 convolution over [B T, C, H, W]; the identity at first (Singer 2022, Make-A-Video).

    A clip is padded by one frame of zeros at both ends. ``causal``: by two before it, so no frame sees a later one.
    """

    def __init__(self, width: int, causal: bool = False):
        super().__init__(width, width, (3, 1), padding=(2 if causal else 1, 0))
        self.causal = causal
        with torch.no_grad():
            self.weight.zero_()
            self.weight[:, :, 2 if causal else 1, 0] = torch.eye(width)
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        size = x.shape[2:]
        x = x.unflatten(0, (-1, frames)).flatten(3).transpose(1, 2)  # [B, C, T, HW], channels_last as x is
        x = super().forward(x)[:, :, :frames]  # causal: the frames after the last are cut
        return x.transpose(1, 2).unflatten(3, size).flatten(0, 1)  # [B T, C, H, W]


def frame_angles(frames: int, width: int, device: torch.device | None = None, stride: int = 1) -> Tensor:
    """[T, width / 2], what rotary positions turn the pairs of a head by: t / 10000^(2 i / width) (Su 2021, 3.2.2).

    Frame i is at t = stride i, in frames of the whole clip.
    """
    frequency = 1e-4 ** (torch.arange(width // 2, device=device) / (width // 2))
    return stride * torch.arange(frames, device=device)[:, None] * frequency


def turn(x: Tensor, angles: Tensor, neighbours: bool = False) -> Tensor:
    """[..., T, D], each pair of channels turned by its angle [T, D / 2] (Su 2021, eq. 34).

    Pairs are (i, i + D / 2), as in `apply_rope` but in half of the passes; ``neighbours``: (2 i, 2 i + 1).
    """
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)  # [T, D / 2] each
    if neighbours:
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    cos, sin = torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)  # [T, D] each
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def relative_buckets(frames: int, buckets: int = 32, farthest: int = 128, stride: int = 1) -> Tensor:
    """[T, T] in {0, ..., buckets - 1}, of how far key j is from query i (Raffel 2020, T5), in frames of the whole clip.

    The first half is for keys at or before the query, the second for later ones. Half of each has a bucket for every
    distance, the rest widen by logarithm up to ``farthest``, from where on all share the last one.
    """
    place = stride * torch.arange(frames)
    ahead = place[None] - place[:, None]  # [T, T], above 0: the key is later
    half, exact = buckets // 2, buckets // 4
    distance = ahead.abs()
    share = (distance.clamp(min=1).double() / exact).log() / math.log(farthest / exact)
    wide = exact + (share * (half - exact) + 1e-9).long()
    return torch.where(distance < exact, distance, wide.clamp(max=half - 1)) + half * (ahead > 0)


def frames_seen(frames: int, causal: bool, device: torch.device | None = None) -> Tensor | None:
    """[T, T], True where a frame sees another: itself and earlier ones. None: all see all."""
    return torch.ones(frames, frames, dtype=torch.bool, device=device).tril() if causal else None


class FrameAttention(nn.Module):
    """Each place attends over its own frames: queries, keys and values [B, T, P, C] -> [B, T, P, C].

    ``relative``: a number for each bucket of distance and each head is added to the logits, rather than turning
    queries and keys by their times.
    """

    def __init__(self, heads: int, positions: Positions = "rotary", causal: bool = False):
        super().__init__()
        self.heads, self.causal, self.rotary = heads, causal, positions == "rotary"
        self.bias = None if self.rotary else nn.Embedding(32, heads)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, stride: int = 1) -> Tensor:
        frames, places = q.shape[1:3]
        q, k, v = (  # [B P, h, T, C/h]
            y.unflatten(3, (self.heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1) for y in (q, k, v)
        )
        if self.rotary:
            q, k = turn(torch.stack([q, k]), frame_angles(frames, q.shape[3], q.device, stride))
        h = attend(q, k, v, self.mask(frames, q, stride))  # [B P, h, T, C/h]
        return h.unflatten(0, (-1, places)).permute(0, 3, 1, 2, 4).flatten(3)  # [B, T, P, C]

    def mask(self, frames: int, like: Tensor, stride: int) -> Tensor | None:
        """[T, T] or [h, T, T]: False or minus infinity where a frame does not see another."""
        seen = frames_seen(frames, self.causal, like.device)
        if self.bias is None:
            return seen
        buckets = relative_buckets(frames, stride=stride).to(like.device)
        added = self.bias(buckets).permute(2, 0, 1).to(like.dtype)  # [h, T, T]
        return added if seen is None else added.masked_fill(~seen, -math.inf)


class TemporalAttention(nn.Module):
    """Attention along time at every place of [B T, C, H, W], added to it; 0 at first (Ho 2022, section 3)."""

    def __init__(self, width: int, head_width: int, positions: Positions, causal: bool):
        super().__init__()
        self.norm = norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention = FrameAttention(head_count(width, head_width), positions, causal)
        self.out = zero_init(nn.Linear(width, width))

    def forward(self, x: Tensor, frames: int, stride: int = 1) -> Tensor:
        h = self.norm(x).unflatten(0, (-1, frames)).flatten(3).transpose(2, 3)  # [B, T, HW, C]
        h = self.out(self.attention(*self.qkv(h).chunk(3, dim=-1), stride))  # [B, T, HW, C]
        return x + h.transpose(2, 3).unflatten(3, x.shape[2:]).flatten(0, 1).to(x.dtype)  # [B T, C, H, W]


class TemporalLayers(nn.Module):
    """The layers along time of a `UNet`, by the place at which they stand: see its ``forward``.

    A convolution follows each 3x3 one of its blocks, and attention each of its two lowest levels.
    """

    def __init__(
        self, widths: Sequence[int], blocks: Sequence[int], head_width: int, positions: Positions = "rotary",
        causal: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.at = nn.ModuleDict()
        for level, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            for way in ("down", "up"):
                for name in (f"{block}_{number}" for block in range(depth) for number in (1, 2)):
                    self.at[f"{way}{level}_{name}"] = TemporalConv(width, causal)
                if level >= len(widths) - 2:
                    self.at[f"{way}{level}"] = TemporalAttention(width, head_width, positions, causal)

    def forward(self, place: str, x: Tensor, frames: int, stride: int = 1) -> Tensor:
        """``stride``: from each of the ``frames`` to the next, in frames of the whole clip."""
        if place not in self.at:
            return x
        layer = self.at[place]
        return layer(x, frames, stride) if isinstance(layer, TemporalAttention) else layer(x, frames)
