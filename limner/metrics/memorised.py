"""The share of drawn images that are nearer to a training image than all but a few held-out images are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

SHARE = 0.05  # of the held-out images, whose distances do not exceed the threshold
ENDS = (0.025, 0.975)  # of a 95% interval
SIMULATIONS = 100_000


@dataclass(frozen=True)
class Memorised:
    """The share of drawn images up to a distance from a training image, beside that of a perfect generator.

    A perfect generator draws images like the held-out ones.
    """

    value: float
    low: float  # 95% interval; it holds ``expected`` for 95% of perfect generators
    high: float
    expected: float  # the mean share of perfect generators
    expected_low: float  # 95% of them lie from here to ``expected_high``
    expected_high: float
    threshold: float  # distance in grey levels of 255
    held_out: int  # images that set the threshold
    changes: dict[str, int]  # what was done to the training images -> how many of the images that count

    @property
    def excess(self) -> bool:
        """Whether it is more than the share of a perfect generator."""
        return self.low > self.expected


def threshold(held_out: Tensor) -> float:
    """The distance that the share SHARE of held-out distances [H] does not exceed; the least where they are few."""
    rank = max(1, int(SHARE * (len(held_out) + 1)))
    return float(held_out.kthvalue(rank).values)


def memorised(drawn: Tensor, held_out: Tensor, changes: dict[str, int]) -> Memorised:
    """From the distances of drawn [N] and of held-out images [H] to their nearest training images.

    A perfect generator's chance to stay below the jth of H held-out distances is distributed as Beta(j, H + 1 - j),
    which the interval combines with that of a share (Clopper and Pearson 1934). The images count as a mixture of
    copies, all below the threshold, and of a perfect generator's; the interval is that of the mixture at the
    threshold's expected rank. All distributions are simulated, with a fixed seed.
    """
    limit, n, h = threshold(held_out), len(drawn), len(held_out)
    count, rank = int((drawn <= limit).sum()), int((held_out <= limit).sum())
    expected = rank / (h + 1)
    generator = np.random.Generator(np.random.PCG64(0))
    perfect = generator.beta(rank, h + 1 - rank, SIMULATIONS)

    def end(below: int, above: int, level: float) -> float:
        if not below or not above:
            return float(below > 0)
        share = generator.beta(below, above, SIMULATIONS)
        mixed = 1 - (1 - share) * (1 - expected) / (1 - perfect)
        return min(1.0, max(0.0, float(np.quantile(mixed, level))))

    low, high = end(count, n - count + 1, ENDS[0]), end(count + 1, n - count, ENDS[1])
    least, most = np.quantile(generator.binomial(n, perfect), ENDS) / n
    return Memorised(count / n, low, high, expected, float(least), float(most), limit, h, changes)
