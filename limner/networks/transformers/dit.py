"""A transformer over the patches of a noisy image, conditioned on an embedding by adaLN-Zero (Peebles 2023).

Each block's norms are scaled and shifted, and what it adds is gated, by numbers that are linear in the embedding
and 0 at first, so that a new block does nothing and a new network gives exactly 0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.attention import apply_rope, attend, rope_angles, sincos
from limner.networks.checks import SettingsError
from limner.networks.layers import init_xavier, pad_to_multiple, sinusoids, zero_init


@dataclass(frozen=True)
class DiTBlocks:
    patch: int = 4  # pixels a side of a patch
    width: int = 256  # of a token
    depth: int = 6  # blocks
    heads: int = 4  # attention heads
    mlp_ratio: float = 4.0  # width of the MLP's hidden layer over the token's
    qk_norm: bool = False  # queries and keys normalised, by RMS (Dehghani 2023)
    rope: bool = False  # rotary position embeddings on queries and keys (Su 2021)
    swiglu: bool = False  # SwiGLU in place of GELU, with the same number of weights (Shazeer 2020)
    registers: int = 0  # tokens beside the patches that carry time and condition (Li and He 2025)


class TimeEmbedder(nn.Module):
    """Times [B], about 0 to 1000 -> [B, width]. Initial weights are N(0, std^2), or Glorot-uniform where std is 0."""

    def __init__(self, width: int, std: float = 0.0, inputs: int = 256):
        super().__init__()
        self.inputs = inputs
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
        init_xavier(self)
        for part in (self.first, self.second) if std else ():
            nn.init.normal_(part.weight, std=std)

    def forward(self, t: Tensor) -> Tensor:
        return self.second(F.silu(self.first(sinusoids(t, self.inputs))))  # [B, width]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm of x [B, L, W], times 1 + scale, plus shift, [B, 1, W] each."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), scale + 1)


class Block(nn.Module):
    """Self-attention and a two-layer MLP, each modulated and gated by the embedding [B, W]."""

    def __init__(self, config: DiTBlocks):
        super().__init__()
        c, width = config, config.width
        self.heads, self.swiglu = c.heads, c.swiglu
        inner = int(c.mlp_ratio * width * (2 / 3 if c.swiglu else 1))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, (1 + c.swiglu) * inner), nn.Linear(inner, width)
        norms = [nn.RMSNorm(width // c.heads, eps=1e-6) if c.qk_norm else nn.Identity() for _ in "qk"]
        self.norm_q, self.norm_k = norms
        init_xavier(self)
        self.modulation = zero_init(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, embedding: Tensor, mask: Tensor | None, angles: list[Tensor]) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        h = self.qkv(modulate(x, shift1, scale1))  # [B, L, 3W]
        q, k, v = h.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # 3 x [B, heads, L, D]
        q, k = self.norm_q(q), self.norm_k(k)
        if angles:
            q, k = apply_rope(q, *angles), apply_rope(k, *angles)
        h = attend(q, k, v, mask).transpose(1, 2).flatten(2)  # [B, L, W]
        x = x + gate1 * self.out(h)  # [B, L, W]
        h = self.up(modulate(x, shift2, scale2))  # [B, L, inner] or twice that
        if self.swiglu:
            gate, h = h.chunk(2, dim=-1)
            return x + gate2 * self.down(F.silu(gate) * h)  # [B, L, W]
        return x + gate2 * self.down(F.gelu(h, approximate="tanh"))  # [B, L, W]


class DiffusionTransformer(nn.Module):
    """Image, embedding [B, W] after its activation, perhaps tokens [B, N, D] with their mask [B, N] -> an image.

    The tokens join the patches in every block. Images are of ``size``; sides that do not divide into patches
    are padded inside and cropped again. Raises SettingsError for widths that do not divide.
    """

    position: Tensor
    cos: Tensor | None
    sin: Tensor | None

    def __init__(self, config: DiTBlocks, channels: int, out: int, size: tuple[int, int], context: int = 0):
        super().__init__()
        c = config
        if c.width % (4 * c.heads):
            raise SettingsError(
                f"a width of {c.width} does not divide into {c.heads} heads of a multiple of 4"
            )
        self.patch, self.out = c.patch, out
        self.grid = (math.ceil(size[0] / c.patch), math.ceil(size[1] / c.patch))
        self.patch_embed = zero_init(nn.Conv2d(channels, c.width, c.patch, stride=c.patch))
        nn.init.xavier_uniform_(self.patch_embed.weight.flatten(1))  # as the matrix that it is
        self.context = nn.Linear(context, c.width) if context else None
        init_xavier(self)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.modulation = zero_init(nn.Linear(c.width, 2 * c.width))
        self.head = zero_init(nn.Linear(c.width, c.patch**2 * out))
        self.registers = nn.Parameter(0.02 * torch.randn(c.registers, c.width)) if c.registers else None
        where = self.patch_embed.weight.device
        self.register_buffer("position", sincos(c.width, self.grid, where).float(), persistent=False)
        angles = rope_angles(self.grid, c.width // c.heads, where) if c.rope else None
        self.register_buffer("cos", None if angles is None else angles.cos(), persistent=False)
        self.register_buffer("sin", None if angles is None else angles.sin(), persistent=False)

    def forward(
        self, x: Tensor, embedding: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        height, width = x.shape[-2:]
        x = self.patch_embed(pad_to_multiple(x, self.patch)).flatten(2).transpose(1, 2)  # [B, L, W]
        x = x + self.position  # [B, L, W]
        patches = x.shape[1]
        if self.registers is not None:
            x = torch.cat([self.registers + embedding[:, None], x], dim=1)  # [B, R + L, W]
        if self.context is not None and tokens is not None and mask is not None:
            mask = F.pad(mask, (0, x.shape[1]), value=True)[:, None, None]  # [B, 1, 1, N + R + L]
            x = torch.cat([self.context(tokens), x], dim=1)  # [B, N + R + L, W]
        else:
            mask = None
        angles = [] if self.cos is None or self.sin is None else [self.cos, self.sin]
        for block in self.blocks:
            x = block(x, embedding, mask, angles)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)  # 2 x [B, 1, W]
        x = self.head(modulate(x[:, -patches:], shift, scale))  # [B, L, p p out]
        x = x.unflatten(2, (self.patch, self.patch, self.out)).unflatten(1, self.grid)  # [B, h, w, p, p, out]
        x = x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # [B, out, H, W]
        return x[..., :height, :width]
