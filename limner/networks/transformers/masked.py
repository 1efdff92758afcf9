"""A transformer that guesses the hidden tokens of an image from the known ones, all at once (Chang 2022, MaskGIT).

A class is a token before those of the image. A text is encoded, and attended to in each block (Chang 2023, Muse).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from limner.networks.transformers.encoder_decoder import EncodedText, Stack
from limner.networks.transformers.sequence import SequenceBlocks, Transformer, layer_norm


class MaskedTransformer(nn.Module):
    """Tokens [B, L], ``codes`` where one is hidden -> logits [B, L, codes] in float32.

    ``text``: the integers that its pieces may be, the most places of a text, and the blocks of its encoder; None: no
    text. With blocks that norm after the sum this is BERT (Devlin 2019), as in TiTok's code (Yu 2024). Raises
    SettingsError for widths that do not divide.
    """

    def __init__(
        self, blocks: SequenceBlocks, codes: int, places: int, classes: int = 0,
        text: tuple[int, int, int] | None = None, std: float = 0.02,
    ):  # fmt: skip
        super().__init__()
        width, self.codes, self.classes = blocks.width, codes, classes
        self.encoder = Stack(replace(blocks, depth=text[2]), *text[:2]) if text else None
        labels = classes + 1 if classes else 0  # the last one: no class
        self.token, self.position = (
            nn.Embedding(codes + 1 + labels, width),
            nn.Embedding(places + bool(classes), width),
        )
        self.kind = nn.Embedding(2, width)  # of a token: a class, or of the image
        self.norm_in = layer_norm(width)
        self.transformer = Transformer(blocks, context=width if text else 0)
        self.norm_out = nn.Identity() if blocks.norms == "after" else layer_norm(width, blocks.norm_scales)
        self.head = nn.Linear(width, codes, blocks.bias)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=std)

    def read(self, text: Tensor, mask: Tensor) -> EncodedText:
        """Text ids [B, T] and their mask [B, T], True except at padding."""
        assert self.encoder is not None
        seen = mask[:, None, None]  # [B, 1, 1, T]
        return EncodedText(self.encoder(text, seen), seen)

    def forward(self, tokens: Tensor, label: Tensor | None = None, text: EncodedText | None = None) -> Tensor:
        """``label`` [B] in {0, ..., classes}, the last of which is no class."""
        kind = torch.ones_like(tokens)  # [B, L]
        if label is not None:
            tokens = torch.cat([self.codes + 1 + label[:, None], tokens], dim=1)  # [B, 1 + L]
            kind = torch.cat([torch.zeros_like(kind[:, :1]), kind], dim=1)  # [B, 1 + L]
        x = self.norm_in(self.token(tokens) + self.position.weight + self.kind(kind))  # [B, (1 +) L, W]
        context, seen = text or (None, None)
        x = self.norm_out(self.transformer(x, None, (), None, context, seen))  # [B, (1 +) L, W]
        return self.head(x if label is None else x[:, 1:]).float()  # [B, L, codes]


def hidden_after(tokens: int, calls: int) -> list[int]:
    """How many of ``tokens`` are still hidden after each call: N cos(pi k / 2 K), and each call draws at least one.

    Chang 2022, section 3.3. No more calls than tokens; none is hidden after the last.
    """
    calls, left = min(calls, tokens), [tokens]
    for k in range(1, calls):
        left.append(max(1, min(left[-1] - 1, math.floor(tokens * math.cos(math.pi * k / (2 * calls))))))
    return [*left[1:], 0] if tokens else []


def halton_order(grid: tuple[int, int]) -> Tensor:
    """The places [h w] of a grid, in the order in which Halton's sequence of bases 2 and 3 meets them (Besnier 2025).

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
