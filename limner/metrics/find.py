"""Feature extractors by name. Nothing here downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from limner.metrics import clip_features, pretrained
from limner.metrics.features import Features, random_vgg
from limner.settings import LimnerError, nearest

OWN: dict[str, Callable[[], Features]] = {"random": random_vgg, "imagenet": pretrained.imagenet}
WITH_WEIGHTS: dict[str, Callable[[str | Path], Features]] = {  # of a file or folder
    "inception": pretrained.inception, "clip": pretrained.clip, "dinov2": pretrained.dinov2,
}  # fmt: skip
FEATURES = (*OWN, *WITH_WEIGHTS)
OF_CLIPS = ("random", "i3d")  # those that clips have; frames have all of FEATURES


def find(name: str, folder: str | Path = "") -> Features:
    """The feature extractor called ``name``; ``folder`` holds its weights if it needs any. Raises LimnerError."""
    if name in WITH_WEIGHTS:
        return WITH_WEIGHTS[name](folder)
    if name in OWN and folder:
        raise LimnerError(f"The features {name} take no weights from a file: leave --weights {folder} out.")
    if name in OWN:
        return OWN[name]()
    if name in OF_CLIPS:
        raise LimnerError(
            f"The features {name} describe clips, and these are still images: name {', '.join(FEATURES)}, or a run."
        )
    hint = nearest(name, FEATURES)
    raise LimnerError(f"There are no features {name!r}: name {', '.join(FEATURES)}, or a run.{hint}")


def find_of_clips(name: str, weights: str | Path = "") -> Features:
    """The features of clips called ``name``, one of OF_CLIPS. Raises LimnerError."""
    if name == "i3d":
        return clip_features.i3d(weights)
    if weights:
        raise LimnerError(f"The features {name} take no weights from a file: leave --weights {weights} out.")
    return clip_features.random_clips()
