"""How much a run has understood of images: what their labels say of its features and its classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from limner.core import Classifies, Describes, LimnerError
from limner.data import Data
from limner.distributed import ALONE, Ranks
from limner.evaluation.real import MIN_IMAGES, Real, with_labels
from limner.evaluation.results import FewLabels, Understanding
from limner.inference import understand
from limner.inference.pipeline import Pipeline
from limner.inference.understand import Accuracy, over_data, supports, unsupported
from limner.metrics import probes
from limner.progress import bar, part

DRAWS = 5  # random choices of few labelled images


def measure(
    pipeline: Pipeline, sources: Sequence[str], real: Real, per_class: int = 0, seed: int = 0, quiet: bool = False,
    ranks: Ranks = ALONE,
) -> Understanding | None:  # fmt: skip
    """How well a run's features and classes predict the held-out images' labels; None without either, or labels.

    ``knn_accuracy`` and ``probe_accuracy`` of its features, trained on the training part's labels; with
    ``per_class`` also ``few_probe_accuracy``, trained on that many of each class; ``accuracy`` of its own classes.
    Labels are read also for a run that was trained without them: they measure, they do not train. Of several
    processes all compute features, and the first measures; the others get None. Raises LimnerError.
    """
    describes, classifies = supports(pipeline, Describes), supports(pipeline, Classifies)
    if per_class and not describes:
        raise unsupported(pipeline, Describes)
    if not (describes or classifies):
        return None
    with ranks.in_turn():
        real = with_labels(pipeline, sources, real, progress=not quiet)
    if real.training.labels is None or real.held_out.labels is None or not len(real.held_out):
        if per_class:
            raise LimnerError(f"There is nothing to probe with: {no_labels(real.held_out)}.")
        return None
    result = Understanding()
    if describes:
        network, first = partial(understand.extract_features, pipeline), len(real.training) / len(real)
        with bar(f"describing {len(real):,} images", quiet) as watch:
            training = over_data(real.training, network, part(watch, 0, first), ranks)
            held_out = over_data(real.held_out, network, part(watch, first, 1 - first), ranks)
        if ranks.first:
            result = _probe(training, held_out, real, per_class, seed, quiet)
    if classifies and describes and (name := understand.unknown_class(real.held_out, pipeline.spec.classes)):
        if ranks.first:
            warnings.warn(f"The run knows no class {name!r}: only its features are measured.", stacklevel=2)
    elif classifies:
        truth = understand.class_indices(real.held_out, pipeline.spec.classes)
        with bar(f"classifying {len(truth):,} images", quiet) as watch:
            network = partial(understand.class_probabilities, pipeline)
            correct = over_data(real.held_out, network, watch, ranks).argmax(1) == truth
        result = replace(result, accuracy=Accuracy.of(correct.double().mean().item(), len(truth)))
    return result if ranks.first else None


def _probe(
    training: Tensor, held_out: Tensor, real: Real, per_class: int, seed: int, quiet: bool
) -> Understanding:
    """From the features of the training images [N, D] and of the held-out ones [M, D]."""
    assert real.training.labels is not None and real.held_out.labels is not None
    labels, truth = torch.from_numpy(real.training.labels), torch.from_numpy(real.held_out.labels)
    known, n = (training, labels, held_out, truth), len(truth)
    with bar("probing", quiet) as watch:
        knn = Accuracy.of(probes.knn_accuracy(*known), n)
        watch(0.2)
        linear = Accuracy.of(probes.probe_accuracy(*known), n)
        watch(0.6)
        few = None
        if per_class:
            mean, spread = probes.few_probe_accuracy(*known, per_class, DRAWS, seed)
            few = FewLabels(mean, spread, n, per_class, DRAWS)
    return Understanding(knn, linear, few)


def no_labels(held_out: Data) -> str:
    """Why there are no labels to measure with, and what to do."""
    if not len(held_out):
        return f"no image is held out, which takes {MIN_IMAGES} images and --data.holdout above 0 in training"
    return "these images have no labels: put them into one folder per class"
