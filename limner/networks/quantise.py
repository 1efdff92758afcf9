"""Vector quantisation: each vector becomes an entry of a codebook.

Entries are learned by gradients or as moving averages (van den Oord 2017), or they are the points of a fixed grid:
finite scalar quantisation (Mentzer 2024), which has nothing to learn and no entry that could fall out of use.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limner.networks.checks import SettingsError
from limner.networks.layers import at_least_float32


class Quantiser(nn.Module):
    """A codebook of ``codes`` entries of ``width``."""

    codes: int
    width: int

    def nearest(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> index [B, H, W] of the entry of each position's vector."""
        raise NotImplementedError

    def lookup(self, index: Tensor) -> Tensor:
        """[B, H, W] -> [B, width, H, W]."""
        raise NotImplementedError

    def vectors(self) -> Tensor:
        """[codes, width], all entries."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, width, H, W] -> the entries as what follows is given them, the entries, and their index [B, H, W]."""
        index = self.nearest(x)
        entry = self.lookup(index)
        return straight_through(x, entry), entry, index


class Codebook(Quantiser):
    """Learned by gradients. Uniform near 0 at first, as published, or ``wide``: standard normal."""

    def __init__(self, codes: int, width: int, wide: bool = False):
        super().__init__()
        self.codes, self.width = codes, width
        self.entries = nn.Embedding(codes, width)
        if not wide:
            nn.init.uniform_(self.entries.weight, -1 / codes, 1 / codes)

    def nearest(self, x: Tensor) -> Tensor:
        return nearest_entry(x, self.entries.weight)

    def lookup(self, index: Tensor) -> Tensor:
        return self.entries(index).movedim(-1, 1)

    def vectors(self) -> Tensor:
        return self.entries.weight


class MovingCodebook(Quantiser):
    """Entries that have no gradient: `MovingAverage` sets them."""

    entries: Tensor

    def __init__(self, codes: int, width: int):
        super().__init__()
        self.codes, self.width = codes, width
        self.register_buffer("entries", torch.randn(codes, width))

    def nearest(self, x: Tensor) -> Tensor:
        return nearest_entry(x, self.entries)

    def lookup(self, index: Tensor) -> Tensor:
        return self.entries[index].movedim(-1, 1)

    def vectors(self) -> Tensor:
        return self.entries


class GridCodebook(Quantiser):
    """Finite scalar quantisation: channel i is bounded and rounded to ``levels[i]`` values (Mentzer 2024, A.1).

    An index counts them with the first channel fastest. Raises SettingsError for fewer than two levels.
    """

    levels: Tensor  # [width]

    def __init__(self, levels: Sequence[int], eps: float = 1e-3):
        super().__init__()
        if min(levels, default=0) < 2:
            raise SettingsError(f"levels must be 2 or more in each channel, not {tuple(levels)}")
        self.codes, self.width, self.eps = math.prod(levels), len(levels), eps
        self.register_buffer("levels", torch.tensor([float(n) for n in levels]))

    def bound(self, x: Tensor) -> Tensor:
        """[..., width] -> the same, each channel between its lowest and its highest value."""
        half = (self.levels - 1) * (1 + self.eps) / 2  # [width]
        offset = (1 - self.levels % 2) / 2  # [width]: an even number of values lies unevenly about 0
        return torch.tanh(x + torch.atanh(offset / half)) * half - offset

    def nearest(self, x: Tensor) -> Tensor:
        steps = self.bound(x.movedim(1, -1)).round() + self.levels // 2  # [B, H, W, width]
        return (steps.long() * self._basis()).sum(-1)

    def lookup(self, index: Tensor) -> Tensor:
        steps = index[..., None] // self._basis() % self.levels.long()  # [B, H, W, width]
        return (steps / (self.levels // 2) - 1).movedim(-1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = self.nearest(x)
        entry = self.lookup(index)
        bounded = self.bound(x.movedim(1, -1)) / (self.levels // 2)  # [B, H, W, width]
        return straight_through(bounded.movedim(-1, 1), entry), entry, index

    def vectors(self) -> Tensor:
        index = torch.arange(self.codes, device=self.levels.device)
        return self.lookup(index[None, None])[0, :, 0].T

    def _basis(self) -> Tensor:
        """[width], the indices between two neighbours in each channel."""
        levels = self.levels.long()
        return levels.cumprod(0) // levels


def nearest_entry(x: Tensor, entries: Tensor) -> Tensor:
    """[B, width, H, W] and [codes, width] -> index [B, H, W] of the entry nearest to each position's vector."""
    flat, entries = at_least_float32(x).movedim(1, -1), at_least_float32(entries)  # [B, H, W, width]
    with torch.autocast(x.device.type, enabled=False):  # float32, or rounding would choose another entry
        distance = entries.square().sum(1) - 2 * flat @ entries.T  # [B, H, W, codes], without |x|^2
    return distance.argmin(-1)


def straight_through(x: Tensor, entry: Tensor) -> Tensor:
    """The entry, with the gradient passed to the vector (Bengio 2013)."""
    return x + (entry - x).detach()
