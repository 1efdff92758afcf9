"""Feature extractors by name. Nothing here downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from limner.metrics import pretrained
from limner.metrics.features import Features, random_vgg
from limner.settings import LimnerError, nearest

FEATURES: dict[str, Callable[[str | Path], Features]] = {
    "random": lambda folder: random_vgg(),
    "inception": pretrained.inception,
    "clip": pretrained.clip,
    "dinov2": pretrained.dinov2,
}


def find(name: str, folder: str | Path = "") -> Features:
    """The feature extractor called ``name``; ``folder`` holds its weights if it needs any. Raises LimnerError."""
    if name in FEATURES:
        return FEATURES[name](folder)
    hint = nearest(name, FEATURES)
    raise LimnerError(f"There are no features {name!r}: name {', '.join(FEATURES)}, or a run.{hint}")
