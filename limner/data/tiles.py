"""Large pictures cut into tiles at their own scale. A row of packed data is a tile, named by its picture and place."""

from __future__ import annotations

import os
import re
from collections import Counter

import numpy as np

from limner.data.images.header import Header
from limner.data.images.limits import Unusable

# Height and width of a tile, unless a person asks for others or all pictures share a smaller size.
DEFAULT = 128, 128
_PLACE = re.compile(r"@\d+,\d+(\.[^./]*)?$")


def name_of(picture: str, row: int, column: int) -> str:
    """'a/b.png' -> 'a/b@0,2.png': the same for a picture and its partner of another scale."""
    stem, suffix = os.path.splitext(picture)
    return f"{stem}@{row},{column}{suffix}"


def picture_of(name: str) -> str:
    """The name of the picture that a tile is of."""
    return _PLACE.sub(lambda match: match[1] or "", name)


def starts(length: int, side: int) -> list[int]:
    """Where tiles of a side begin along ``length`` pixels; a rest of half a side or more has a tile that overlaps.

    Those of a picture that is a whole number of times as large, with tiles as many times as large, are as many times as
    far. Raises Unusable for a length below a side.
    """
    if length < side:
        raise Unusable(f"{length} pixels are less than the {side} of a tile: choose a smaller --size")
    return [min(i * side, length - side) for i in range((2 * length + side) // (2 * side))]


def cut(pixels: np.ndarray, height: int, width: int) -> dict[tuple[int, int], np.ndarray]:
    """[T, H, W, C] -> its tiles [T, height, width, C], by (row, column). Raises Unusable for a smaller picture."""
    down, across = starts(pixels.shape[1], height), starts(pixels.shape[2], width)
    return {
        (i, j): pixels[:, top : top + height, left : left + width]
        for i, top in enumerate(down)
        for j, left in enumerate(across)
    }


def count(headers: Counter[Header], size: tuple[int, int]) -> int:
    """How many tiles pictures have, those that are too small none."""
    return sum(
        n * len(starts(h.height, size[0])) * len(starts(h.width, size[1]))
        for h, n in headers.items()
        if h.height >= size[0] and h.width >= size[1]
    )
