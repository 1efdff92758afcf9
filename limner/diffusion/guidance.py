"""Classifier-free guidance (Ho and Salimans 2022)."""

from __future__ import annotations

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale (conditional - unconditional); 1 is none, scale = w + 1 in the paper's terms."""
    return unconditional + scale * (conditional - unconditional)
