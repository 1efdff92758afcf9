"""How much a run has understood of images: what their labels say of its features and its classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limner.core import Classifies, Describes, LimnerError
from limner.data import Data
from limner.distributed import ALONE, Ranks
from limner.inference.pipeline import Pipeline
from limner.inference.understand import (
    can,
    describe,
    labels_among,
    open_seen,
    over,
    probabilities,
    refusal,
    share,
    unknown_class,
)
from limner.metrics import probes
from limner.progress import bar

DRAWS = 5  # random choices of few labelled images

Known = tuple[Tensor, Tensor, Tensor, Tensor]  # features and labels to learn from; others to tell


def measure(
    pipeline: Pipeline,
    sources: Sequence[str],
    training: Data,
    held_out: Data,
    per_class: int = 0,
    seed: int = 0,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """How much of the held-out images' labels a run has understood; {} where it cannot say or there are none.

    ``knn_accuracy`` and ``probe_accuracy`` of its features, taught by the training part's labels; with
    ``per_class`` also ``few_probe_accuracy``, taught by so many of each class; ``accuracy`` of its own classes.
    Labels are read also of a run that was trained without them: they measure, they do not train. Of several
    processes all look at images, and the first measures; the others get {}. Raises LimnerError.
    """
    describes, classifies = can(pipeline, Describes), can(pipeline, Classifies)
    if per_class and not describes:
        raise refusal(pipeline, Describes)
    if per_class < 0:
        raise LimnerError(f"Cannot probe with {per_class} labelled images a class: ask for at least one.")
    if not (describes or classifies):
        return {}
    with ranks.in_turn():
        training, held_out = with_labels(pipeline, sources, [training, held_out], progress=not quiet)
    if training.labels is None or held_out.labels is None or not len(held_out):
        if per_class:
            raise LimnerError(f"There is nothing to probe with: {why_not(held_out)}.")
        return {}
    told, truth, n = dict[str, Any](), torch.from_numpy(held_out.labels), len(held_out)
    if describes:
        see, part = partial(describe, pipeline), len(training) / (len(training) + n)
        with bar(f"describing {len(training) + n:,} images", quiet) as watch:
            x = over(training, see, lambda done: watch(part * done), ranks)
            y = over(held_out, see, lambda done: watch(part + (1 - part) * done), ranks)
        if ranks.first:
            known = x, torch.from_numpy(training.labels), y, truth
            told |= _probe(known, per_class, seed, quiet)
    if classifies and describes and (name := unknown_class(held_out, pipeline.spec.classes)):
        if ranks.first:
            warnings.warn(f"The run knows no class {name!r}: only its features are measured.", stacklevel=2)
    elif classifies:
        truth = labels_among(held_out, pipeline.spec.classes)
        with bar(f"classifying {n:,} images", quiet) as watch:
            guesses = over(held_out, partial(probabilities, pipeline), watch, ranks).argmax(1)
        if ranks.first:
            told["accuracy"] = share((guesses == truth).double().mean().item(), n)
    return told


def _probe(known: Known, per_class: int, seed: int, quiet: bool) -> dict[str, Any]:
    n, told = len(known[-1]), dict[str, Any]()
    with bar("probing", quiet) as watch:
        told["knn_accuracy"] = share(probes.knn_accuracy(*known), n)
        watch(0.2)
        told["probe_accuracy"] = share(probes.probe_accuracy(*known), n)
        watch(0.6)
        if per_class:
            mean, spread = probes.few_probe_accuracy(*known, per_class, DRAWS, seed)
            few = {"value": mean, "spread": spread, "n": n, "labels_per_class": per_class, "draws": DRAWS}
            told["few_probe_accuracy"] = few
    return told


def with_labels(
    pipeline: Pipeline, sources: Sequence[str], parts: Sequence[Data], progress: bool = True
) -> list[Data]:
    """Parts of what the run sees of a source, with their labels even if it was trained without.

    The parts stay those that training made: labels, had they been read, would have split the source otherwise.
    """
    if pipeline.loaded.run.data.labels:
        return list(parts)
    whole = open_seen(pipeline, sources, progress)
    if whole.labels is None:
        return list(parts)
    for part in parts:
        if part.rows.max(initial=-1) >= len(whole) or [whole.names[i] for i in part.rows] != part.names:
            raise LimnerError(f"The images in {', '.join(sources)} changed meanwhile: run it again.")
    return [
        replace(part, labels=whole.labels[part.rows], spec=replace(part.spec, classes=whole.spec.classes))
        for part in parts
    ]


def why_not(held_out: Data) -> str:
    """Why labels measure nothing here, and what to do."""
    if not len(held_out):
        return (
            "no image is held out to measure on, which takes 20 images and a share --data.holdout in training"
        )
    return "these images have no labels, put them into one folder a class"


ABOUT = {
    "accuracy": "accuracy of its classes",
    "knn_accuracy": "accuracy of its features' 20 nearest",
    "probe_accuracy": "accuracy of a linear probe",
}


def rows(told: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What ``measure`` found as lines of evaluate's table."""
    table = []
    for name, about in ABOUT.items():
        if name in told:
            v = told[name]
            interval = f"{v['low']:.1%} to {v['high']:.1%}"
            table.append((f"{about}, {v['n']:,} held out", f"{v['value']:.1%}", interval, ""))
    if "few_probe_accuracy" in told:
        v = told["few_probe_accuracy"]
        about = f"the same from {v['labels_per_class']} labels a class, {v['draws']} draws"
        table.append((about, f"{v['value']:.1%} ± {v['spread']:.1%}", "", ""))
    return table
