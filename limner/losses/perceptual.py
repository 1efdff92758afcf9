"""A perceptual distance between images, from the feature maps of a fixed network."""

from collections.abc import Sequence

import torch
from torch import Tensor


def perceptual_distance(one: Sequence[Tensor], other: Sequence[Tensor], eps: float = 1e-8) -> Tensor:
    """Feature maps [B, C, H, W] of several layers, of two images each -> distances [B].

    The squared difference of vectors normalised to length 1, summed over channels, averaged over positions, summed
    over layers (Zhang 2018, LPIPS, eq. 1, with all channel weights 1).
    """
    total = one[0].new_zeros(len(one[0]), dtype=torch.float32)
    for a, b in zip(one, other, strict=True):
        a, b = (x.float() / (x.float().square().sum(1, keepdim=True) + eps).sqrt() for x in (a, b))
        total = total + (a - b).square().sum(1).mean((1, 2))
    return total
