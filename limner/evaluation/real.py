"""The real images: opened as a run was trained on them, split as its training split them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from limner.core import Condition, DataOptions, ImageSpec, LimnerError, Model, nearest
from limner.data import Data, finder, open_like
from limner.data.items import LEAST_TO_HOLD_OUT
from limner.inference.pipeline import Pipeline, condition_for
from limner.inference.understand import open_for_run

MIN_IMAGES = LEAST_TO_HOLD_OUT  # on either side, below which nothing can be measured


@dataclass(frozen=True)
class Real:
    """The images to measure against: those that were trained on, and those that were held out.

    ``own`` are the same images with all their channels, where a run sees fewer.
    """

    training: Data
    held_out: Data
    own: Real | None = None

    def __len__(self) -> int:
        return len(self.training) + len(self.held_out)

    @property
    def whole(self) -> Real:
        """The images with all their channels: what drawn images are compared with."""
        return self.own or self


def open_real(sources: Sequence[str], spec: ImageSpec, options: DataOptions, progress: bool = True) -> Real:
    """Sources at the size and channels of ``spec``, split as training splits them."""
    return Real(*open_like(sources, spec, options, progress).split(options.holdout, options.per_class))


def open_whole(sources: Sequence[str], spec: ImageSpec, options: DataOptions, progress: bool = True) -> Real:
    """As ``open_real``, with the images' own channels besides where ``spec`` has fewer.

    The split is that of the images as ``spec`` has them, since it follows the pixels. Raises LimnerError.
    """
    own = open_like(sources, spec, options, progress, channels=None)
    if own.spec.channels == spec.channels:
        return Real(*own.split(options.holdout, options.per_class))
    real = open_real(sources, spec, options, progress)
    if own.spec.channels < spec.channels:
        return real
    training, held_out = (_same_images(part, own, sources) for part in (real.training, real.held_out))
    return replace(real, own=Real(training, held_out))


def _same_images(part: Data, own: Data, sources: Sequence[str]) -> Data:
    """The images of a part of a source, from another opening of the whole source."""
    by_row = np.argsort(own.rows)
    at = np.searchsorted(own.rows, part.rows, sorter=by_row)
    found = own.part(by_row[at[at < len(own)]])
    if found.names != part.names:
        raise changed(sources)
    return replace(found, twins=part.twins)


def changed(sources: Sequence[str]) -> LimnerError:
    return LimnerError(f"The images in {', '.join(sources)} have just changed: run the command again.")


def with_labels(pipeline: Pipeline, sources: Sequence[str], real: Real, progress: bool = True) -> Real:
    """The same images, with their labels even if the run was trained without.

    The split stays that of the training; opened with labels, the source would be split otherwise. Raises
    LimnerError.
    """
    if pipeline.loaded.run.data.labels:
        return real
    whole = open_for_run(pipeline, sources, progress)
    if whole.labels is None:
        return real

    def labelled(part: Data) -> Data:
        assert whole.labels is not None
        if part.rows.max(initial=-1) >= len(whole) or [whole.names[i] for i in part.rows] != part.names:
            raise changed(sources)
        part = part.part(np.flatnonzero(whole.labels[part.rows] >= 0))  # a few images may have no class
        spec = replace(part.spec, classes=whole.spec.classes)
        return replace(part, labels=whole.labels[part.rows], spec=spec)

    return Real(labelled(real.training), labelled(real.held_out))


def condition_like(model: Model, data: Data, n: int, seed: int = 0, pictures: bool = True) -> Condition:
    """The labels, captions and given pictures of ``n`` random images, as far as the model follows them.

    Without ``pictures``, those that are given are left out: see ``given_of_rows``.

    Labels go by their names; where the data has none, every class comes equally often. Raises LimnerError where
    the data has a class that the model does not know.
    """
    rows, known = data.order(0, n, seed), model.spec.classes
    labels: list[str] = []
    if "label" in model.follows and data.labels is not None:
        labels = [data.spec.classes[i] for i in data.labels[rows]]
    elif "label" in model.follows:
        labels = [known[i] for i in np.random.default_rng(seed).permutation(np.arange(n) % len(known))]
    find = finder(known)
    for name in (name for name in set(labels) if find(name) < 0):
        raise LimnerError(
            f"The run knows no class {name!r} of these images.{nearest(name, known)} Measure it without "
            f"labels, or against the images that it was trained on."
        )
    texts = [data.captions[i] for i in rows] if "text" in model.follows and data.captions is not None else []
    image = given_of_rows(model, data, rows) if pictures else None
    return replace(condition_for(model, n, texts, labels), image=image)


def given_of_rows(model: Model, data: Data, rows: np.ndarray) -> Tensor | None:
    """The pictures [B, C, H, W] that rows are given, if the model follows them."""
    return data.batch(rows).condition.image if "given" in model.follows else None


def as_saved(images: Tensor) -> Tensor:
    """[N, C, H, W] in [-1, 1] rounded to 8 bits: all measures see what a PNG would hold."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)


def as_bytes(images: Tensor) -> np.ndarray:
    """[N, C, H, W] in [-1, 1] -> uint8 [N, H, W, C]"""
    return ((images + 1) * 127.5).round().byte().movedim(1, -1).numpy()
