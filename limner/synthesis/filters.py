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
from limner.evaluation.copying import few_held_out, why_not_measured
from limner.evaluation.images import Images
from limner.evaluation.real import MIN_IMAGES, Real, as_saved, open_real
from limner.evaluation.spaces import find_features
from limner.fields import PositiveShare, checked
from limner.inference import understand
from limner.inference.pipeline import Pipeline
from limner.metrics import neighbours
from limner.metrics.copies import Originals
from limner.metrics.memorised import threshold
from limner.progress import bar
from limner.synthesis.options import SynthesizeOptions

NEIGHBOUR = 3  # a real image's ball reaches to its third neighbour (Kynkaanniemi 2019)
REASONS = {
    "classifier": "the classifier did not give them the wanted class",
    "like": "they look like no real training image",
    "new": "they are nearer to a training image than held-out images are",
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
    by = find_features(features, weights)
    with bar("describing real images", quiet) as watch:
        points = understand.over_data(real.training, by.of, watch)
    reach = neighbours.radii(points, NEIGHBOUR)
    settings = _about(real, source) | {"features": by.name, "hash": by.hash, "k": NEIGHBOUR}
    return Filter("like", settings, lambda images, _: neighbours.inside(by.of(images), points, reach))


def new_filter(real: Real, source: str, quiet: bool = False) -> Filter:
    """Leave out what is nearer to a training image than 95% of the held-out images, changed copies too.

    See ``limner.metrics.copies``.
    """
    if absent := why_not_measured(real):
        raise LimnerError(
            f"--new cannot tell what is too near to an image of {source}: {absent}. Give a larger source, or train "
            "the run with a larger --data.holdout."
        )
    with bar("describing real images", quiet) as watch:
        originals = Originals(Images.of(real.training, real.training.spec.channels), watch)
    with bar("searching held-out images", quiet) as watch:
        held_out = Images.of(few_held_out(real.held_out), real.training.spec.channels)
        usual = threshold(originals.nearest(held_out, watch).distance)
    settings = _about(real, source) | {"usual": usual}
    return Filter("new", settings, lambda images, _: originals.nearest(as_saved(images)).distance > usual)


def _about(real: Real, source: str) -> dict[str, Any]:
    """What identifies the training images in the provenance."""
    return {"source": source, "fingerprint": real.training.fingerprint, "images": len(real.training)}


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

    def real(source: str) -> Real:
        return open_real([source], pipeline.spec, pipeline.loaded.run.data, not quiet)

    if options.like:
        filters.append(
            like_filter(real(options.like), options.like, options.features, options.weights, quiet)
        )
    if options.new:
        filters.append(new_filter(real(options.new), options.new, quiet))
    return filters
