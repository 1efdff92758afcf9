"""Augmentation whose kind and strength the network is told, so that it draws images as they were.

Karras 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix F.2 and table 6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limner.networks.augment import move2d, scale2d, turn2d, warp

NUMBERS = 9  # that tell what was done to an image; all are 0 where nothing was


def augment(x: Tensor, chance: float) -> tuple[Tensor, Tensor]:
    """[B, C, H, W] -> images of the same shape, and [B, 9] numbers that tell what was done to each.

    Half of the images are mirrored. Each with probability ``chance``, then a coin that says whether: upside
    down; and always: larger or smaller, turned, stretched in any direction, moved. Draws come from torch's
    global generator.
    """
    n, _, height, width = x.shape

    def sometimes(number: Tensor) -> Tensor:
        return torch.where(torch.rand(n, device=x.device) < chance, number, 0.0)

    def normal() -> Tensor:
        return torch.randn(n, device=x.device)

    def angle() -> Tensor:
        return math.pi * (2 * torch.rand(n, device=x.device) - 1)

    def coin() -> Tensor:
        return torch.randint(2, (n,), device=x.device).float()

    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        mirrored, upside_down = coin(), sometimes(coin())
        x = torch.where(mirrored[:, None, None, None] > 0, x.flip(3), x)  # [B, C, H, W]
        x = torch.where(upside_down[:, None, None, None] > 0, x.flip(2), x)
        size, turn = sometimes(0.2 * normal()), sometimes(angle())
        stretch, along = sometimes(0.2 * normal()), angle()
        right, down = sometimes(0.125 * normal()), sometimes(0.125 * normal())
        # Each matrix says where a pixel of the result looks.
        g = scale2d((-size).exp2(), (-size).exp2()) @ turn2d(turn)
        g = g @ turn2d(-along) @ scale2d((-stretch).exp2(), stretch.exp2()) @ turn2d(along)
        g = g @ move2d(-width * right, -height * down)  # [B, 3, 3]
        changed = (
            ((size != 0) | (turn != 0) | (stretch != 0) | (right != 0) | (down != 0)).nonzero().flatten()
        )
        if len(changed) and min(height, width) > 1:  # one pixel has no neighbours to look at
            x = x.index_copy(0, changed, warp(x[changed], g[changed]))
        told = [
            mirrored, upside_down, size, turn.cos() - 1, turn.sin(),
            stretch * along.cos(), stretch * along.sin(), right, down,
        ]  # fmt: skip
        return x, torch.stack(told, dim=1)
