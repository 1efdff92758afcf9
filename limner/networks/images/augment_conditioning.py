"""Augmentation whose parameters condition the network, so that samples are not augmented (Karras 2022, app. F.2)."""

import math
from functools import partial

import torch
from torch import Tensor

from limner.networks.images.augment import rotate2d, scale2d, translate2d, warp

SIZE = 0.2  # standard deviation of the log2 of scaling and of stretching
MOVE = 0.125  # standard deviation of translations, in sides of the image
FEATURES = 9  # numbers that describe an image's augmentation; 0 for an image that was not augmented


def augment(x: Tensor, chance: float) -> tuple[Tensor, Tensor]:
    """[B, C, H, W] -> images of the same shape, and their augmentations [B, 9].

    Half of the images are mirrored. With probability ``chance`` each: flipped vertically (half of them), scaled,
    rotated, stretched (half along an axis, half in any direction), translated. Uses torch's global generator.
    """
    n, _, height, width = x.shape
    normal = partial(torch.randn, n, device=x.device)

    def sometimes(number: Tensor) -> Tensor:
        return torch.where(torch.rand(n, device=x.device) < chance, number, 0.0)

    def angle() -> Tensor:
        return math.pi * (2 * torch.rand(n, device=x.device) - 1)

    def coin() -> Tensor:
        return torch.randint(2, (n,), device=x.device).float()

    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        mirrored, upside_down = coin(), sometimes(coin())
        x = torch.where(mirrored[:, None, None, None] > 0, x.flip(3), x)  # [B, C, H, W]
        x = torch.where(upside_down[:, None, None, None] > 0, x.flip(2), x)
        size, turn, stretch = sometimes(normal()), sometimes(angle()), sometimes(normal())
        along = torch.where(torch.rand(n, device=x.device) < 0.5, angle(), 0.0)
        moved = sometimes(torch.ones(n, device=x.device))
        right, down = moved * normal(), moved * normal()
        # Matrices map pixels of the result to pixels of the image.
        g = scale2d((-SIZE * size).exp2(), (-SIZE * size).exp2()) @ rotate2d(turn)
        stretched = scale2d((-SIZE * stretch).exp2(), (SIZE * stretch).exp2())
        g = g @ rotate2d(-along) @ stretched @ rotate2d(along)
        g = g @ translate2d(-MOVE * width * right, -MOVE * height * down)  # [B, 3, 3]
        changed = torch.stack([size, turn, stretch, moved]).any(0).nonzero().flatten()
        if len(changed) and min(height, width) > 1:  # one pixel has no neighbours
            x = x.index_copy(0, changed, warp(x[changed], g[changed]))
        features = [
            mirrored, upside_down, size, turn.cos() - 1, turn.sin(),
            stretch * along.cos(), stretch * along.sin(), right, down,
        ]  # fmt: skip
        return x, torch.stack(features, dim=1)
