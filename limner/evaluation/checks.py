"""Whether there is enough to measure, and whether held-out images were really kept from a run's training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from limner.core import LimnerError
from limner.data import Data, image_count
from limner.data.dataset import TRAINED_ON
from limner.evaluation.images import Images
from limner.evaluation.real import MIN_IMAGES, Real, open_real
from limner.evaluation.results import HeldOut
from limner.inference.pipeline import Pipeline


def check_enough(n: int, real: Real, there: int | None = None) -> None:
    """Raises LimnerError where too few images are there to measure ``n`` with.

    ``there``: images in the folder that is measured; None: a run draws as many as it is asked for.
    """
    total = len(real) + real.held_out.twins
    images = "images" if real.training.spec.frames == 1 else "clips"
    if total < MIN_IMAGES:
        raise LimnerError(_too_few(total, images))
    if there is not None and there < MIN_IMAGES:
        raise LimnerError(f"{there} {images} are too few to measure: the folder needs at least {MIN_IMAGES}.")
    if n < MIN_IMAGES:
        raise LimnerError(f"--n {n} is too few to measure: choose at least {MIN_IMAGES}.")


def refuse_few(sources: Sequence[str]) -> None:
    """Raises LimnerError where sources list too few real images, before anything is read or trained."""
    try:
        count = sum(map(image_count, sources))
    except LimnerError:  # whoever opens the source says so
        return
    if count < MIN_IMAGES:
        raise LimnerError(_too_few(count, "images"))


def _too_few(count: int, images: str) -> str:
    return (
        f"{count} real {images} are too few to measure against: give at least {MIN_IMAGES}, or only look at what a run "
        "draws: limner sample RUN."
    )


class TestImages(NamedTuple):
    """The held-out images that neither the generator nor a classifier is trained on."""

    data: Data
    left_out: int  # images that equal one of the training images
    checked: bool  # whether the generator's own images could be opened


def find_test_images(pipeline: Pipeline, real: Real, quiet: bool = False) -> TestImages:
    """Leave out of the held-out images what equals, pixel for pixel, a training image of a classifier or the run.

    The run's own images cannot be checked where its sources cannot be opened.
    """
    trained_on, checked, run = [real.training], True, pipeline.loaded.run
    try:
        trained_on.append(open_real(run.sources, pipeline.spec, run.data, not quiet).training)
    except LimnerError:
        checked = False
    held_out, *others = (
        Images.of(data, pipeline.spec.channels).keys() for data in (real.held_out, *trained_on)
    )
    rows = np.flatnonzero(~np.isin(held_out, np.concatenate(others)))
    return TestImages(real.held_out.part(rows), len(held_out) - len(rows), checked)


def check_held_out(pipeline: Pipeline, sources: Sequence[str], real: Real, quiet: bool = False) -> HeldOut:
    """Whether the run was kept from the held-out images. Warns where its own images have changed since."""
    run, n, named = pipeline.loaded.run, len(real.held_out), ", ".join(sources)
    why, trained_on = None, pipeline.loaded.header.get("data")
    if list(run.sources) == list(sources):
        if trained_on and trained_on != real.training.fingerprint:
            why = f"{named} has changed since training: images held out now may have been trained on"
            warnings.warn(f"{why}, so held-out figures are not reliable.", stacklevel=2)
    elif n:
        found, own = find_test_images(pipeline, real, quiet), ", ".join(run.sources) or "images elsewhere"
        if not found.checked:
            why = f"the run was trained on {own}, which cannot be opened to see whether it holds some of them"
        elif found.left_out:
            why = f"{found.left_out:,} of them equal images that were trained on"
    if real.held_out.trained_on:
        why = TRAINED_ON
    if n < MIN_IMAGES:
        why = f"there are {n}, and it takes {MIN_IMAGES}"
    return HeldOut(n, why is None, why)


def other_source_note(pipeline: Pipeline, sources: Sequence[str]) -> list[str]:
    """A sentence where a run is measured against other images than those that it was trained on."""
    own = list(pipeline.loaded.run.sources)
    if own == list(sources):
        return []
    return [
        f"The run was trained on {', '.join(own) or 'images elsewhere'}, not on {', '.join(sources)}: copies of its "
        "own training images are not looked for."
    ]
