"""What is measured of clips alone: how much they move and how unevenly, beside real ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from limner.data import Data
from limner.data.clips.names import film_of
from limner.evaluation.images import Images, frames_of
from limner.evaluation.real import Real
from limner.evaluation.results import Ratio
from limner.metrics import motion
from limner.metrics.probes import Z95

BATCH = 16  # clips that are read at a time
DRAWN = 256  # clips that are drawn, where --n does not say
REAL = 1000  # real clips that are looked at, at most, or three times as many as are drawn


@dataclass(frozen=True)
class Movement:
    """How much drawn clips move, and how unevenly, relative to real ones; None where real ones do not, or are short."""

    motion: Ratio | None
    jitter: Ratio | None


def measure_movement(drawn: Images, real: Images) -> Movement:
    """Ratios of means over clips; each clip's motion and jitter are means over its frames (metrics/motion.py)."""

    def ratio(measure: Callable[[Tensor], Tensor]) -> Ratio | None:
        means = [torch.cat([measure(b).mean(1) for b in side.batches(BATCH)]) for side in (drawn, real)]
        return ratio_of(*means)

    return Movement(ratio(motion.motion), ratio(motion.jitter) if frames_of(drawn.source) > 2 else None)


def ratio_of(drawn: Tensor, real: Tensor) -> Ratio | None:
    """The ratio of the means of values [N] and [M], with its 95% interval by the variance of its logarithm.

    None where the real mean is 0, or where either has fewer than two values.
    """
    mean, of_real = float(drawn.mean()), float(real.mean())
    if of_real <= 0 or min(len(drawn), len(real)) < 2:
        return None
    relative = [float(x.var()) / len(x) / float(x.mean()) ** 2 for x in (drawn, real) if float(x.mean()) > 0]
    value, factor = mean / of_real, math.exp(Z95 * math.sqrt(sum(relative)))
    return Ratio(value, value / factor, value * factor, mean, of_real)


def choose_some(real: Real, drawn: int, seed: int) -> Real:
    """A random part of many real clips, since describing a clip takes as long as describing many images."""
    most = max(REAL, 3 * drawn)
    if len(real) <= most:
        return real
    chosen = np.sort(np.random.default_rng(seed).permutation(len(real))[:most])
    split = len(real.training)

    def part(of: Real) -> Real:
        return Real(
            of.training.part(chosen[chosen < split]), of.held_out.part(chosen[chosen >= split] - split)
        )

    return replace(part(real), own=part(real.own) if real.own else None)


def films_note(real: Real) -> list[str]:
    """A sentence where several real clips are of one film: then real ones are nearer to each other than new ones."""
    films = {
        film_of(name)
        for data in (real.training, real.held_out)
        if data.strides is not None
        for name in data.names
    }
    if not films or len(films) >= len(real):
        return []
    return [
        f"The {len(real):,} real clips are cut from {len(films):,} films, and those of one film are alike: floors are "
        "lower than of as many films."
    ]


def rates_note(drawn: Data, real: Data) -> list[str]:
    """A sentence where a folder of clips and the real ones have different rates."""
    ours, theirs = drawn.spec.rate, real.spec.rate
    if not ours or not theirs or math.isclose(ours, theirs, rel_tol=0.01):
        return []
    return [
        f"The clips have {ours:g} frames a second and the real ones {theirs:g}: name one for both with --clip-rate."
    ]


def without_stills(real: Real) -> Real:
    """The clips that move: a still is a clip whose other frames do not count."""
    own = without_stills(real.own) if real.own else None
    return Real(moving(real.training), moving(real.held_out), own)


def moving(data: Data) -> Data:
    """The clips that are no stills."""
    if data.strides is None or (data.strides > 0).all():
        return data
    return data.part(np.flatnonzero(data.strides > 0))
