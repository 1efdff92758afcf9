"""How close drawn images are to real ones, and whether they are copies: draw, describe, measure, show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.core import Condition, Generates, LimnerError
from limner.data import Data
from limner.distributed import ALONE, Ranks
from limner.evaluation import figures
from limner.evaluation.clips import choose_some, films_note, measure_movement
from limner.evaluation.copying import Copies, find_copies, nearest_pairs, why_not_measured
from limner.evaluation.figures import Described
from limner.evaluation.images import Images, channels_of, frames_of
from limner.evaluation.real import MIN_IMAGES, Real, as_bytes, as_saved, condition_like, given_of_rows
from limner.evaluation.results import FeatureFigures, Fidelity
from limner.evaluation.tables import CHANNELS
from limner.evaluation.variety import collapse, variety
from limner.inference.pipeline import Pipeline, captions_of, generate
from limner.inference.understand import over_batches
from limner.metrics import pixels
from limner.metrics.features import Features
from limner.pictures.grid import save_grid
from limner.progress import Watch, bar, ignore, part

BATCH = 64
DRAWN = 8 * BATCH  # images drawn before they are kept in 8 bits


@dataclass(frozen=True)
class Samples:
    """Images to measure."""

    images: Data | Tensor  # packed, or [N, C, H, W] in [-1, 1]
    captions: list[str] | None = None  # the prompt or class of each


@dataclass(frozen=True)
class FeatureSets:
    """The features [N, D] of drawn and of real images."""

    features: Features
    drawn: Tensor
    training: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class Compared:
    """Drawn and real images in the channels of whichever side has more, so that what either lacks counts."""

    drawn: Images
    training: Images
    held_out: Images

    @classmethod
    def of(cls, samples: Samples, real: Real) -> Compared:
        sides = samples.images, real.whole.training, real.whole.held_out
        channels = max(map(channels_of, sides))
        return cls(*(Images.of(side, channels) for side in sides))

    def frames(self, seed: int) -> Compared:
        """Of clips, a random frame of each; images as they are."""
        if frames_of(self.drawn.source) == 1:
            return self
        sides = self.drawn, self.training, self.held_out
        return Compared(*(side.frames(seed + i) for i, side in enumerate(sides)))


def draw_samples(
    pipeline: Pipeline, real: Real, n: int, seed: int = 0, watch: Watch = ignore, ranks: Ranks = ALONE,
    sampling: Any = None,
) -> Samples:  # fmt: skip
    """``n`` images with the labels or captions of random training images, seeds seed to seed + n - 1.

    ``sampling`` is the family's Sampling. Each process draws its part, and gets all.
    """
    model, data = pipeline.model, real.training
    if not isinstance(model, Generates):
        raise LimnerError(f"The family {model.family} draws no images to measure.")
    condition, rows = condition_like(model, data, n, seed, pictures=False), data.order(0, n, seed)
    mine, seeds = ranks.part(n), range(seed, seed + n)
    pixels = []
    step = max(1, DRAWN // model.spec.frames)
    for at in range(mine.start, mine.stop, step):
        some = slice(at, min(at + step, mine.stop))
        done, count = (
            (at - mine.start) / (mine.stop - mine.start),
            (some.stop - at) / (mine.stop - mine.start),
        )
        like: Condition = replace(condition[some], image=given_of_rows(model, data, rows[some]))
        images = generate(
            model, like, seeds[some], sampling, watch=part(watch, done, count), precision=pipeline.precision
        )
        pixels.append(torch.from_numpy(as_bytes(as_saved(images))))
    drawn = ranks.gather(torch.cat(pixels), n).numpy()
    return Samples(Data(model.spec, "", drawn, np.arange(n), [""] * n), captions_of(model.spec, condition))


def compute_features(
    samples: Samples, real: Real, features: Features, watch: Watch = ignore, ranks: Ranks = ALONE
) -> FeatureSets:
    """The features of drawn and real images; each process computes its part, and gets all.

    Raises LimnerError where either side has too few to measure.
    """
    n = len(samples.images)
    if min(n, len(real)) < MIN_IMAGES:
        images = "images" if frames_of(samples.images) == 1 else "clips"
        raise LimnerError(
            f"{n} {images} against {len(real)} real ones are too few to measure: both need at least {MIN_IMAGES}."
        )
    compared = Compared.of(samples, real)
    parts = (compared.drawn, compared.training, compared.held_out)
    return FeatureSets(features, *describe(parts, features, watch, ranks))


def describe(parts: Sequence[Images], features: Features, watch: Watch, ranks: Ranks) -> list[Tensor]:
    """The features [N, D] of each part; the first may not be empty."""
    described: list[Tensor] = []
    done, total = 0, sum(map(len, parts))
    for images in parts:
        if not len(images):
            described.append(described[0][:0])
            continue
        mine = images.part(ranks.part(len(images)))
        watch_part = part(watch, done / total, len(images) / total)
        found = over_batches(features.of, mine.batches(BATCH), len(mine), watch_part)
        described.append(ranks.gather(found, len(images)))
        done += len(images)
    if not all(bool(found.isfinite().all()) for found in described):
        raise LimnerError(f"The features {features.name} are not finite: check the file of their weights.")
    return described


def measure_fidelity(
    samples: Samples, real: Real, sets: FeatureSets, watch: Watch = ignore, seed: int = 0,
    copies: Copies | None = None, k: int | None = None,
) -> Fidelity:  # fmt: skip
    """Every figure of a set of images against the real ones, each with its interval and its floor.

    Distances and neighbourhoods are taken to random parts of the real images (see ``figures.measure``, also for
    ``k``); ``copies`` are what ``find_copies`` found, which is called without them.
    """
    compared = Compared.of(samples, real)
    drawn, n = compared.drawn, len(compared.drawn)
    keys = [images.keys() for images in (drawn, compared.training, compared.held_out)]
    real_keys, sets = np.concatenate(keys[1:]), unify(sets, keys)
    measured = figures_of(sets, keys, watch, seed, k)
    copies = copies or find_copies(samples.images, real)
    found = copies.memorised
    frames, whole = compared.frames(seed), real.whole
    beside, source = (
        (frames.training, whole.training) if len(real.training) else (frames.held_out, whole.held_out)
    )
    beside = beside.part(source.order(0, min(n, len(source)), seed))
    wasserstein = pixels.sliced_wasserstein(frames.drawn, beside, seed=seed)
    collapsed = collapse(variety(frames.drawn), variety(beside))
    return Fidelity(
        **vars(measured), size=list(drawn[:1].shape[-2:]), channels=drawn.channels, **_of_clips(compared),
        memorised=found.value if found else None, copies=found, memorised_absent=copies.absent,
        sliced_wasserstein={str(side): distance for side, distance in wasserstein.items()},
        identical=int(np.isin(keys[0], real_keys).sum()),
        duplicates=_duplicates(keys[0]), real_duplicates=_duplicates(real_keys),
        collapsed=collapsed, notes=_notes(samples, real, keys[0], real_keys, collapsed),
    )  # fmt: skip


def _of_clips(compared: Compared) -> dict[str, Any]:
    """What ``Fidelity`` has of clips alone; nothing of images."""
    real = compared.training if len(compared.training) else compared.held_out
    frames = frames_of(compared.drawn.source)
    if frames == 1:
        return {}
    rate = real.source.spec.rate if isinstance(real.source, Data) else None
    return {"frames": frames, "rate": rate, **vars(measure_movement(compared.drawn, real))}


def figures_of(
    sets: FeatureSets, keys: Sequence[np.ndarray], watch: Watch, seed: int, k: int | None = None
) -> FeatureFigures:
    """The figures in one space of features; ``keys`` are those of drawn, training and held-out images."""
    drawn = Described(sets.drawn, keys[0])
    real = Described(torch.cat([sets.training, sets.held_out]), np.concatenate(keys[1:]))
    compared, to = figures.sizes(len(drawn), len(real))
    return FeatureFigures(
        n=len(drawn), compared=compared, real=to, features=sets.features.name, features_hash=sets.features.hash,
        resize=sets.features.resize, **figures.measure(drawn, real, watch, seed, k),
    )  # fmt: skip


def unify(sets: FeatureSets, keys: list[np.ndarray]) -> FeatureSets:
    """The same, but equal images have equal features, whatever others they were described with."""
    parts = sets.drawn, sets.training, sets.held_out
    _, first, of = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    features = torch.cat(parts)[torch.from_numpy(first[of])]
    drawn, training, held_out = features.split([len(part) for part in parts])
    return replace(sets, drawn=drawn, training=training, held_out=held_out)


def _duplicates(keys: np.ndarray) -> int:
    return len(keys) - len(np.unique(keys))


def _notes(
    samples: Samples, real: Real, drawn: np.ndarray, known: np.ndarray, collapsed: str | None
) -> list[str]:
    """Sentences on what was compared, for the person; ``drawn`` and ``known`` are the keys of both sides' images."""
    notes, ours, theirs = [], channels_of(samples.images), channels_of(real.whole.training)
    images = "images" if frames_of(samples.images) == 1 else "clips"
    if ours != theirs:
        notes.append(
            f"The {images} are {CHANNELS[ours]} and the real ones {CHANNELS[theirs]}: they were compared in "
            f"{CHANNELS[max(ours, theirs)]}, so that what is missing counts."
        )
    if max(ours, theirs) == 4:
        notes.append("Features are means of those over black and over white, so that transparency counts.")
    if np.array_equal(np.sort(drawn), np.sort(known)):
        notes.append(f"The two sets are equal: they hold the same {images}, byte for byte.")
    elif identical := int(np.isin(drawn, known).sum()):
        notes.append(f"{identical:,} of the {len(drawn):,} {images} are equal to a real one, byte for byte.")
    if twins := real.held_out.twins_note:
        notes.append(twins)
    notes += films_note(real)
    if len(np.unique(drawn)) == 1:
        notes.append(f"All {len(drawn):,} {images} are equal: what drew them has collapsed to one.")
    elif same := _duplicates(drawn):
        notes.append(f"{same:,} of the {len(drawn):,} {images} equal an earlier one of them.")
    if collapsed:
        notes.append(f"Of the {images} {collapsed}: the generator has collapsed, or needs more training.")
    if (different := len(np.unique(known))) < MIN_IMAGES:
        notes.append(
            f"Different real {images}: only {different} of {len(known):,}. No figure is reliable, so add others."
        )
    elif same := _duplicates(known):
        notes.append(
            f"{same:,} of the {len(known):,} real {images} equal an earlier one: duplicates count twice."
        )
    if absent := why_not_measured(real):
        notes.append(f"Memorised was not measured: {absent}.")
    return notes


def measure_samples(
    samples: Samples, real: Real, features: Features, folder: Path, seed: int = 0, quiet: bool = False,
    ranks: Ranks = ALONE, k: int | None = None,
) -> Fidelity | None:  # fmt: skip
    """Describe and measure the samples; write nearest.png, with those nearest to training images, and drawn.png.

    Each process describes its part; the first measures and writes, the others return None.
    """
    some = real if frames_of(samples.images) == 1 else choose_some(real, len(samples.images), seed)
    with bar("describing", quiet) as watch:
        sets = compute_features(samples, some, features, watch, ranks)
    if not ranks.first:
        return None
    with bar("searching for copies", quiet) as watch:
        copies = find_copies(samples.images, real, watch)
    with bar("measuring", quiet) as watch:
        fidelity = measure_fidelity(samples, some, sets, watch, seed, copies, k)
    images, captions = nearest_pairs(samples.images, real, copies)
    save_grid(folder / "nearest.png", images, captions, columns=8 if images.ndim == 4 else 2)
    drawn = Images.of(samples.images, channels_of(samples.images))[:64]
    save_grid(folder / "drawn.png", drawn, samples.captions[:64] if samples.captions else None)
    return fidelity
