"""Vector quantisation: each vector becomes the nearest entry of a codebook (van den Oord 2017)."""

import torch
from torch import Tensor, nn


class Codebook(nn.Module):
    """``codes`` learned vectors of ``width``: uniform near 0 at first, as published, or ``wide``: standard normal."""

    def __init__(self, codes: int, width: int, wide: bool = False):
        super().__init__()
        self.entries = nn.Embedding(codes, width)
        if not wide:
            nn.init.uniform_(self.entries.weight, -1 / codes, 1 / codes)

    def nearest(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> index [B, H, W] of the entry nearest to each position's vector."""
        flat = x.float().movedim(1, -1)  # [B, H, W, width]
        entries = self.entries.weight.float()
        with torch.autocast(x.device.type, enabled=False):  # float32, or rounding would choose another entry
            distance = entries.square().sum(1) - 2 * flat @ entries.T  # [B, H, W, codes], without |x|^2
        return distance.argmin(-1)

    def lookup(self, index: Tensor) -> Tensor:
        """[B, H, W] -> [B, width, H, W]."""
        return self.entries(index).movedim(-1, 1)


def straight_through(x: Tensor, entry: Tensor) -> Tensor:
    """The entry, with the gradient passed to the vector (Bengio 2013)."""
    return x + (entry - x).detach()
