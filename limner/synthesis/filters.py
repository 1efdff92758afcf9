"""Reasons to leave a synthetic image out: a classifier doubts it, it looks like no real image, it is a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.core import Classifies, LimnerError, nearest
from limner.data import finder
from limner.evaluation.real import MIN_IMAGES, Real, open_real
from limner.evaluation.spaces import find_features
from limner.fields import PositiveShare, checked
from limner.inference import understand
from limner.inference.pipeline import Pipeline
from limner.metrics import neighbours
from limner.metrics.features import Features
from limner.progress import bar
from limner.synthesis.options import SynthesizeOptions

NEIGHBOUR = 3  # a real image's ball reaches to its third neighbour (Kynkaanniemi 2019)
REASONS = {
    "classifier": "the classifier did not give them the wanted class",
    "like": "they look like no real training image",
    "new": "they are closer to a training image than held-out images are",
}


@dataclass(frozen=True)
class Filter:
    """A reason to leave an image out."""

    name: str
    settings: dict[str, Any]  # all that its decisions depend on, for the provenance
    keep: Callable[[Tensor, list[str] | None], Tensor]  # [B, C, H, W] in [-1, 1], labels -> [B] bool


def apply_filters(
    images: Tensor, labels: list[str] | None, filters: Sequence[Filter]
) -> tuple[np.ndarray, dict[str, int]]:
    """[B] bool, which images every filter keeps, and how many images each filter is the first to refuse."""
    good, refused = np.ones(len(images), bool), {f.name: 0 for f in filters}
    for f in filters:
        rows = np.flatnonzero(good)
        if len(rows) == 0:
            break
        keep = f.keep(images[rows], None if labels is None else [labels[i] for i in rows]).cpu().numpy()
        good[rows[~keep]] = False
        refused[f.name] = int((~keep).sum())
    return good, refused


def like_filter(real: Real, source: str, features: str, weights: str = "", quiet: bool = False) -> Filter:
    """Keep what lies in the ball of a training image, as the precision of Kynkaanniemi 2019 counts."""
    if len(real.training) <= NEIGHBOUR:
        raise LimnerError(f"{source} has too few images for --like: give at least {MIN_IMAGES}.")
    by, points, settings = _describe(real, source, features, weights, quiet)
    reach = neighbours.radii(points, NEIGHBOUR)
    settings["k"] = NEIGHBOUR
    return Filter("like", settings, lambda images, _: neighbours.inside(by.of(images), points, reach))


def new_filter(real: Real, source: str, features: str, weights: str = "", quiet: bool = False) -> Filter:
    """Leave out what is closer to a training image than 95% of the held-out images (see ``memorised``)."""
    if len(real.held_out) < MIN_IMAGES:
        raise LimnerError(
            f"--new needs at least {MIN_IMAGES} held-out images to tell what is too close, but {source} has "
            f"{len(real.held_out)}: give a larger source, or train the run with a larger --data.holdout."
        )
    by, points, settings = _describe(real, source, features, weights, quiet)
    usual = neighbours.usual_distance(points, understand.over_data(real.held_out, by.of))
    settings["usual"] = float(usual)
    return Filter("new", settings, lambda images, _: ~neighbours.copies(by.of(images), points, usual))


def _describe(
    real: Real, source: str, features: str, weights: str, quiet: bool
) -> tuple[Features, Tensor, dict[str, Any]]:
    """Features by name, those of the training images [N, D], and what identifies them in the provenance."""
    by, training = find_features(features, weights), real.training
    with bar("describing real images", quiet) as watch:
        points = understand.over_data(training, by.of, watch)
    about = {"source": source, "fingerprint": training.fingerprint, "images": len(training)}
    return by, points, about | {"features": by.name, "hash": by.hash}


def classifier_filter(run: str, wanted: Iterable[str], confidence: float, device: str = "auto") -> Filter:
    """Keep images whose wanted class has at least the probability ``confidence`` by another run, classes by name."""
    checked(PositiveShare, confidence, "--confidence")
    pipeline = understand.open_run(run, Classifies, device)
    classes = pipeline.spec.classes
    wanted = set(wanted)
    if not wanted:
        raise LimnerError("--classifier needs labels to check, but these images are drawn without labels.")
    find = finder(classes)
    for name in sorted(name for name in wanted if find(name) < 0):
        raise LimnerError(
            f"The classifier {run} knows no class {name!r}.{nearest(name, classes)} It knows "
            f"{', '.join(classes[:12])}."
        )

    def keep(images: Tensor, labels: list[str] | None) -> Tensor:
        probabilities = understand.class_probabilities(pipeline, images)  # [B, K]
        index = torch.tensor([find(name) for name in labels or ()])
        return probabilities.gather(1, index[:, None])[:, 0] >= confidence

    return Filter("classifier", {"digest": pipeline.digest, "confidence": confidence}, keep)


def open_filters(
    pipeline: Pipeline, options: SynthesizeOptions, labels: Sequence[str], device: str, quiet: bool
) -> list[Filter]:
    """Raises LimnerError for a source or a run that cannot filter."""
    filters: list[Filter] = []
    if options.classifier:
        filters.append(classifier_filter(options.classifier, labels, options.confidence, device))
    for source, make in ((options.like, like_filter), (options.new, new_filter)):
        if source:
            real = open_real([source], pipeline.spec, pipeline.loaded.run.data, not quiet)
            filters.append(make(real, source, options.features, options.weights, quiet))
    return filters
