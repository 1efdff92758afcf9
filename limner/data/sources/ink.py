"""What stands out from the background of a picture, in which of the palette's colours, in connected parts."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from limner.data.sources.scenes import COLOURS

PALETTE = np.array(list(COLOURS.values()), np.float32)


def ink(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of float32 pictures [N, H, W, 3] of 0 to 255: the background [N, 1, 1, 3], the share of each pixel that is
    coloured [N, H, W], the index of the colour that explains it best [N, H, W], and how far it is off, in levels.
    """
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], 1)
    paper = np.median(border, 1)[:, None, None]  # [N, 1, 1, 3]
    inks = PALETTE - paper[:, :, :, None]  # [N, 1, 1, colours, 3]
    stain = pixels - paper  # [N, H, W, 3]
    # How much of each colour would explain each pixel, and how badly it would.
    amount = np.einsum("nhwd,nabcd->nhwc", stain, inks) / (inks**2).sum(-1)  # [N, H, W, colours]
    amount = np.clip(amount, 0, 1)
    error = np.stack(
        [np.square(stain - amount[..., c, None] * inks[:, :, :, c]).sum(-1) for c in range(len(PALETTE))], -1
    )
    best = error.argmin(-1)  # [N, H, W]
    amount, error = (np.take_along_axis(x, best[..., None], -1)[..., 0] for x in (amount, error))
    return paper, amount, best, np.sqrt(error)


def connected(mask: np.ndarray) -> np.ndarray:
    """Labels [N, H, W] of the connected parts (8 neighbours) of each mask; 0 is outside."""
    inside = torch.from_numpy(mask)[:, None].float()
    count = mask[0].size
    label = torch.arange(1, count + 1).reshape(1, 1, *mask.shape[1:]) * inside
    while True:  # the largest label floods its part
        flooded = F.max_pool2d(label, 3, 1, 1) * inside
        if torch.equal(flooded, label):
            return label[:, 0].numpy().astype(np.int64)
        label = flooded
