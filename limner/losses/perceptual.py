"""How different two images look: a distance between what a fixed network sees in them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def perceptual_distance(one: Sequence[Tensor], other: Sequence[Tensor], eps: float = 1e-8) -> Tensor:
    """[B]: of the feature maps [B, C, H, W] of several layers, each place's vector brought to length 1.

    The squared difference, summed over channels, averaged over places and summed over layers (Zhang 2018, LPIPS,
    eq. 1, where the learnt weights of the channels are all 1).
    """
    total: Tensor | float = 0.0
    for a, b in zip(one, other, strict=True):
        a, b = (x.float() / (x.float().square().sum(1, keepdim=True) + eps).sqrt() for x in (a, b))
        total = total + (a - b).square().sum(1).mean((1, 2))
    assert isinstance(total, Tensor)
    return total
