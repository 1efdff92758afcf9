"""Whether images are empty, or all alike: what a generator draws that has collapsed, or has not yet begun."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from limner.evaluation.images import Images
from limner.networks.images.channels import with_channels

LOOKED_AT = 512  # images of each set, at most
FLAT = 6 / 127.5  # difference of values in [-1, 1] that a person hardly sees: six grey levels
SPECKS = 0.01  # fraction of an image's pixels that may differ from the rest, unseen
MOST = 0.5  # fraction of images from which on a set has collapsed to what they are
ALIKE = 0.1  # the same, for the difference of two drawn images relative to that of two real ones


@dataclass(frozen=True)
class Variety:
    """Of a set of images; RGBA as seen over black and over white."""

    transparent: float  # fraction that is wholly transparent
    flat: float  # fraction of a single colour
    difference: float  # root mean square difference of two images, in [0, 2]


def variety(images: Images) -> Variety:
    """Of at most ``LOOKED_AT`` images, chosen evenly; all 0 for fewer than two."""
    some = images.part(np.unique(np.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).astype(int)))
    transparent, flat, sums, squares, n = 0, 0, torch.zeros(()), 0.0, 0
    for batch in some.batches():
        shown = batch
        if batch.shape[1] == 4:
            opaque = batch[:, 3].flatten(1) > FLAT - 1  # [B, H W]
            transparent += int((opaque.float().mean(1) <= SPECKS).sum())
            shown = torch.cat(
                [batch[:, :3], with_channels(batch, 3)], dim=1
            )  # over black, over white: [B, 6, H, W]
        shown = shown.flatten(2)  # [B, C, H W]
        off = (shown - shown.median(2, keepdim=True).values).abs() > FLAT  # [B, C, H W]
        flat += int((off.any(1).float().mean(1) <= SPECKS).sum())
        x = shown.flatten(1).double()
        sums, squares, n = sums + x.sum(0), squares + float(x.square().sum()), n + len(x)
    if n < 2:
        return Variety(0.0, 0.0, 0.0)
    # The mean square difference of two samples is twice their variance.
    variance = (squares - float(sums.square().sum()) / n) / (n - 1) / sums.numel()
    return Variety(transparent / n, flat / n, (2 * max(variance, 0.0)) ** 0.5)


def collapse(drawn: Variety, real: Variety) -> str | None:
    """What is wrong with drawn images: "80% are wholly transparent", "all are alike". None where nothing is.

    What is usual among the real images is not wrong.
    """
    if drawn.transparent > max(MOST, 2 * real.transparent):
        return f"{drawn.transparent:.0%} are wholly transparent"
    if drawn.flat > max(MOST, 2 * real.flat):
        return f"{drawn.flat:.0%} are of a single colour"
    return "all are alike" if drawn.difference < ALIKE * real.difference else None
