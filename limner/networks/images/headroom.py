"""Room beyond the range of pixels, so that what is pure stays pure."""

from __future__ import annotations

import torch
from torch import Tensor

HEADROOM = 0.1  # of the presets that are Limner's own


def with_headroom(image: Tensor, room: float) -> Tensor:
    """[...] in [-1, 1] -> the same, with -1 and 1 moved out by ``room``; clamping gives the image back.

    A guess that is a little off -1 shows as grain on flat black or transparency. One that is as much off -1 - room does
    not, once it is clamped.
    """
    return torch.where(image.abs() >= 1, (1 + room) * image.sign(), image) if room else image
