"""What a run that compares images with texts makes of them: embeddings, and classes by their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from limner.core import Compares, LimnerError
from limner.inference.capabilities import apply_network
from limner.inference.networks import open_run
from limner.inference.pipeline import Pipeline
from limner.inference.prompts import warn_if_cut, warn_of_scripts
from limner.metrics.matches import ensemble, zero_shot_logits

BATCH = 256  # texts at once
NAME = "{}"  # in a template: the name of a class


def open_comparer(run: str | Path, device: str = "auto") -> Pipeline:
    """A run that Compares. Raises LimnerError, which names families, for another."""
    return open_run(run, Compares, device)


def embed_images(pipeline: Pipeline, images: Tensor) -> Tensor:
    """[B, C, H, W] of any size and channels -> float32 [B, D] of length 1, on the CPU."""
    assert isinstance(pipeline.model, Compares)
    return apply_network(pipeline.loaded, pipeline.model.embed_images, images)


def embed_texts(pipeline: Pipeline, texts: Sequence[str]) -> Tensor:
    """N texts -> float32 [N, D] of length 1, on the CPU. Warns of texts that are too long, or in another script."""
    assert isinstance(pipeline.model, Compares)
    warn_if_cut(pipeline.model, texts)
    warn_of_scripts(texts, pipeline.scripts)
    with torch.inference_mode():
        parts = [pipeline.model.embed_texts(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
    return torch.cat(parts).float().cpu()


def names_of(labels: str | Sequence[str]) -> tuple[str, ...]:
    """The classes that a list of names says, or one text with commas between them.

    Raises LimnerError for less than two, and for a name that stands there twice.
    """
    given = re.split("[,，、]", labels) if isinstance(labels, str) else labels
    names = tuple(name for name in map(str.strip, given) if name)
    if len(names) < 2:
        raise LimnerError(
            f"--labels names {len(names)} class{'' if len(names) == 1 else 'es'}: name at least two, with commas "
            'between them, as in "a cat,a dog".'
        )
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise LimnerError(f"--labels names {name!r} {count} times: name each class once.")
    return names


def embed_classes(pipeline: Pipeline, names: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
    """[K, D], each class by all templates, in which {} stands for its name. Raises LimnerError for one without it."""
    for template in templates:
        if NAME not in template:
            raise LimnerError(
                f"The template {template!r} has no place for the name of a class: put {NAME} there, "
                f"as in 'a picture of {NAME}'."
            )
    prompts = [template.replace(NAME, name) for name in names for template in templates or [NAME]]
    return ensemble(embed_texts(pipeline, prompts).unflatten(0, (len(names), -1)))


def name_probabilities(pipeline: Pipeline, classes: Tensor, images: Tensor) -> Tensor:
    """[B, C, H, W] of any size and channels, and ``embed_classes`` -> float64 [B, K], each row summing to 1."""
    assert isinstance(pipeline.model, Compares)
    logits = zero_shot_logits(embed_images(pipeline, images).double(), classes.double(), pipeline.model.scale)
    return logits.softmax(1)
