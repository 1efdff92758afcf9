"""Scaled dot-product attention, how channels split into heads, and position embeddings."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

Order = Literal["split", "heads", "mixed"]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention over [B, heads, length, width].

    ``mask``, which broadcasts to [B, heads, queries, keys], is True to attend, or numbers added to the logits.
    `F.scaled_dot_product_attention`, but written out on a CPU, where for hundreds of tokens the fused kernel's
    backward pass takes up to three times as long, and for forward-mode derivatives, which the fused kernels lack.
    """
    plain = torch.compiler.is_compiling() or forward_ad.unpack_dual(q).tangent is None
    if q.device.type != "cpu" and plain:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, h, queries, keys]
    if mask is not None:
        weights = weights.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else weights + mask
    return weights.softmax(-1) @ v  # [B, h, queries, width]


def head_count(width: int, head_width: int) -> int:
    """The largest number of heads that divides ``width`` and leaves each at least about ``head_width`` channels."""
    most = max(1, width // max(1, head_width))
    return next(n for n in range(most, 0, -1) if width % n == 0)


def split_heads(qkv: Tensor, heads: int, order: Order) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L, 3C] -> queries, keys and values, [B, heads, L, C/heads] each.

    The channels are ordered as queries, keys, values (split: ADM at 64 pixels), by head and then as queries, keys,
    values (heads: Nichol 2021, Rombach 2022, ADM from 128 pixels on), or by head and channel (mixed: Karras 2022).
    With one head the first two are the same.
    """
    if order == "split":
        q, k, v = qkv.unflatten(2, (3, heads, -1)).unbind(2)
    elif order == "heads":
        q, k, v = qkv.unflatten(2, (heads, 3, -1)).unbind(3)
    else:
        q, k, v = qkv.unflatten(2, (heads, -1, 3)).unbind(4)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def sincos(width: int, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """[h w, width], a multiple of 4, in float64: sines and cosines of the column, then of the row (He 2022)."""
    frequency = 1e-4 ** (torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4))
    row, column = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    angles = [index.flatten()[:, None] * frequency for index in (column, row)]  # [h w, width / 4] each
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)


def rope_angles(grid: tuple[int, int], head_width: int, device: torch.device | None = None) -> Tensor:
    """Angles [h w, head_width / 2] of rotary position embeddings: half from the row, half from the column (Su 2021)."""
    frequency = 1e-4 ** (torch.arange(head_width // 4, device=device) / (head_width // 4))
    indices = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    return torch.cat([index.flatten()[:, None] * frequency for index in indices], dim=1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, heads, L, D] with its last ``len(cos)`` tokens rotated: each pair (i, i + D/2) by its angle."""
    first, rest = x.split([x.shape[2] - len(cos), len(cos)], dim=2)
    a, b = rest.chunk(2, dim=-1)
    return torch.cat([first, torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)], dim=2)
