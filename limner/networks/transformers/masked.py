"""A transformer that guesses the hidden tokens of an image from the known ones, all at once (Chang 2022, MaskGIT).

A class, or the summary of a text, is a token before those of the image, and each block attends to the text (Chang 2023,
Muse).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from limner.networks.transformers.sequence import SequenceBlocks, Transformer, layer_norm


class MaskedTransformer(nn.Module):
    """Tokens [B, L], ``codes`` where one is hidden, and perhaps a condition -> logits [B, L, codes] in float32.

    ``prefix``: the condition has an embedding, [B, W]; ``context``: channels of its tokens, [B, T, D], or 0. With
    blocks that norm after the sum it is BERT (Devlin 2019), as in TiTok's code (Yu 2024). Raises SettingsError for
    widths that do not divide.
    """

    def __init__(
        self, blocks: SequenceBlocks, codes: int, positions: int, prefix: bool = False, context: int = 0,
        std: float = 0.02,
    ):  # fmt: skip
        super().__init__()
        width = blocks.width
        self.token, self.position = nn.Embedding(codes + 1, width), nn.Embedding(prefix + positions, width)
        self.kind = nn.Embedding(2, width)  # of a position: the condition, or a token
        self.norm_in = layer_norm(width)
        self.transformer = Transformer(blocks, context)
        self.norm_out = nn.Identity() if blocks.norms == "after" else layer_norm(width, blocks.norm_scales)
        self.head = nn.Linear(width, codes, blocks.bias)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=std)

    def forward(
        self, tokens: Tensor, embedding: Tensor | None = None, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """``mask`` [B, T] is False at the context's padding."""
        x = self.token(tokens) + self.kind.weight[1]  # [B, L, W]
        if embedding is not None:
            x = torch.cat([(embedding + self.kind.weight[0])[:, None], x], dim=1)  # [B, 1 + L, W]
        x = self.norm_in(x + self.position.weight)  # [B, (1 +) L, W]
        seen = None if mask is None else mask[:, None, None]  # [B, 1, 1, T]
        x = self.norm_out(self.transformer(x, None, (), None, context, seen))  # [B, (1 +) L, W]
        with torch.autocast(x.device.type, enabled=False):  # logits of float32, also under bf16
            return self.head(x[:, -tokens.shape[1] :].to(self.head.weight.dtype))  # [B, L, codes]


def hidden_after(tokens: int, calls: int) -> list[int]:
    """How many of ``tokens`` are still hidden after each call: N cos(pi k / 2 K), and each call draws at least one.

    Chang 2022, section 3.3. No more calls than tokens; none is hidden after the last.
    """
    calls, left = min(calls, tokens), [tokens]
    for k in range(1, calls):
        left.append(max(1, min(left[-1] - 1, math.floor(tokens * math.cos(math.pi * k / (2 * calls))))))
    return [*left[1:], 0] if tokens else []


def halton_order(grid: tuple[int, int]) -> Tensor:
    """The positions [h w] of a grid, in the order of Halton's sequence of bases 2 and 3 (Besnier 2025).

    Tokens that are drawn at once then lie far apart, so that they depend little on one another.
    """
    order: dict[int, None] = {}
    index = 0
    while len(order) < grid[0] * grid[1]:
        index += 1
        row, column = (_mirrored(index, base, side) for base, side in zip((2, 3), grid, strict=True))
        order[row * grid[1] + column] = None
    return torch.tensor(list(order))


def _mirrored(index: int, base: int, side: int) -> int:
    """The digits of ``index`` in ``base`` mirrored behind the point, in [0, 1), times ``side``, rounded down."""
    value, unit = 0, 1
    while index:
        index, digit = divmod(index, base)
        value, unit = value * base + digit, unit * base
    return side * value // unit
