"""The figures of drawn images against real ones: each with its interval, and with the floor that real images set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from limner.core import LimnerError
from limner.evaluation.results import Figure
from limner.metrics import distances, neighbours
from limner.metrics.probes import student
from limner.progress import Watch

SPLITS = 4  # parts of both sides that value and floor are means over
PAIRS = 16  # ways to halve both sides, behind each interval
REFERENCE = 2000  # real images to measure distances to, at least, where there are that many
K = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}  # as published: Kynkaanniemi 2019, Naeem 2020
SHARES = "precision", "recall", "coverage"  # in [0, 1]
# Of the jackknife's excess that intervals of figures by neighbours keep: unions of balls are not smooth, so their
# halves vary less together than they do themselves. By simulation: benchmarks/known.py.
UNEVEN = {"precision": 0.2, "recall": 0.5, "density": 0.2, "coverage": 0.1}


@dataclass(frozen=True)
class Described:
    """Images by their features [N, D] and keys [N], which are equal where the images are."""

    features: Tensor
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: Tensor) -> Described:
        return Described(self.features[rows], self.keys[rows.numpy()])


Pair = tuple[Described, Described]  # drawn images, or those in their place, and real ones


def sizes(drawn: int, real: int) -> tuple[int, int]:
    """How many drawn and real images are compared at a time: so many that the real ones hold both sides of a floor."""
    n = min(drawn, real // 2)
    return n, min(real - n, max(2 * n, REFERENCE))


def reference(real: int, drawn: int, seed: int) -> Tensor:
    """Which of ``real`` images take part beside ``drawn`` ones, where there are more than that."""
    return torch.randperm(real, generator=torch.Generator().manual_seed(seed))[: sum(sizes(drawn, real))]


def measure(
    drawn: Described, real: Described, watch: Watch, seed: int = 0, k: int | None = None
) -> dict[str, Figure]:
    """The figures by their names in ``Fidelity``, with ``k`` neighbours or those of ``K``.

    The value is the mean over SPLITS parts of both sides, of the ``sizes``; the floor the mean over the same real
    parts, with other real images in place of the drawn ones. So both have one expectation where the drawn images
    are as good as real ones, whatever the figure's bias at that size. Raises LimnerError.
    """
    n, m = sizes(len(drawn), len(real))
    chosen = K if k is None else dict.fromkeys(K, k)
    if k is not None and k >= n:
        raise LimnerError(
            f"--k {k} needs more than {k} images on both sides, but {n} are compared: choose fewer."
        )
    drawn, real = _shuffle(drawn, real, seed)
    drawn, real = drawn[torch.arange(min(len(drawn), SPLITS * n))], real[torch.arange(n + m)]
    pairs = [*_parts(drawn, real, n, m), *_halves(drawn, real, seed)]
    values = []
    for done, (one, other) in enumerate(pairs, start=1):
        values.append(_compare(one, other, chosen))
        watch(done / len(pairs))
    # A mean over few parts of the drawn images varies more than one over all of them.
    spare = (len(drawn) / n - 1) / SPLITS
    figures = {}
    for name in values[0]:
        of = torch.tensor([each[name] for each in values], dtype=torch.float64).view(-1, 2).T
        value, floor = of[:, :SPLITS].mean(1).tolist()
        spread = distances.variance(of[0, SPLITS:], of[1, SPLITS:], max(spare, UNEVEN.get(name, 0.0)))
        low, high = _interval(name, value, spread, n if name == "precision" else m)
        figures[name] = Figure(value, low, high, floor, n, chosen.get(name))
    return figures


def _shuffle(drawn: Described, real: Described, seed: int) -> Pair:
    """Both in random orders; equal sets in one order, so that their parts are equal too."""
    generator = torch.Generator().manual_seed(seed)
    if np.array_equal(np.sort(drawn.keys), np.sort(real.keys)):
        order = torch.randperm(len(drawn), generator=generator)
        of_drawn, of_real = distances.equal_pairs(drawn.keys, real.keys)
        return drawn[of_drawn[order]], real[of_real[order]]
    of_drawn, of_real = (torch.randperm(len(side), generator=generator) for side in (drawn, real))
    return drawn[of_drawn], real[of_real]


def _parts(drawn: Described, real: Described, n: int, m: int) -> Iterator[Pair]:
    """For each split, n drawn images and n real ones, both with the same m other real ones.

    Parts begin at even distances and go on from the last image to the first, so that all take part alike.
    """
    for i in range(SPLITS):
        rows, real_rows = (torch.arange(len(side)).roll(-(i * len(side) // SPLITS)) for side in (drawn, real))
        yield drawn[rows[:n]], real[real_rows[:m]]
        yield real[real_rows[m : m + n]], real[real_rows[:m]]


def _halves(drawn: Described, real: Described, seed: int) -> Iterator[Pair]:
    """Random halves of both sides, and what they leave."""
    of_drawn = distances.disjoint(len(drawn), len(drawn) // 2, PAIRS, seed)
    of_real = distances.disjoint(len(real), len(real) // 2, PAIRS, seed + 1)
    for (half, rest), (real_half, real_rest) in zip(of_drawn, of_real, strict=True):
        yield drawn[half], real[real_half]
        yield drawn[rest], real[real_rest]


def _compare(drawn: Described, real: Described, k: dict[str, int]) -> dict[str, float]:
    x, y = drawn.features, real.features
    return {
        "kid": distances.kernel_distance(x, y, distances.equal_pairs(drawn.keys, real.keys)),
        "frechet": distances.frechet_distance(x, y),
        **asdict(neighbours.overlap(y, x, k["precision"], k["density"])),
    }


def _interval(name: str, value: float, variance: float, count: int) -> tuple[float, float]:
    """The 95% interval of a figure's expectation; a share is of ``count`` images."""
    if name in SHARES:
        return distances.share_interval(value, variance, PAIRS - 1, count)
    spread = student(PAIRS - 1) * math.sqrt(variance)
    low = value - spread
    return low if name == "kid" else max(0.0, low), value + spread
