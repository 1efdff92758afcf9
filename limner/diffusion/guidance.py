"""Guidance: away from what a weaker guess says, by no condition or by a weaker network."""

from __future__ import annotations

from torch import Tensor


def guide(strong: Tensor, weak: Tensor, scale: float) -> Tensor:
    """weak + scale (strong - weak); 1 is none, scale = w + 1 in Ho and Salimans 2022's terms.

    ``weak`` is a guess without the condition (Ho and Salimans 2022), or that of a smaller or less trained
    network (Karras 2024, eq. 5).
    """
    return weak + scale * (strong - weak)
