"""Transformer blocks over a sequence of tokens, with masks, and with a cache that extends a sequence token by token.

GPT's blocks (Radford 2019), with sandwich norms (Ding 2021, CogView), NormFormer's (Shleifer 2021) or BERT's, with
attention to a context, and with gated GELU (Shazeer 2020). Shared by all families that predict tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.attention import attend
from limner.networks.checks import SettingsError, check_dropout
from limner.networks.layers import init_xavier_all

Norms = Literal["before", "both", "after"]
Angles = tuple[Tensor, Tensor]  # cosines and sines [n, head width / 2] of rotary positions


@dataclass(frozen=True)
class SequenceBlocks:
    may_be_zero: ClassVar[tuple[str, ...]] = ("hidden",)

    width: int = 192  # of a token
    depth: int = 6  # blocks
    heads: int = 3  # attention heads
    hidden: int = 0  # width of the MLP's hidden layer; 0: four times the token's
    # glu: gated, with norms of its own before and inside; quick_gelu: with OpenAI's approximation of GELU
    mlp: Literal["gelu", "quick_gelu", "glu"] = "gelu"
    norms: Norms = "before"  # LayerNorms before attention and MLP, before and after them, or after the sum
    norm_scales: bool = True  # false: norms before a linear layer have a bias and no scale, as DALL-E mini's
    bias: bool = True  # of linear layers
    qk_norm: bool = False  # queries and keys normalised, by RMS (Dehghani 2023)
    dropout: float = 0.0  # of what attention and MLP add


class Cache:
    """What the attention of one block has computed: keys and values [B, heads, ``room``, D], filled from the front."""

    def __init__(self, room: int):
        self.room, self.length = room, 0
        self.kept: tuple[Tensor, Tensor] | None = None
        self.context: tuple[Tensor, Tensor] | None = None  # keys and values of the context, once

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of the next positions, [B, heads, n, D] -> all so far, [B, heads, length, D], without a copy."""
        if self.kept is None:
            batch, heads, _, width = keys.shape
            self.kept = (
                keys.new_empty(batch, heads, self.room, width),
                values.new_empty(batch, heads, self.room, width),
            )
        end = self.length + keys.shape[2]
        for kept, new in zip(self.kept, (keys, values), strict=True):
            kept[:, :, self.length : end] = new
        self.length = end
        return self.kept[0][:, :, :end], self.kept[1][:, :, :end]


def caches(blocks: SequenceBlocks, room: int) -> list[Cache]:
    """An empty cache for each block, for sequences of at most ``room`` positions."""
    return [Cache(room) for _ in range(blocks.depth)]


def layer_norm(width: int, scale: bool = True) -> nn.LayerNorm:
    """A LayerNorm; without ``scale`` it has a bias alone."""
    norm = nn.LayerNorm(width)
    if not scale:
        norm.register_parameter("weight", None)
    return norm


class Attention(nn.Module):
    """Attention of a sequence to itself, or to a context of width ``context``."""

    def __init__(self, config: SequenceBlocks, context: int = 0):
        super().__init__()
        c, width = config, config.width
        if width % c.heads:
            raise SettingsError(f"a width of {width} does not divide into {c.heads} heads")
        self.heads = c.heads
        self.qkv = nn.Linear(width, width if context else 3 * width, c.bias)
        self.key_value = nn.Linear(context, 2 * width, c.bias) if context else None
        self.out = nn.Linear(width, width, c.bias)
        norms = [nn.RMSNorm(width // c.heads, eps=1e-6) if c.qk_norm else nn.Identity() for _ in "qk"]
        self.norm_q, self.norm_k = norms

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None, angles: Angles | None = None,
        context: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x [B, n, W], the next positions of the sequence where there is a cache.

        ``mask`` is True to attend: [n, keys], or [B, 1, 1, keys]; or, for a single position, the indices [m] of the
        keys that it sees, of which alone the cache is read.
        """
        if self.key_value is None:
            q, k, v = self._heads(self.qkv(x), 3)
            q, k = self._rotated(self.norm_q(q), angles), self._rotated(self.norm_k(k), angles)
            if cache is not None:
                k, v = cache.append(k, v)
        else:
            (q,) = self._heads(self.qkv(x), 1)
            q, (k, v) = self.norm_q(q), self._of_context(context, cache)
        if mask is not None and mask.dtype == torch.long:
            k, v, mask = k.index_select(2, mask), v.index_select(2, mask), None
        if (
            q.shape[2] == 1 and mask is None and not q.requires_grad
        ):  # one position: the fused kernel has fewer calls
            h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, 1, D]
        else:
            h = attend(q, k, v, mask)  # [B, heads, n, D]
        return self.out(h.transpose(1, 2).flatten(2))  # [B, n, W]

    def _of_context(self, context: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the context, [B, heads, N, D] each; computed once with a cache."""
        if cache is not None and cache.context is not None:
            return cache.context
        assert self.key_value is not None and context is not None
        k, v = self._heads(self.key_value(context), 2)
        k = self.norm_k(k)
        if cache is not None:
            cache.context = k, v
        return k, v

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, n, parts W] -> ``parts`` of [B, heads, n, D]."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _rotated(self, x: Tensor, angles: Angles | None) -> Tensor:
        """x [B, heads, n, D] rotated by its positions: each pair (i, i + D/2) by its angle (Su 2021)."""
        if angles is None:
            return x
        (cos, sin), (a, b) = angles, x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), in place of GELU in OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


