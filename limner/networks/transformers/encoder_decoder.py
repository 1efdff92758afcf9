"""A text encoder, and a decoder of image tokens that attends to the encoded text: BART (Lewis 2020) with NormFormer's
norms and gated GELU as DALL-E mini (Dayma 2021) has it, or without causality, as Muse's (Chang 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limner.networks.transformers.sequence import Cache, SequenceBlocks, Transformer, caches, layer_norm


class EncodedText(NamedTuple):
    tokens: Tensor  # [B, T, W]
    mask: Tensor  # [B, 1, 1, T], True except at padding


class Stack(nn.Module):
    """Tokens [B, n] at positions of their own -> [B, n, W]: embeddings and their norm, blocks, a last norm."""

    def __init__(self, blocks: SequenceBlocks, rows: int, positions: int, context: int = 0):
        super().__init__()
        width = blocks.width
        self.token, self.position = nn.Embedding(rows, width), nn.Embedding(positions, width)
        self.norm_in, self.norm_out = layer_norm(width), layer_norm(width, blocks.norm_scales)
        self.transformer = Transformer(blocks, context)

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, text: EncodedText | None = None,
        caches: Sequence[Cache] = (),
    ) -> Tensor:  # fmt: skip
        """``mask`` as in ``Attention``; with ``caches``, the tokens are those that follow the positions in them."""
        start = caches[0].length if caches else 0
        x = self.token(tokens) + self.position.weight[start : start + tokens.shape[1]]  # [B, n, W]
        context, seen = text or (None, None)
        return self.norm_out(
            self.transformer(self.norm_in(x), mask, caches, None, context, seen)
        )  # [B, n, W]


class EncoderDecoder(nn.Module):
    """Text ids [B, T] and image tokens [B, L] -> logits [B, L, image_rows].

    Causal, the logits of each token are read from the text and the tokens before it; the first token follows the
    start of an image, which is token ``image_rows - 1``. Raises SettingsError for widths that do not divide.
    """

    def __init__(
        self, blocks: SequenceBlocks, encoder_depth: int, text_rows: int, text_positions: int, image_rows: int,
        image_positions: int, std: float = 0.02,
    ):  # fmt: skip
        super().__init__()
        self.start, self.positions, self.blocks = image_rows - 1, image_positions, blocks
        self.encoder = Stack(replace(blocks, depth=encoder_depth), text_rows, text_positions)
        self.decoder = Stack(blocks, image_rows, image_positions, context=blocks.width)
        self.head = nn.Linear(blocks.width, image_rows, bias=False)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=std)

    def read(self, text: Tensor, mask: Tensor) -> EncodedText:
        """Text ids [B, T] and their mask [B, T], True except at padding."""
        seen = mask[:, None, None]  # [B, 1, 1, T]
        return EncodedText(self.encoder(text, seen), seen)

    def write(self, tokens: Tensor, text: EncodedText, caches: Sequence[Cache] = ()) -> Tensor:
        """Tokens [B, n], the first or with ``caches`` the next -> logits [B, n, image_rows] of what follows each."""
        start, n = caches[0].length if caches else 0, tokens.shape[1]
        before = torch.ones(n, start + n, dtype=torch.bool, device=tokens.device).tril(
            start
        )  # [n, start + n]
        x = self.decoder(tokens, before if n > 1 else None, text, caches)  # [B, n, W]
        with torch.autocast(x.device.type, enabled=False):  # logits of float32, also under bf16
            return self.head(x.to(self.head.weight.dtype))  # [B, n, image_rows]

    def forward(self, text: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """The logits of all tokens [B, L] of images."""
        start = torch.full_like(tokens[:, :1], self.start)  # [B, 1]
        return self.write(
            torch.cat([start, tokens[:, :-1]], dim=1), self.read(text, mask)
        )  # [B, L, image_rows]

    def caches(self) -> list[Cache]:
        return caches(self.blocks, self.positions)
