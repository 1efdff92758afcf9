"""The spaces of features that images are compared in."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from limner.checkpoint import exists
from limner.distributed import ALONE, Ranks
from limner.evaluation.fidelity import (
    Compared,
    FeatureSets,
    Samples,
    describe,
    figures_of,
    unify,
)
from limner.evaluation.figures import reference
from limner.evaluation.real import Real
from limner.evaluation.results import FeatureFigures
from limner.fields import to_json
from limner.inference.pipeline import Pipeline
from limner.metrics.clip_features import of_frames
from limner.metrics.features import Features, of_model
from limner.metrics.find import FEATURES, OF_CLIPS, find, find_of_clips
from limner.networks.imagenet import is_installed
from limner.progress import bar, part
from limner.settings import LimnerError

BESIDE = 1000  # images that are measured in further features, at most
AUTO = "auto"  # random, and imagenet beside it where that is installed


def find_features(name: str, weights: str = "") -> Features:
    """The features of a name, or of a run that describes images. Raises LimnerError."""
    if name in FEATURES or not (exists(name) or Path(name).suffix == ".safetensors"):
        return find(name, weights)
    pipeline = Pipeline(name)
    return of_model(pipeline.model, name, pipeline.digest)


def find_all(name: str, weights: str = "", clips: bool = False) -> list[Features]:
    """The features that ``name`` stands for: those of the main figures come first. Raises LimnerError.

    For ``clips`` those of whole clips, then those that describe frames.
    """
    if clips:
        return _find_for_clips(name, weights)
    if name != AUTO:
        named = find_features(name, weights)
        if named.clips:
            raise LimnerError(f"{name} describes clips, and these are still images: name other features.")
        return [named]
    found = [find_features("random", weights)]
    if is_installed():
        try:
            found.append(find_features("imagenet"))
        except LimnerError as error:
            warnings.warn(f"{error} Only random features are measured.", stacklevel=2)
    return found


def _find_for_clips(name: str, weights: str) -> list[Features]:
    if name in OF_CLIPS:
        return [find_of_clips(name, weights), of_frames(find("random"))]
    found = find_all(AUTO) if name == AUTO else [find_features(name, weights)]
    if found[0].clips:
        return [found[0], of_frames(find("random"))]
    return [find_of_clips("random"), *map(of_frames, found)]


def measure_beside(
    samples: Samples,
    real: Real,
    features: Sequence[Features],
    seed: int = 0,
    quiet: bool = False,
    ranks: Ranks = ALONE,
    k: int | None = None,
) -> dict[str, FeatureFigures]:
    """The figures in further features, by their names: of at most BESIDE images, since these take longer.

    Of clips, those of a random frame of each. Each process describes its part; the first measures, the others return
    nothing.
    """
    if not features:
        return {}
    compared, found = Compared.of(samples, real).frames(seed), {}
    drawn, split = compared.drawn.part(slice(BESIDE)), len(compared.training)
    rows = reference(len(real), len(drawn), seed).sort().values.numpy()
    training, held_out = (
        images.part(some)
        for images, some in (
            (compared.training, rows[rows < split]), (compared.held_out, rows[rows >= split] - split)
        )
    )  # fmt: skip
    parts = drawn, training, held_out
    keys = [images.keys() for images in parts] if ranks.first else []
    for each in features:
        with bar(f"measuring by {each.name}", quiet) as watch:
            sets = FeatureSets(each, *describe(parts, each, part(watch, 0, 0.8), ranks))
            if ranks.first:
                found[each.name] = figures_of(unify(sets, keys), keys, part(watch, 0.8, 0.2), seed, k)
    return found


def trained_in(settings: Any, features: Sequence[Features]) -> list[str]:
    """A sentence on each of the features that a run was trained in, by its family's ``settings``.

    No family trains in the random features that measure: others of that name are another network's.
    """
    named = {str(value) for value in _values(to_json(settings))}
    return [
        f"The run was trained in the features {each.name}, so figures in them flatter it: judge it by other ones."
        for each in features
        if each.name in named and each.name != "random"
    ]


def _values(tree: Any) -> Iterator[Any]:
    """The values in JSON, at any depth."""
    if isinstance(tree, dict | list):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from _values(inner)
    else:
        yield tree
