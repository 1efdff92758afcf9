"""Feature extractors by name. Nothing here downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from limner.metrics import pretrained
from limner.metrics.features import Features, random_vgg
from limner.settings import LimnerError, nearest

OWN: dict[str, Callable[[], Features]] = {"random": random_vgg, "imagenet": pretrained.imagenet}
WITH_WEIGHTS: dict[str, Callable[[str | Path], Features]] = {  # of a file or folder
    "inception": pretrained.inception, "clip": pretrained.clip, "dinov2": pretrained.dinov2,
}  # fmt: skip
FEATURES = (*OWN, *WITH_WEIGHTS)


def find(name: str, folder: str | Path = "") -> Features:
    """The feature extractor called ``name``; ``folder`` holds its weights if it needs any. Raises LimnerError."""
    if name in WITH_WEIGHTS:
        return WITH_WEIGHTS[name](folder)
    if name in OWN and folder:
        raise LimnerError(f"The features {name} take no weights from a file: leave --weights {folder} out.")
    if name in OWN:
        return OWN[name]()
    hint = nearest(name, FEATURES)
    raise LimnerError(f"There are no features {name!r}: name {', '.join(FEATURES)}, or a run.{hint}")
