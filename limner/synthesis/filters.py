"""Reasons to leave a synthetic image out: the classifier doubts it, it looks like nothing real, it is a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.core import Classifies, LimnerError, nearest
from limner.data import batches
from limner.evaluation.evaluate import LEAST, Real, find_features
from limner.inference import understand
from limner.metrics import neighbours
from limner.metrics.features import Features
from limner.progress import bar

NEIGHBOUR = 3  # a real image's ball reaches to its third neighbour (Kynkaanniemi 2019)
REASONS = {
    "classifier": "the classifier did not take them for what was asked",
    "like": "they look like no real training image",
    "new": "they are nearer to a training image than held-out images are",
}


@dataclass(frozen=True)
class Filter:
    """A reason to leave an image out."""

    name: str
    about: dict[str, Any]  # for the provenance: two filters that decide alike say the same
    keep: Callable[[Tensor, list[str] | None], Tensor]  # [B, C, H, W] in [-1, 1], labels -> [B] bool


def sieve(
    images: Tensor, labels: list[str] | None, filters: Sequence[Filter], refused: dict[str, int]
) -> np.ndarray:
    """[B] which images every filter keeps; each is counted for the first that refuses it."""
    good = np.ones(len(images), bool)
    for f in filters:
        rows = np.flatnonzero(good)
        if len(rows) == 0:
            break
        keep = f.keep(images[rows], None if labels is None else [labels[i] for i in rows]).cpu().numpy()
        good[rows[~keep]] = False
        refused[f.name] += int((~keep).sum())
    return good


def alike(real: Real, source: str, features: str, weights: str = "", quiet: bool = False) -> Filter:
    """Keep what lies in the ball of some training image (the precision of Kynkaanniemi 2019, for each image)."""
    by = find_features(features, weights)
    if len(real.training) <= NEIGHBOUR:
        raise LimnerError(f"{source} has too few images for --like: give at least {LEAST}.")
    points = _points(by, real, quiet)
    reach = neighbours.radii(points, NEIGHBOUR)

    def keep(images: Tensor, labels: list[str] | None) -> Tensor:
        return neighbours.inside(by.of([images]), points, reach)

    return Filter("like", _about(by, real, source) | {"k": NEIGHBOUR}, keep)


def unseen(real: Real, source: str, features: str, weights: str = "", quiet: bool = False) -> Filter:
    """Leave out what lies nearer to a training image than 95% of the held-out images do (see ``memorised``)."""
    by = find_features(features, weights)
    if len(real.held_out) < LEAST:
        raise LimnerError(
            f"--new needs at least {LEAST} held-out images to know how near is too near, and {source} has "
            f"{len(real.held_out)}: give a larger source, or train the run with a larger --data.holdout."
        )
    points = _points(by, real, quiet)
    usual = neighbours.usual_distance(points, by.of(batches(real.held_out)))

    def keep(images: Tensor, labels: list[str] | None) -> Tensor:
        return ~neighbours.copies(by.of([images]), points, usual)

    return Filter("new", _about(by, real, source) | {"usual": float(usual)}, keep)


def _points(by: Features, real: Real, quiet: bool) -> Tensor:
    with bar("describing real images", quiet) as watch:
        return understand.over(real.training, by.of, watch)


def _about(by: Features, real: Real, source: str) -> dict[str, Any]:
    return {
        "source": source, "fingerprint": real.training.fingerprint, "images": len(real.training),
        "features": by.name, "hash": by.hash,
    }  # fmt: skip


def confident(run: str, asked: Iterable[str], confidence: float, device: str = "auto") -> Filter:
    """Keep what another run gives at least so much probability of being what was asked for, classes by name."""
    if not 0 < confidence <= 1:
        raise LimnerError(f"--confidence is a probability above 0 and up to 1, not {confidence:g}.")
    pipeline = understand.load(run, Classifies, device)
    classes = pipeline.spec.classes
    asked = set(asked)
    if not asked:
        raise LimnerError("--classifier needs labels to check, and these images are asked for without any.")
    for name in sorted(asked - set(classes)):
        raise LimnerError(
            f"The classifier {run} knows no class {name!r}.{nearest(name, classes)} It knows "
            f"{', '.join(classes[:12])}."
        )

    def keep(images: Tensor, labels: list[str] | None) -> Tensor:
        probability = understand.probabilities(pipeline, [images])  # [B, K]
        index = torch.tensor([classes.index(name) for name in labels or ()])
        return probability.gather(1, index[:, None])[:, 0] >= confidence

    about = {"digest": pipeline.loaded.header["digest"], "confidence": confidence}
    return Filter("classifier", about, keep)
