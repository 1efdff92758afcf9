"""Pictures of any size for networks that want sides of a multiple."""

from __future__ import annotations

import torch
from torch import Tensor


def reflected(length: int, wanted: int) -> Tensor:
    """The ``wanted`` indices that continue 0 to length - 1 by reflection without repeating the edge."""
    period = max(2 * length - 2, 1)
    index = torch.arange(wanted) % period
    return torch.minimum(index, period - index) if length > 1 else torch.zeros(wanted, dtype=torch.long)


def padded_side(side: int, multiple: int, least: int = 2) -> int:
    """The next multiple, ``least`` of them at least: two, where a network mirrors edges at its smallest maps."""
    return max(least, -(-side // multiple)) * multiple


def pad_reflected(x: Tensor, multiple: int, least: int = 2) -> Tensor:
    """[..., H, W] continued at the right and below until both sides are those of ``padded_side``."""
    for axis in (-2, -1):
        side = x.shape[axis]
        wanted = padded_side(side, multiple, least)
        if wanted != side:
            x = x.index_select(axis, reflected(side, wanted).to(x.device))
    return x
