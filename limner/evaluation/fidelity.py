"""How close drawn images are to real ones, and whether they are copies: draw, describe, measure, show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.checkpoint import exists
from limner.core import Generates, LimnerError
from limner.distributed import ALONE, Ranks
from limner.evaluation.real import MIN_IMAGES, Real, as_bytes, as_saved, condition_like
from limner.evaluation.results import Fidelity, Figure
from limner.inference.pipeline import Pipeline, captions_of, generate
from limner.inference.understand import over_batches, over_data
from limner.metrics import distances, neighbours, pixels
from limner.metrics.features import Features, of_model
from limner.metrics.find import FEATURES, find
from limner.pictures.grid import save_grid
from limner.progress import Watch, bar, ignore, part

HALVES = 24  # random halves behind each interval
SPLITS = 5  # ways to split the real images in two, over which the floor is a mean
REFERENCE = 2000  # real images to measure distances to, at least, where there are that many
BATCH = 64
PAIRS = 16  # on the sheet of nearest training images


@dataclass(frozen=True)
class Samples:
    """Images to measure, as 8-bit files hold them."""

    images: Tensor  # [N, C, H, W] in [-1, 1]
    captions: list[str] | None = None  # the prompt or class of each


@dataclass(frozen=True)
class FeatureSets:
    """The features [N, D] of drawn and of real images."""

    features: Features
    drawn: Tensor
    training: Tensor
    held_out: Tensor


def draw_samples(
    pipeline: Pipeline, real: Real, n: int, seed: int = 0, watch: Watch = ignore, ranks: Ranks = ALONE,
    sampling: Any = None,
) -> Samples:  # fmt: skip
    """``n`` images with the labels or captions of random training images, seeds seed to seed + n - 1.

    ``sampling`` is the family's Sampling. Each process draws its part, and gets all.
    """
    model = pipeline.model
    if not isinstance(model, Generates):
        raise LimnerError(f"The family {model.family} draws no images to measure.")
    condition = condition_like(model, real.training, n, seed)
    mine, seeds, precision = ranks.part(n), range(seed, seed + n), pipeline.precision
    images = generate(model, condition[mine], seeds[mine], sampling, watch=watch, precision=precision)
    return Samples(ranks.gather(as_saved(images), n), captions_of(model.spec, condition))


def find_features(name: str, weights: str = "") -> Features:
    """The features of a name, or of a run that describes images."""
    if name in FEATURES or not (exists(name) or Path(name).suffix == ".safetensors"):
        return find(name, weights)
    pipeline = Pipeline(name)
    return of_model(pipeline.model, name, pipeline.digest)


def compute_features(
    samples: Samples, real: Real, features: Features, watch: Watch = ignore, ranks: Ranks = ALONE
) -> FeatureSets:
    """The features of drawn and real images; each process computes its part, and gets all.

    Raises LimnerError where either side has too few to measure.
    """
    n, total = len(samples.images), len(samples.images) + len(real)
    if min(n, len(real)) < MIN_IMAGES:
        raise LimnerError(
            f"{n} images against {len(real)} real ones are too few to measure: both need at least {MIN_IMAGES}."
        )
    mine = samples.images[ranks.part(n)]
    drawn = over_batches(features.of, mine.split(BATCH), len(mine), part(watch, 0, n / total))
    described, done = [ranks.gather(drawn, n)], n
    for data in (real.training, real.held_out):
        watch_part = part(watch, done / total, len(data) / total)
        described.append(over_data(data, features.of, watch_part, ranks) if len(data) else drawn[:0])
        done += len(data)
    return FeatureSets(features, *described)


def measure_fidelity(
    samples: Samples, real: Real, sets: FeatureSets, watch: Watch = ignore, seed: int = 0
) -> Fidelity:
    """Every figure of a set of images against the real ones, each with its interval and its floor.

    Distances and neighbourhoods are taken to a random part of the real images, twice as many as were drawn or
    REFERENCE; copies are searched for among all that were trained on.
    """
    memorised: list[float | None] = [None, None]
    if len(sets.held_out) >= MIN_IMAGES:
        copies = [neighbours.memorised(x, sets.training, sets.held_out) for x in (sets.drawn, sets.held_out)]
        memorised = [float(each.double().mean()) for each in copies]
    reference = torch.cat([sets.training, sets.held_out])
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))
    reference = reference[order[: max(2 * len(sets.drawn), REFERENCE)]]
    rows = real.training.order(0, min(len(sets.drawn), len(real.training)), seed)
    wasserstein = pixels.sliced_wasserstein(samples.images, real.training.batch(rows).image, seed=seed)
    oracle, exact = real.training.oracle, None
    if oracle and samples.captions:
        exact = oracle.score(as_bytes(samples.images), samples.captions)["exact"]
    return Fidelity(
        n=len(sets.drawn), real=len(reference), size=list(samples.images.shape[2:]),
        features=sets.features.name, features_hash=sets.features.hash, resize=sets.features.resize,
        **_figures(sets.drawn, reference, watch, seed), memorised=memorised[0], memorised_held_out=memorised[1],
        sliced_wasserstein={str(side): distance for side, distance in wasserstein.items()}, prompts_exact=exact,
    )  # fmt: skip


def _figures(x: Tensor, y: Tensor, watch: Watch, seed: int) -> dict[str, Figure]:
    """The figures of drawn features x [N, D] against real ones y [M, D], by their names in ``Fidelity``."""
    side = min(len(x), len(y) // 2)
    halves = (distances.halves(len(x), HALVES, seed), distances.halves(len(y), HALVES, seed + 1))
    sets = [(x, y), *((x[i], y[j]) for i, j in zip(*halves, strict=True))]
    sets += [(y[i], y[j]) for i, j in distances.disjoint(len(y), side, SPLITS, seed)]
    values = []
    for done, (a, b) in enumerate(sets, start=1):
        values.append(_distances(a, b))
        watch(done / len(sets))
    figures = {}
    for name, value in values[0].items():
        low, high = distances.interval(value, [half[name] for half in values[1 : 1 + HALVES]])
        floor = sum(split[name] for split in values[1 + HALVES :]) / SPLITS
        figures[name] = Figure(value, low, high, floor, side)
    return figures


def _distances(x: Tensor, y: Tensor, k: int = 5) -> dict[str, float]:
    """Of drawn features [N, D] against real ones [M, D]."""
    precision, recall = neighbours.precision_recall(y, x, k)
    density, coverage = neighbours.density_coverage(y, x, k)
    return {
        "kid": distances.kernel_distance(x, y), "frechet": distances.frechet_distance(x, y),
        "precision": precision, "recall": recall, "density": density, "coverage": coverage,
    }  # fmt: skip


def nearest_pairs(
    samples: Samples, real: Real, sets: FeatureSets, count: int = PAIRS
) -> tuple[Tensor, list[str]]:
    """The images nearest to a training image, each followed by it: [2 count, C, H, W], and their captions."""
    distance, index = neighbours.nearest_distances(sets.drawn, sets.training)
    closest = distance.argsort()[:count]
    originals = real.training.batch(index[closest].numpy()).image
    images = torch.stack([samples.images[closest], originals], dim=1).flatten(0, 1)
    captions = [word for d in distance[closest].tolist() for word in ("drawn", f"training, {d:.2g} away")]
    return images, captions


def measure_samples(
    samples: Samples, real: Real, features: Features, folder: Path, seed: int = 0, quiet: bool = False,
    ranks: Ranks = ALONE,
) -> Fidelity | None:  # fmt: skip
    """Describe and measure the samples; write nearest.png, with those nearest to training images, and drawn.png.

    Each process describes its part; the first measures and writes, the others return None.
    """
    with bar("describing", quiet) as watch:
        sets = compute_features(samples, real, features, watch, ranks)
    if not ranks.first:
        return None
    with bar("measuring", quiet) as watch:
        fidelity = measure_fidelity(samples, real, sets, watch, seed)
    images, captions = nearest_pairs(samples, real, sets)
    save_grid(folder / "nearest.png", images, captions, columns=8)
    save_grid(folder / "drawn.png", samples.images[:64], samples.captions[:64] if samples.captions else None)
    return fidelity
