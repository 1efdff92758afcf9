"""What a small model gives at fixed seeds: images drawn, images drawn again, features, classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from limner.core import Condition, Draws, Generates, Model

TEXTS = ["a red circle", "two blue squares", "", "一只猫"]


def condition_of(model: Model, n: int = 4) -> Condition:
    spec = model.spec
    return Condition(
        n,
        label=torch.arange(n) % len(spec.classes) if spec.classes else None,
        text=TEXTS[:n] if spec.captions else None,
    )


def picture() -> torch.Tensor:
    """[4, 3, 16, 16] in [-1, 1], smooth."""
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")


def bytes_of(image: torch.Tensor) -> np.ndarray:
    return (image.float().clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8).numpy()


@torch.inference_mode()
def outcome(model: Model, knobs: dict[str, Any]) -> dict[str, np.ndarray]:
    """By its kind: images as bytes, features and logits as numbers."""
    found = {}
    if isinstance(model, Generates):
        sampling = model.Sampling(**knobs)
        *_, last = model.sample(condition_of(model), sampling, Draws(range(4)))
        found["drawn"] = bytes_of(last.picture())
    if hasattr(model, "encode") and hasattr(model, "decode"):
        found["decoded"] = bytes_of(model.decode(model.encode(picture())))
    if hasattr(model, "features"):
        found["features"] = model.features(picture()).float().numpy()
    if hasattr(model, "classify"):
        found["classes"] = model.classify(picture()).float().numpy()
    return found
