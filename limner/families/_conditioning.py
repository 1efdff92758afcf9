"""What families share: the choice of a condition, and its embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, Condition, Draws, LimnerError, Model
from limner.text.encoder import ByteEncoder, TextConfig


def choose(model: Model, *auto: str) -> str:
    """none, label or text: ``config.condition``, or for auto the first of ``auto`` that the data has.

    Removes the others from ``model.follows``. Raises LimnerError if the data has no such condition.
    """
    kind, spec = model.config.condition, model.spec
    has = {"text": spec.captions, "label": bool(spec.classes), "none": True}
    if kind == "auto":
        kind = next((choice for choice in auto if has[choice]), "none")
    if not has[kind]:
        what, remedy = {
            "label": ("labels", "sort the images into one folder for each class"),
            "text": ("captions", "put a .txt file beside each image"),
        }[kind]
        raise LimnerError(
            f"{model.family} cannot follow {what} with --model.condition {kind}, because the data has none: "
            f"{remedy}, or choose --model.condition none."
        )
    model.follows -= {"label", "text"} - {kind}
    return kind


def choose_classes(model: Model) -> int:
    """How many classes a model without text distinguishes: those of the data, or 0 as ``config.condition`` has it."""
    return len(model.spec.classes) if choose(model, "label") == "label" else 0


def with_labels(model: Model, condition: Condition, draws: Draws) -> Condition:
    """The condition; where ``model`` follows labels and is given none, each image's own stream draws one."""
    if condition.label is not None or "label" not in model.follows:
        return condition
    return replace(condition, label=draws.integers(len(model.spec.classes)))


@dataclass(frozen=True)
class ConditionEmbedding:
    """What B images should show, as a network reads it. Raises ValueError for tokens without a mask."""

    embedding: Tensor | None = None  # [B, E], added to that of the time
    tokens: Tensor | None = None  # [B, L, D], for cross-attention
    mask: Tensor | None = None  # [B, L], True except at padding

    def __post_init__(self) -> None:
        if (self.tokens is None) != (self.mask is None):
            raise ValueError("tokens need a mask, and a mask needs tokens")

    def __getitem__(self, rows: slice | Tensor) -> ConditionEmbedding:
        """Some of the rows, by a slice or by an index tensor."""
        return ConditionEmbedding(*(None if x is None else x[rows] for x in self._fields()))

    @staticmethod
    def cat(parts: Sequence[ConditionEmbedding]) -> ConditionEmbedding:
        """The rows of all parts, in order, so that one call can take them together.

        Tokens are padded to the longest with a False mask, which changes no result. Raises ValueError unless all
        parts have the same fields.
        """
        longest = max(0 if part.tokens is None else part.tokens.shape[1] for part in parts)
        columns = list(zip(*(part._padded(longest)._fields() for part in parts), strict=True))
        if any(len({x is None for x in column}) > 1 for column in columns):
            raise ValueError("condition embeddings of different kinds cannot be concatenated")
        return ConditionEmbedding(*(None if c[0] is None else torch.cat(c) for c in columns))

    def _fields(self) -> tuple[Tensor | None, ...]:
        return self.embedding, self.tokens, self.mask

    def _padded(self, length: int) -> ConditionEmbedding:
        if self.tokens is None or self.mask is None:
            return self
        more = length - self.tokens.shape[1]
        return replace(self, tokens=F.pad(self.tokens, (0, 0, 0, more)), mask=F.pad(self.mask, (0, more)))


class ConditionEmbedder(nn.Module):
    """Labels -> an embedding [B, E]; texts -> tokens [B, L, D] and the projection of their summary [B, E]."""

    def __init__(self, kind: str, classes: int, embedding: int, text: TextConfig):
        super().__init__()
        self.kind, self.classes = kind, classes  # kind: none, label or text
        if kind == "label":
            self.label = nn.Embedding(classes + 1, embedding)  # the last row: no label
        if kind == "text":
            self.text = ByteEncoder(text)
            self.pooled_projection = nn.Linear(self.text.pooled_width, embedding)

    def forward(self, condition: Condition, keep: Tensor | None = None) -> ConditionEmbedding:
        """``keep`` [B], False: this image goes without its condition. None keeps all."""
        if self.kind == "label":
            none = torch.full((condition.size,), self.classes, device=self.label.weight.device)
            label = none if condition.label is None else condition.label
            return ConditionEmbedding(self.label(label if keep is None else torch.where(keep, label, none)))
        if self.kind == "text":
            texts = condition.text or [""] * condition.size
            if keep is not None:
                texts = [text if kept else "" for text, kept in zip(texts, keep.tolist(), strict=True)]
            encoded = self.text(self.text.pieces(texts).to(self.pooled_projection.weight.device))
            return ConditionEmbedding(self.pooled_projection(encoded.pooled), encoded.tokens, encoded.mask)
        return ConditionEmbedding()

    def with_dropout(self, batch: Batch, dropout: float) -> ConditionEmbedding:
        """The conditions of a training batch, each left out with probability ``dropout``, for guidance."""
        return self(batch.condition, torch.rand(len(batch.image), device=batch.image.device) >= dropout)
