"""What a thing is: the nearest of known pictures, with all brought to one place and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from limner.data.sources.drawing import pixel_grid
from limner.data.sources.moving.digits import DIGITS, bitmaps, digit_cover
from limner.data.sources.moving.draw import Cover, shape_cover
from limner.data.sources.scenes import SHAPES

_CELLS, _REACH = (
    12,
    2.4,
)  # a thing is brought to so many cells a side, which reach so many spreads from its centroid
_SHIFTS = np.array([[[0.0], [0.0]], [[0.5], [0.25]]])  # of known pictures, in pixels


@dataclass(frozen=True)
class Measured:
    """M masks, each brought to one place and size."""

    cells: np.ndarray  # [M, cells ** 2] of length 1
    places: np.ndarray  # [M, 2] centroids (x, y)
    spreads: np.ndarray  # [M] root of the mean square distance from the centroid


def measure(masks: np.ndarray) -> Measured:
    """Of masks [M, H, W] that are not empty; lengths are in units of the shorter side."""
    height, width = masks.shape[1:]
    side = min(height, width)
    (across, down), mass = pixel_grid(height, width), masks.sum((1, 2))
    columns, rows = masks.sum(1), masks.sum(2)  # [M, W], [M, H]
    places = np.stack([columns @ across[0] / mass, rows @ down[:, 0] / mass], 1)
    squares = columns @ across[0] ** 2 / mass + rows @ down[:, 0] ** 2 / mass - (places**2).sum(1)
    spreads = np.sqrt(np.maximum(squares, 1e-8))
    steps = _REACH * ((np.arange(_CELLS) + 0.5) * 2 / _CELLS - 1)
    at = places[:, None] + steps[:, None] * spreads[:, None, None]  # [M, cells, 2]
    column, row = (np.clip(at[..., k] * side - 0.5, 0, n - 1) for k, n in ((0, width), (1, height)))
    cells = _sampled(masks, row, column).reshape(len(masks), -1)
    return Measured(cells / np.linalg.norm(cells, axis=1, keepdims=True).clip(1e-8), places, spreads)


def _sampled(masks: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """[M, cells, cells] masks at the pixel coordinates row and column [M, cells], bilinearly."""
    top, left = (
        np.minimum(x.astype(int), n - 2) for x, n in ((row, masks.shape[1]), (column, masks.shape[2]))
    )
    of = np.arange(len(masks))[:, None]
    down, right = (row - top)[..., None], (column - left)[:, None]
    lines = masks[of, top] * (1 - down) + masks[of, top + 1] * down  # [M, cells, W]
    index = np.arange(_CELLS)[None, :, None]
    one, other = (lines[of[..., None], index, (left + k)[:, None]] for k in (0, 1))
    return one * (1 - right) + other * right


@dataclass(frozen=True)
class Gallery:
    """Pictures of all shapes that a thing may have, at several sizes in pixels."""

    shapes: Sequence[str]
    cover: Cover
    kinds: Sequence[tuple[str, float]]  # shapes, and which one of several of that shape
    radii: Sequence[float]  # pixels
    least: float  # the cosine from which on a thing is the one that is most alike

    @cached_property
    def _known(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Cells [K, ...], shapes [K], spreads [K] and centroids [K, 2] in radii from the centre."""
        parts = []
        for radius in self.radii:
            side = int(2.6 * radius) + 5
            centres = [np.array([[side / 2], [side / 2]]) + shift for shift in _SHIFTS]
            masks = [
                self.cover(shape, x / side, y / side, np.array([radius / side]), (side, side), own)
                for shape, own in self.kinds
                for x, y in centres
            ]
            found = measure(np.concatenate(masks))
            shift = np.tile(_SHIFTS[..., 0] / side + 0.5, (len(self.kinds), 1))
            share = radius / side
            names = np.repeat([self.shapes.index(shape) for shape, _ in self.kinds], 2)
            parts.append((found.cells, names, found.spreads / share, (found.places - shift) / share))
        cells, names, spreads, places = (np.concatenate(x) for x in zip(*parts, strict=True))
        return cells, names, spreads, places

    def name(self, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of masks [M, H, W]: the index of the shape [M], how alike it is [M], its radius [M] and centre [M, 2]."""
        found = measure(masks)
        cells, names, spreads, places = self._known
        alike = found.cells @ cells.T  # [M, K]
        best = alike.argmax(1)
        radius = found.spreads / spreads[best]
        return names[best], alike.max(1), radius, found.places - places[best] * radius[:, None]


@cache
def shape_gallery() -> Gallery:
    kinds = [(shape, 0.0) for shape in SHAPES]
    return Gallery(SHAPES, shape_cover, kinds, (3, 3.5, 4, 4.7, 5.6, 7, 10, 16, 32), 0.95)


@cache
def digit_gallery() -> Gallery:
    digits = bitmaps()[1]
    counts = np.bincount(digits)
    kinds = [(digit, (k + 0.5) / counts[int(digit)]) for digit in DIGITS for k in range(counts[int(digit)])]
    return Gallery(DIGITS, digit_cover, kinds, (4, 6, 12), 0.8)
