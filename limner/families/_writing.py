"""What families share that draw the tokens of an image under a text: how the text is read, and unfinished images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Condition, Model
from limner.text.vocabulary import Vocabulary, VocabularyConfig


class TextReader(nn.Module):
    """B texts -> the pieces of each between a start and an end, [B, T], and their mask, True except at padding."""

    def __init__(self, config: VocabularyConfig):
        super().__init__()
        self.vocabulary = Vocabulary(config)
        self.pad, self.start, self.end = (self.vocabulary.size + i for i in range(3))
        self.rows, self.positions = (
            self.vocabulary.size + 3,
            config.length + 2,
        )  # integers there are, and most of a text

    def forward(self, texts: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        rows = [[self.start, *pieces, self.end] for pieces in self.vocabulary.encode(texts)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows], device=device)  # [B, T]
        return ids, ids != self.pad


def texts_of(model: Model, condition: Condition) -> list[str]:
    """What each image should show, in words: its caption, or the name of its class; "" for nothing."""
    if "text" in model.follows and condition.text is not None:
        return list(condition.text)
    if "label" in model.follows and condition.label is not None:
        return [model.spec.classes[i] if i >= 0 else "" for i in condition.label.tolist()]
    return [""] * condition.size


def texts_to_learn(model: Model, captions: Sequence[str]) -> Sequence[str]:
    """What a vocabulary learns from: the captions, or else class names, each twice, since a merge needs two."""
    if "text" in model.follows or model.device.type == "meta":
        return captions
    return 2 * model.spec.classes


def drop_texts(texts: Sequence[str], dropout: float) -> list[str]:
    """Each text, or with probability ``dropout`` the empty one; by torch's global generator."""
    kept = (torch.rand(len(texts)) >= dropout).tolist()
    return [text if keep else "" for text, keep in zip(texts, kept, strict=True)]


def picture_of_rows(tokenizer: Any, tokens: Tensor) -> Tensor:
    """The first rows of tokens [B, r w] of a grid [h, w] -> [B, C, H, W] in [-1, 1], 0 below them."""
    height, width = tokenizer.grid
    rows = tokens.unflatten(1, (-1, width))  # [B, r, w]
    whole = torch.cat([rows, rows[:, -1:].expand(-1, height - rows.shape[1], -1)], dim=1)  # [B, h, w]
    picture = tokenizer.detokenise(whole)  # [B, C, H, W]
    drawn = min(tokenizer.cell * rows.shape[1], picture.shape[2])
    return F.pad(picture[:, :, :drawn], (0, 0, 0, picture.shape[2] - drawn))
