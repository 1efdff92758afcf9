"""A convolutional generator that is quick on a CPU: a latent vector -> an image, from the smallest level up."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.blocks import Attention, Block, norm
from limner.networks.shape import Size, attention_levels, check_levels, level_sizes


@dataclass(frozen=True)
class DecoderConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("blocks", "attention_resolutions")

    latent: int = 64  # latent dimensions
    patch: int = 2  # pixels a side of a position at the finest level
    widths: tuple[int, ...] = (64, 128, 192)  # channels by level, finest first; each level halves the side
    blocks: tuple[int, ...] = (1, 2, 2)  # residual blocks by level
    attention_resolutions: tuple[int, ...] = (4,)  # shorter sides, in pixels, of feature maps with attention
    head_width: int = 64  # channels of an attention head
    embedding: int = 128  # width of the embedding of latent and condition
    full_size_width: int = 32  # channels at the image's full size, behind bilinear upsampling


class Decoder(nn.Module):
    """Latent [B, D], embedding [B, E], and perhaps tokens [B, L, T] with their mask [B, L] -> image [B, C, H, W].

    Raises SettingsError for levels that do not match.
    """

    def __init__(self, config: DecoderConfig, channels: int, size: Size, context: int = 0):
        super().__init__()
        c = config
        check_levels(c.widths, c.blocks)
        self.size, self.patch = size, c.patch
        sizes = level_sizes(size, len(c.widths), c.patch)
        attention = attention_levels(c.attention_resolutions, sizes)
        base = (c.widths[-1], *sizes[-1])
        self.stem = nn.Sequential(nn.Linear(c.latent + c.embedding, math.prod(base)), nn.Unflatten(1, base))
        self.position, self.blocks, self.upsample = nn.ParameterList(), nn.ModuleList(), nn.ModuleList()
        self.attention = nn.ModuleDict()
        for level, (wide, depth) in enumerate(zip(c.widths, c.blocks, strict=True)):
            self.position.append(nn.Parameter(0.3 * torch.randn(wide, *sizes[level])))
            self.blocks.append(nn.ModuleList(Block(wide, c.embedding, 0.0) for _ in range(depth)))
            if level in attention:
                self.attention[str(level)] = Attention(wide, sizes[level], c.head_width, context)
            if level + 1 < len(sizes):
                self.upsample.append(nn.Conv2d(c.widths[level + 1], wide, 1))
        self.norm = norm(c.widths[0])
        full = c.full_size_width
        self.head = nn.Conv2d(c.widths[0], full, 3, padding=1)
        conv, last = nn.Conv2d(full, full, 3, padding=1), nn.Conv2d(full, channels, 3, padding=1)
        self.refine = nn.Sequential(norm(full), nn.SiLU(), conv, nn.SiLU(), last)

    def forward(
        self, latent: Tensor, embedding: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        x = self.stem(torch.cat([latent, embedding], dim=1))  # [B, Wl, h, w]
        x = x.contiguous(memory_format=torch.channels_last)
        for level in reversed(range(len(self.blocks))):
            if level < len(self.upsample):
                x = F.interpolate(self.upsample[level](x), scale_factor=2.0)  # [B, Wl, 2h, 2w]
            x = x + self.position[level]  # [B, Wl, h, w]
            for block in self.blocks[level].children():
                x = block(x, embedding)  # [B, Wl, h, w]
            if str(level) in self.attention:
                x = self.attention[str(level)](x, tokens, mask)  # [B, Wl, h, w]
        x = self.head(F.silu(self.norm(x)))  # [B, full, H/p, W/p]
        x = F.interpolate(x, scale_factor=float(self.patch), mode="bilinear")  # [B, full, H', W']
        return self.refine(x)[..., : self.size[0], : self.size[1]]  # [B, C, H, W]
