"""Text of any language for a generator to be trained along with: UTF-8 bytes under a small transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.attention import attend, head_count
from limner.text.pieces import PAD, PIECE, START


class Layer(nn.Module):
    """Self-attention and a two-layer perceptron, each after a norm and added to its input."""

    def __init__(self, width: int, head: int):
        super().__init__()
        self.heads = head_count(width, head)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        for last in (self.out, self.down):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3 * self.heads, -1)).transpose(1, 2).chunk(3, dim=1)
        h = attend(q, k, v, mask[:, None, None]).transpose(1, 2).flatten(2)  # [B, L, W]
        x = x + self.out(h)  # [B, L, W]
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # [B, L, W]


class TextEncoder(nn.Module):
    """Pieces of text -> tokens [B, L, width], their mask [B, L] and a pooled vector [B, slots width].

    A piece's embedding is a sum over its bytes, each by its value and its place, so two words differ from
    the first step on, in any language, with no vocabulary. A perceptron over each piece and its two
    neighbours then makes phrases, such as a colour with its noun, before attention has learned to. Each of
    the pooled ``slots`` looks for something else in the tokens: a mean would forget what belongs to what.
    """

    def __init__(self, width: int, layers: int, length: int, head: int = 32, slots: int = 8):
        super().__init__()
        self.byte = nn.Embedding(PIECE * (START + 1), width)
        self.position = nn.Parameter(0.5 * torch.randn(length + 1, width))
        self.phrase = nn.Sequential(
            nn.LayerNorm(3 * width), nn.Linear(3 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.layers = nn.ModuleList(Layer(width, head) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.slots = nn.Parameter(torch.randn(slots, width))
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.normal_(self.byte.weight, std=0.4)

    def forward(self, pieces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mask = (pieces != PAD).any(2)  # [B, L]
        places = torch.arange(PIECE, device=pieces.device) * (START + 1)
        x = self.byte(pieces + places).sum(2) * mask[..., None]  # [B, L, W]
        near = torch.cat([F.pad(x, (0, 0, 1, -1)), x, F.pad(x, (0, 0, -1, 1))], dim=2)  # [B, L, 3W]
        x = x + self.phrase(near) + self.position[: x.shape[1]]  # [B, L, W]
        for layer in self.layers:
            x = layer(x, mask)  # [B, L, W]
        x = self.norm(x) * mask[..., None]  # [B, L, W]
        slots = self.slots[None, None].expand(len(x), -1, -1, -1)  # [B, 1, S, W]
        pooled = attend(slots, self.key(x)[:, None], self.value(x)[:, None], mask[:, None, None])
        return x, mask, pooled.flatten(1)
