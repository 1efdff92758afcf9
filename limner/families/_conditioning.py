"""What families have in common: a label or a text to follow, and how a network is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limner.core import Batch, Condition, LimnerError, Model
from limner.text.encoder import TextEncoder
from limner.text.pieces import to_pieces


@contextmanager
def building(model: Model) -> Iterator[None]:
    """Makes a network's ValueError, for sizes that do not fit together, the person's LimnerError."""
    try:
        yield
    except ValueError as error:
        raise LimnerError(f"{model.family} cannot be built: {error}; change its --model settings.") from None


def choose(model: Model, *auto: str) -> str:
    """none, label or text: as ``config.condition`` asks, or with auto the first of ``auto`` that the data has.

    ``model.follows`` loses what is not chosen. Raises LimnerError.
    """
    asked, spec = model.config.condition, model.spec
    if asked == "auto":
        has = {"text": spec.captions, "label": bool(spec.classes)}
        asked = next((kind for kind in auto if has[kind]), "none")
    if asked == "label" and not spec.classes:
        raise LimnerError(
            f"{model.family} was asked for labels with --model.condition label, but the data has none: "
            "sort the images into one folder a class or choose --model.condition none."
        )
    if asked == "text" and not spec.captions:
        raise LimnerError(
            f"{model.family} was asked for captions with --model.condition text, but the data has none: "
            "put a .txt file beside each image or choose --model.condition none."
        )
    model.follows -= {"label", "text"} - {asked}
    return asked


@dataclass(frozen=True)
class Described:
    """A condition as a network reads it."""

    embedding: Tensor | None = None  # [B, E], added to the time's
    tokens: Tensor | None = None  # [B, L, D]
    mask: Tensor | None = None  # [B, L]: what is no padding

    def __getitem__(self, rows: slice | Tensor) -> Described:
        """That of some images."""
        return Described(*(None if x is None else x[rows] for x in (self.embedding, self.tokens, self.mask)))


class Conditioned(nn.Module):
    """A network that is told of a label by an embedding [E], of a text by tokens [L, D] and what they come to [E]."""

    def __init__(
        self,
        condition: str,
        classes: int,
        embedding: int,
        text_width: int,
        text_layers: int,
        text_length: int,
    ):
        super().__init__()
        self.condition, self.classes, self.text_length = condition, classes, text_length
        if condition == "label":
            self.label = nn.Embedding(classes + 1, embedding)  # the last one: no label
        if condition == "text":
            self.text = TextEncoder(text_width, text_layers, text_length)
            self.pooled = nn.Linear(self.text.slots.numel(), embedding)

    def described(self, batch: Batch, drop: float) -> Described:
        """The conditions of a training batch, a share of ``drop`` left out, as guidance will need it."""
        return self.describe(batch.condition, torch.rand(len(batch.image), device=batch.image.device) >= drop)

    def describe(self, condition: Condition, keep: Tensor | None = None) -> Described:
        """The condition's part of the input; images that ``keep`` [B] is False for go without."""
        if self.condition == "label":
            none = torch.full((condition.size,), self.classes, device=self.label.weight.device)
            label = none if condition.label is None else condition.label
            return Described(self.label(label if keep is None else torch.where(keep, label, none)))
        if self.condition == "text":
            text = condition.text or [""] * condition.size
            if keep is not None:
                text = [words if kept else "" for words, kept in zip(text, keep.tolist(), strict=True)]
            tokens, mask, pooled = self.text(to_pieces(text, self.text_length).to(self.pooled.weight.device))
            return Described(self.pooled(pooled), tokens, mask)
        return Described()
