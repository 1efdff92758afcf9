"""Statistics that norms over the picture (networks/instance.py) are given in its tiles."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from limner.inference.tile_plan import Tile
from limner.networks.instance import Moments, moments


class Recorded:
    """Gives norms what was found before, in the same order for each tile."""

    def __init__(self, known: list[Moments]):
        self.known, self.at = known, 0

    def __call__(self, x: Tensor, groups: int) -> Moments:
        found = self.known[self.at % len(self.known)]
        self.at += 1
        return found


class Enough(Exception):
    """What follows in the network is not needed."""


class Pooled:
    """Gives norms what is known, and pools the statistics of the next call over the tiles, each pixel once."""

    def __init__(self, known: list[Moments], ratio: Fraction):
        self.known, self.ratio = known, ratio
        self.tile: Tile | None = None
        self.at = 0
        self.parts: list[tuple[int, Tensor, Tensor]] = []  # pixels, mean and variance [B, G] of each tile

    def __call__(self, x: Tensor, groups: int) -> Moments:
        self.at += 1
        if self.at <= len(self.known):
            return self.known[self.at - 1]
        self.at = 0
        if self.ratio and self.tile:
            down, across = (
                slice(
                    round(self.ratio * (s.start - s.seen_start)), round(self.ratio * (s.stop - s.seen_start))
                )
                for s in self.tile
            )
            x = x[:, :, down, across]
        mean, variance = moments(x, groups)
        self.parts.append((x.shape[2] * x.shape[3], mean, variance))
        raise Enough

    def moments(self) -> Moments:
        """Of all parts together."""
        return pool(self.parts)


def pool(parts: Sequence[tuple[int, Tensor, Tensor]]) -> Moments:
    """The mean and the variance of all pixels, from the pixels, mean and variance [B, G] of each part."""
    counts, means, variances = zip(*parts, strict=True)
    shares = [count / sum(counts) for count in counts]
    mean = sum(share * each.double() for share, each in zip(shares, means, strict=True))
    around = [v.double() + (each - mean).square() for v, each in zip(variances, means, strict=True)]
    variance = sum(share * each for share, each in zip(shares, around, strict=True))
    return torch.as_tensor(mean), torch.as_tensor(variance)
