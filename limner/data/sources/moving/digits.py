"""Handwritten digits as things of a clip: those of scikit-learn, at any size and place."""

from __future__ import annotations

from functools import cache

import numpy as np

from limner.data.sources.drawing import REACH, pixel_grid
from limner.settings import need

DIGITS = tuple("0123456789")


@cache
def bitmaps() -> tuple[np.ndarray, np.ndarray]:
    """float32 [1797, 8, 8], the share of each cell that ink covers, and the digit [1797] of each."""
    loaded = need("sklearn.datasets", "The digits are a part of scikit-learn", "metrics").load_digits()
    # Bold enough to be read at the size of a few pixels.
    return np.clip(loaded.images / 16 * 2 - 0.1, 0, 1).astype(np.float32), loaded.target


def digit_cover(
    shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, size: tuple[int, int], which: float
) -> np.ndarray:
    """[n, H, W] share of each pixel that n digits cover, whose bitmaps reach `REACH` radii from their centres.

    ``which`` in [0, 1) chooses one of the bitmaps of that digit.
    """
    pictures, digits = bitmaps()
    own = np.flatnonzero(digits == int(shape))
    bitmap = np.pad(pictures[own[int(which * len(own))]], 1)  # [10, 10], empty at its border
    x, y, radius = (np.asarray(v, np.float32)[:, None, None] for v in (x, y, radius))
    across, down = pixel_grid(*size)
    column, row = (
        (a - b) * 4 / (REACH * radius) + 4.5 for a, b in ((across, x), (down, y))
    )  # [n, 1, W], [n, H, 1]
    return _bilinear(bitmap, np.clip(row, 0, 9), np.clip(column, 0, 9))


def _bilinear(bitmap: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    top, left = np.minimum(row.astype(int), 8), np.minimum(column.astype(int), 8)
    down, right = row - top, column - left
    upper = bitmap[top, left] * (1 - right) + bitmap[top, left + 1] * right
    lower = bitmap[top + 1, left] * (1 - right) + bitmap[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down
