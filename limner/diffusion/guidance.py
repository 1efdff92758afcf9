"""Guidance: away from a weaker guess, without the condition or by a weaker network."""

from __future__ import annotations

from torch import Tensor


def guide(strong: Tensor, weak: Tensor, scale: float) -> Tensor:
    """weak + scale (strong - weak); 1 is no guidance, scale = w + 1 in the terms of Ho and Salimans 2022.

    ``weak`` is a guess without the condition (Ho and Salimans 2022), or that of a smaller or less trained
    network (autoguidance: Karras 2024, eq. 5).
    """
    return weak + scale * (strong - weak)
