"""Vector quantisation: each vector becomes the nearest entry of a codebook (van den Oord 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Codebook(nn.Module):
    """``codes`` learnt vectors of ``width`` numbers: near 0 at first, as published, or ``wide``, standard normal."""

    def __init__(self, codes: int, width: int, wide: bool = False):
        super().__init__()
        self.entries = nn.Embedding(codes, width)
        if not wide:
            nn.init.uniform_(self.entries.weight, -1 / codes, 1 / codes)

    def nearest(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> index [B, H, W] of the entry nearest to each place's vector."""
        flat = x.float().movedim(1, -1)  # [B, H, W, width]
        entries = self.entries.weight.float()
        with torch.autocast(x.device.type, enabled=False):  # a rough product would name another entry
            distance = entries.square().sum(1) - 2 * flat @ entries.T  # [B, H, W, codes], but for |x|^2
        return distance.argmin(-1)

    def lookup(self, index: Tensor) -> Tensor:
        """[B, H, W] -> [B, width, H, W]."""
        return self.entries(index).movedim(-1, 1)


def vq_loss(x: Tensor, entry: Tensor, commitment: float = 0.25, legacy: bool = False) -> Tensor:
    """What draws the entries to the vectors and, ``commitment`` times, the vectors to their entries: a scalar.

    Van den Oord 2017, eq. 3. ``legacy`` swaps the two weights, as published VQGANs were trained: the value is the
    same, the slopes are not.
    """
    x, entry = x.float(), entry.float()
    to_vector, to_entry = (entry - x.detach()).square().mean(), (x - entry.detach()).square().mean()
    return commitment * to_vector + to_entry if legacy else to_vector + commitment * to_entry


def straight_through(x: Tensor, entry: Tensor) -> Tensor:
    """The entry, whose slope goes to the vector (Bengio 2013)."""
    return x + (entry - x).detach()