class MLP(nn.Module):
    def __init__(self, config: SequenceBlocks):
        super().__init__()
        c, hidden = config, config.hidden or 4 * config.width
        self.activation = quick_gelu if c.mlp == "quick_gelu" else F.gelu
        self.up, self.down = nn.Linear(c.width, hidden, c.bias), nn.Linear(hidden, c.width, c.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))  # [B, n, W]


class GLU(nn.Module):
    """GELU of the first of two matrices times the second, with a norm before and one inside (Dayma 2021)."""

    def __init__(self, config: SequenceBlocks):
        super().__init__()
        c, hidden = config, config.hidden or 4 * config.width
        self.norm, self.inner_norm = layer_norm(c.width, c.norm_scales), layer_norm(hidden, c.norm_scales)
        self.gate, self.up = nn.Linear(c.width, hidden, c.bias), nn.Linear(c.width, hidden, c.bias)
        self.down = nn.Linear(hidden, c.width, c.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)  # [B, n, W]
        return self.down(self.inner_norm(F.gelu(self.gate(x)) * self.up(x)))  # [B, n, W]


class Residual(nn.Module):
    """x plus what ``part`` makes of it, with its norms."""

    def __init__(self, part: nn.Module, config: SequenceBlocks, norms: Norms):
        super().__init__()
        self.part, self.sum_first = part, norms == "after"
        self.before = layer_norm(config.width, config.norm_scales) if norms != "after" else nn.Identity()
        self.after = layer_norm(config.width) if norms != "before" else nn.Identity()
        self.dropout = nn.Dropout(check_dropout(config.dropout))

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        h = self.dropout(self.part(self.before(x), *arguments))  # [B, n, W]
        return self.after(x + h) if self.sum_first else x + self.after(h)  # [B, n, W]


class Block(nn.Module):
    """Self-attention, perhaps attention to a context, and an MLP."""

    def __init__(self, config: SequenceBlocks, context: int = 0):
        super().__init__()
        c = config
        self.attention = Residual(Attention(c), c, c.norms)
        self.cross_attention = Residual(Attention(c, context), c, c.norms) if context else None
        self.mlp: nn.Module = GatedResidual(c) if c.mlp == "glu" else Residual(MLP(c), c, c.norms)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None, angles: Angles | None = None,
        context: Tensor | None = None, context_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        x = self.attention(x, mask, cache, angles)  # [B, n, W]
        if self.cross_attention is not None:
            x = self.cross_attention(x, context_mask, cache, None, context)  # [B, n, W]
        return self.mlp(x)  # [B, n, W]


class GatedResidual(nn.Module):
    """x plus its GLU, which has the norms."""

    def __init__(self, config: SequenceBlocks):
        super().__init__()
        self.part, self.dropout = GLU(config), nn.Dropout(check_dropout(config.dropout))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.part(x))  # [B, n, W]


class Transformer(nn.Module):
    """Blocks over a sequence [B, n, W]; what follows them, such as a last norm, is the caller's.

    Weights are Glorot-uniform and biases 0; what a block adds is 0 at first.
    """

    def __init__(self, config: SequenceBlocks, context: int = 0):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, context) for _ in range(config.depth))
        for name, part in self.named_modules():
            if isinstance(part, nn.Linear) and name.endswith((".out", ".down")) and config.norms == "before":
                nn.init.zeros_(part.weight)
        init_xavier_all(self)

    def forward(
        self, x: Tensor, masks: Sequence[Tensor | None] | Tensor | None = None, caches: Sequence[Cache] = (),
        angles: Angles | None = None, context: Tensor | None = None, context_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """``masks``: as in ``Attention``, one for all blocks or one each; with ``caches``, x are the next positions."""
        each = masks if isinstance(masks, Sequence) else [masks] * len(self.blocks)
        kept: Sequence[Cache | None] = caches or [None] * len(self.blocks)
        for block, mask, cache in zip(self.blocks, each, kept, strict=True):
            x = block(x, mask, cache, angles, context, context_mask)
        return x
