"""Do the figures of `limner evaluate` mean what they say? Generators whose truth is known: perfect, blurred, collapsed.

    python benchmarks/known.py --record

Fresh `shapes` are measured against other fresh `shapes`, in random features; so are blurred ones, and a few scenes
that are drawn again and again. The truth is the mean of a figure over the trials, its expectation at these numbers of
images. A perfect generator should be below its floor in half of the trials, and intervals hold the truth in 95% of
them. benchmarks/copies.py does the same for copies.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from record import record
from torch import Tensor
from torch.nn import functional as F

from limner.data.sources import shapes
from limner.evaluation import figures
from limner.evaluation.figures import Described
from limner.metrics.features import Features, random_vgg

FIGURES = "kid", "frechet", "precision", "recall", "density", "coverage"
SIZES = (200, 600), (300, 300), (600, 1200), (1000, 1797), (1800, 3600)  # drawn images, and real ones
SCENES = 12  # that the collapsed generator draws
COLUMNS = {
    "generator": "generator", "n": "drawn", "real": "real", "compared": "compared", "trials": "trials",
    "below": "trials below the floor, %: least to most of six figures", "least_below": "least", "most_below": "most",
    "cover": "intervals that hold the truth, %: least to most", "least_cover": "least", "most_cover": "most",
}  # fmt: skip


def draw(count: int, seed: int) -> Tensor:
    """Fresh scenes [N, 3, 32, 32] in [-1, 1]."""
    images = torch.from_numpy(shapes.draw(shapes.scenes(count, seed), 32, 32, seed))
    return images.movedim(-1, 1).float() / 127.5 - 1


def blurred(images: Tensor) -> Tensor:
    """By the binomial filter of three pixels."""
    weights = torch.tensor([0.25, 0.5, 0.25])
    kernel = (weights[:, None] * weights).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)


def collapsed(count: int, seed: int) -> Tensor:
    """A few scenes with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    images = draw(SCENES, seed)[torch.randint(SCENES, (count,), generator=generator)]
    return (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def describe(images: Tensor, features: Features) -> Tensor:
    return torch.cat([features.of(part) for part in images.split(256)])


def trial(pool: Tensor, real: Tensor, n: int, count: int, seed: int) -> dict[str, figures.Figure]:
    """The figures of n images of a generator's pool against ``count`` other ones of the real pool."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(real))
    theirs, rest = order[:count], order[count:]
    perfect = pool is real
    mine = rest[:n] if perfect else rng.permutation(len(pool))[:n]
    keys = mine if perfect else mine + len(real)
    return figures.measure(
        Described(pool[mine], keys), Described(real[theirs], theirs), lambda share: None, seed
    )


def shares(found: Sequence[dict[str, figures.Figure]]) -> tuple[list[float], list[float]]:
    """By figure, in %: trials below the floor, with half of those on it; trials whose interval holds the truth."""
    below, cover = [], []
    for name in FIGURES:
        of = [each[name] for each in found]
        truth = float(np.mean([figure.value for figure in of]))
        below.append(100 * np.mean([(f.value < f.floor) + (f.value == f.floor) / 2 for f in of]))
        cover.append(100 * np.mean([f.low <= truth + 1e-12 and truth - 1e-12 <= f.high for f in of]))
    return below, cover


def row(generator: str, below: Sequence[float], cover: Sequence[float], **about: object) -> dict[str, object]:
    (lb, mb), (lc, mc) = ((round(float(min(s)), 1), round(float(max(s)), 1)) for s in (below, cover))
    return {
        "generator": generator, **about, "below": f"{lb} to {mb}", "least_below": lb, "most_below": mb,
        "cover": f"{lc} to {mc}", "least_cover": lc, "most_cover": mc,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trials", type=int, default=80, help="of each generator and size; a third above 1,000"
    )
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/known.json")
    given = parser.parse_args()
    features = random_vgg()
    real = describe(draw(12_000, 10_000), features)
    bad = draw(4000, 40_000)
    pools = {
        "perfect": real,
        "blurred": describe(blurred(bad), features),
        "collapsed": describe(collapsed(4000, 50_000), features),
    }
    rows = []
    for generator, pool in pools.items():
        of_sizes = []
        for n, count in SIZES:
            trials = given.trials if n <= 1000 else given.trials // 3
            found = [trial(pool, real, n, count, seed) for seed in range(trials)]
            of_sizes.append(shares(found))
            about = {"n": n, "real": count, "compared": found[0]["kid"].floor_n, "trials": trials}
            rows.append(row(generator, *of_sizes[-1], **about))
            print(rows[-1], flush=True)
        below, cover = np.mean(of_sizes, axis=0)
        rows.append(row(generator, below, cover, n="all", real=None, compared=None, trials=None))
        print(
            rows[-1],
            dict(zip(FIGURES, zip(below.round(), cover.round(1), strict=True), strict=True)),
            flush=True,
        )
    if given.record:
        note = (
            "figures.measure on the random features of shapes; 'all' is the mean over the sizes, then least and most "
            "of the figures"
        )
        print(f"Written: {record('known', COLUMNS, rows, note)}")


if __name__ == "__main__":
    main()
