"""A transformer over patches that another run has learnt, taken over: from dino, mae or vit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from limner.core import LimnerError, Model
from limner.networks.transformers.patch import PatchConfig, PatchTransformer


def settings_of(others: Mapping[str, Model], family: str, run: str) -> PatchConfig:
    """The settings of the transformer of ``others["pretrained"]``, its patches in pixels. Raises LimnerError."""
    body = getattr(others["pretrained"], "body", None)
    if not isinstance(body, PatchTransformer):
        raise LimnerError(
            f"{family} cannot start from {run}, which has no transformer over patches: name a run of dino, mae or vit."
        )
    return replace(body.config, patch=body.patch)


def take_over(model: Model, body: PatchTransformer, others: Mapping[str, Model]) -> None:
    """Its weights into ``body`` of ``model``. Raises LimnerError where they do not fit."""
    theirs = others["pretrained"].body
    assert isinstance(theirs, PatchTransformer)
    try:
        body.take_over(theirs)
    except ValueError as error:
        raise LimnerError(
            f"{model.family} cannot start from {model.config.pretrained}: {error}; set --data.channels to its own."
        ) from None
