"""How well drawn images follow their prompts, by a run that compares images with texts: the CLIP score.

Its floor is the score of the same images with each other's prompts, its ceiling that of real images with theirs.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from limner.core import Generates, LimnerError
from limner.data import Data
from limner.evaluation.fidelity import Samples
from limner.evaluation.real import Real
from limner.evaluation.results import MatchScore, Mean
from limner.inference.networks import over_data
from limner.inference.pipeline import Pipeline
from limner.inference.texts import embed_images, embed_texts
from limner.metrics.matches import fit
from limner.metrics.probes import student
from limner.progress import bar


def refuse_without_prompts(pipeline: Pipeline, real: Real) -> None:
    """Raises LimnerError for a run that draws from no prompts."""
    if not isinstance(pipeline.model, Generates):
        raise LimnerError(
            f"--matches compares drawn images with their prompts, and runs of {pipeline.loaded.run.family} draw none: "
            "leave it out."
        )
    if "text" not in pipeline.model.follows or real.training.captions is None:
        what = (
            "the run follows no text"
            if "text" not in pipeline.model.follows
            else "the images have no captions"
        )
        raise LimnerError(f"--matches compares images with their prompts, and {what}: leave it out.")


def measure_matches(comparer: Pipeline, samples: Samples, real: Real, seed: int, quiet: bool) -> MatchScore:
    """Of images that were drawn for captions of real ones, with a 95% interval of each mean."""
    assert samples.captions is not None and real.training.captions is not None
    assert isinstance(samples.images, Data)  # as draw_samples makes them
    n = len(samples.images)
    rows = real.training.order(0, n, seed)  # those whose captions were drawn
    with bar(f"comparing {n:,} images with their prompts", quiet) as watch:
        drawn = over_data(samples.images, partial(embed_images, comparer), watch)
        shown = over_data(real.training.part(rows), partial(embed_images, comparer), watch)
    prompts = embed_texts(comparer, samples.captions)
    order = shuffled(n, seed)
    return MatchScore(
        run=comparer.digest, n=n, score=mean_of(fit(drawn, prompts)), floor=mean_of(fit(drawn, prompts[order])),
        ceiling=mean_of(fit(shown, prompts)),
    )  # fmt: skip


def shuffled(n: int, seed: int) -> Tensor:
    """Another text for each, by its index: that of the next in a random order."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    turned = torch.empty_like(order)
    turned[order] = order.roll(1)
    return turned


def mean_of(values: Tensor) -> Mean:
    """The mean of independent values [N], with its 95% interval by Student's distribution."""
    n, mean = len(values), float(values.mean())
    width = student(n - 1) * float(values.std()) / n**0.5 if n > 1 else float("inf")
    return Mean(mean, mean - width, mean + width)
