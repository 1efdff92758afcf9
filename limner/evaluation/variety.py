"""Whether images are empty, or all alike: what a generator draws that has collapsed, or has not yet begun."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limner.evaluation.images import Images

LOOKED_AT = 512  # images of a side
FLAT = 6 / 127.5  # range of values, of 2, up to which a person sees one colour
ALIKE = 0.1  # of the usual difference of two real images


@dataclass(frozen=True)
class Variety:
    """Of images, RGBA as seen over black and over white; of clips, frames."""

    transparent: float  # share that is nowhere opaque
    flat: float  # share of a single colour, the transparent ones included
    difference: float  # root mean square difference of two of them, in [0, 2]


def variety(images: Images) -> Variety:
    """Of at most ``LOOKED_AT`` of them, chosen evenly. Empty for no images."""
    some = images.part(np.unique(np.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).astype(int)))
    transparent, flat, sums, squares, n = 0, 0, torch.zeros(()), 0.0, 0
    for batch in some.batches():
        seen = over_black_and_white(batch).flatten(2)  # [B, S, N]
        one_colour = (seen.amax(2) - seen.amin(2) <= FLAT).all(1)  # [B]
        if batch.shape[1] == 4:
            transparent += int((batch[:, 3].flatten(1).amax(1) <= FLAT - 1).sum())
        flat += int(one_colour.sum())
        x = seen.flatten(1).double()
        sums, squares, n = sums + x.sum(0), squares + float(x.square().sum()), n + len(x)
    if n < 2:
        return Variety(0.0, 0.0, 0.0)
    # Of two different ones of n: twice the variance with n - 1.
    spread = (squares - float(sums.square().sum()) / n) / (n - 1) / sums.numel()
    return Variety(transparent / n, flat / n, (2 * max(spread, 0.0)) ** 0.5)


def over_black_and_white(images: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, S, H, W]: RGBA, alpha premultiplied, over black and over white; others as they are."""
    if images.shape[1] < 4:
        return images
    colour, alpha = images[:, :3], images[:, 3:]
    return torch.cat([colour, colour + (1 - alpha)], dim=1)


def collapse(drawn: Variety, real: Variety) -> str | None:
    """What drawn images are, in words ("are wholly transparent"); None where they are as varied as real ones."""
    for name, words in (("transparent", "are wholly transparent"), ("flat", "are of a single colour")):
        share, usual = getattr(drawn, name), getattr(real, name)
        if share > 0.5 and share > 2 * usual:
            return words
    if drawn.difference < ALIKE * real.difference:
        return "are all alike"
    return None
