"""What families share: the choice of a condition, and its embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, Condition, ConditionEmbedding, LimnerError, Model
from limner.networks.layers import at_least_float32
from limner.text.encoder import TextConfig
from limner.text.pretrained import text_encoder


def choose_condition(model: Model, *auto: str) -> str:
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
    return len(model.spec.classes) if choose_condition(model, "label") == "label" else 0


def check_guidance(model: Model, scale: float, largest: float) -> None:
    """Raises LimnerError for a guidance scale outside of those that the model learned, 1 to ``largest``."""
    if not 1 <= scale <= largest:
        raise LimnerError(
            f"This run of {model.family} learned guidance from 1 to {largest:g}, not {scale:g}: "
            "choose another --guidance."
        )


class ConditionEmbedder(nn.Module):
    """Labels -> an embedding [B, E]; texts -> tokens [B, L, D] and the projection of their summary [B, E]."""

    def __init__(self, kind: str, classes: int, embedding: int, text: TextConfig):
        super().__init__()
        self.kind, self.classes = kind, classes  # kind: none, label or text
        self.context = text.width if kind == "text" else 0  # channels of the tokens
        if kind == "label":
            self.label = nn.Embedding(classes + 1, embedding)  # the last row: no label
        if kind == "text":
            self.text: Any = text_encoder(text)
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


def embed_condition(model: Any, condition: Condition) -> ConditionEmbedding:
    """By the embedder of the model's network."""
    return model.network.embedder(condition)


def run_body(body: nn.Module, x: Tensor, time: Tensor, condition: ConditionEmbedding, *more: Any) -> Tensor:
    """Noisy x [B, C, H, W] and the embedding of its time [B, E] -> the body's output under a condition, in float32.

    ``more`` is what the body takes besides.
    """
    embedding = time if condition.embedding is None else time + condition.embedding  # [B, E]
    return at_least_float32(
        body(x, F.silu(embedding), condition.tokens, condition.mask, *more)
    )  # [B, out, H, W]


def embed_labels(model: Model, condition: Condition) -> ConditionEmbedding:
    """The labels themselves, -1 for none, for networks that embed them. Nothing if the model follows no labels."""
    if "label" not in model.follows:
        return ConditionEmbedding()
    none = torch.full((condition.size,), -1, device=model.device)
    return ConditionEmbedding(label=none if condition.label is None else condition.label)
