"""Scenes as pictures, at any height and width: filled on paper, or the same outlined on dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from limner.data.sources.scenes import COLOURS, SHAPES, SIZES, Scene
from limner.settings import LimnerError

Style = Literal["filled", "outlined"]

# From the tint of paper to that of the dark: blue enough that black objects stand out from it.
_PAPER, _DARK, _CHANGE = 236.0, np.array([6, 12, 120], np.float32), 0.4
_LINE, _LEAST_LINE = (
    0.045,
    1.35,
)  # width of an outline: a share of the shorter side, and at least so many pixels
REACH = 1.17  # no object reaches further across or down from its centre than this many radii


def _outline(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance, negative inside, of a shape of radius 1 at the origin; y points down."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    x = np.abs(x)
    if shape == "square":
        return np.maximum(x, np.abs(y)) - np.float32(0.88)
    if shape == "triangle":
        y = y - np.float32(0.34)
        return np.maximum(y, x * np.float32(0.75**0.5) - y / 2) - np.float32(0.675)
    # A star is one edge, from a tip to a notch, in each of ten mirrored sectors.
    sector = np.float32(np.pi / 5)
    angle = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    radius = np.hypot(x, y)
    tip, notch = np.float32(1.17), 0.6 * np.exp(1j * sector)
    normal = (notch - tip) / abs(notch - tip) * -1j
    return (radius * np.cos(angle) - tip) * normal.real + radius * np.sin(angle) * normal.imag


def line_width(size: tuple[int, int]) -> float:
    """The width of an outline, inwards from the edge of the filled object, in units of the shorter side."""
    return max(_LINE, _LEAST_LINE / min(size))


def coverage(
    shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, size: tuple[int, int], inset: float = 0.0
) -> np.ndarray:
    """[n, H, W] share of each pixel that n objects of one shape cover, smaller by ``inset`` on all sides.

    Of pictures of a size (height, width), in units of the shorter side.
    """
    x, y, radius = (np.asarray(v, np.float32)[:, None, None] for v in (x, y, radius))
    across, down = pixel_grid(*size)
    distance = _outline(shape, (across - x) / radius, (down - y) / radius) * radius
    return np.clip(0.5 - (distance + inset) * min(size), 0, 1)


def pixel_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres across [1, W] and down [H, 1], in units of the shorter side."""
    side = np.float32(min(height, width))
    return (np.arange(width, dtype=np.float32)[None] + 0.5) / side, (
        np.arange(height, dtype=np.float32)[:, None] + 0.5
    ) / side


def _place(
    scenes: Sequence[Scene], height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Centres [N, 2 objects, 2 axes (x, y)] and radii [N, 2]: each object moves freely in its own half."""
    side = min(height, width)
    extent = np.array([width / side, height / side])
    radius = np.array([[SIZES[s.first.size], SIZES[s.second.size]] for s in scenes])
    reach = REACH * radius
    halves = np.array([s.relation in ("below", "right of") for s in scenes])[:, None] ^ np.array(
        [[False, True]]
    )
    axis = np.array([s.relation in ("above", "below") for s in scenes]).astype(int)  # 1: they differ along y
    length = extent[axis][:, None]
    low, high = reach + 0.012, length / 2 - 0.01 - reach
    along = low + rng.random(radius.shape) * (high - low)
    along = np.where(halves, length - along, along)
    across = extent[1 - axis][:, None] / 2 + rng.uniform(-0.06, 0.06, radius.shape)
    centre = np.stack(
        [np.where(axis[:, None] == 0, along, across), np.where(axis[:, None] == 1, along, across)], -1
    )
    return centre, radius


def draw(scenes: Sequence[Scene], height: int, width: int, seed: int, style: Style = "filled") -> np.ndarray:
    """The scenes as pictures, uint8 [N, H, W, 3], from 24 pixels a side; the seed decides their places in any style."""
    if min(height, width) < 24:
        raise LimnerError(f"shapes cannot be distinguished at {height}x{width}: choose 24x24 or larger")
    rng = np.random.default_rng(seed)
    size = (height, width)
    pictures = np.empty((len(scenes), height, width, 3), np.uint8)
    chunk = max(1, 2**20 // (height * width))
    for start in range(0, len(scenes), chunk):
        some = scenes[start : start + chunk]
        centre, radius = _place(some, height, width, rng)
        canvas = paper(len(some), height, width, rng)
        if style == "outlined":
            canvas = _DARK + _CHANGE * (canvas - _PAPER)
        for k in (0, 1):
            things = [s.second if k else s.first for s in some]
            for shape in SHAPES:
                rows = np.array([i for i, t in enumerate(things) if t.shape == shape], int)
                x, y, r = centre[rows, k, 0], centre[rows, k, 1], radius[rows, k]
                cover = coverage(shape, x, y, r, size)[..., None]
                if style == "outlined":
                    cover = cover - coverage(shape, x, y, r, size, line_width(size))[..., None]
                colour = np.array([COLOURS[things[i].colour] for i in rows], np.float32).reshape(-1, 1, 1, 3)
                canvas[rows] += cover * (colour - canvas[rows])
        pictures[start : start + chunk] = np.clip(canvas + 0.5, 0, 255)
    return pictures


def paper(n: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """[n, H, W, 3] soft paper: a pale tint that fades a little from top to bottom."""
    tint = rng.uniform(226, 246, (n, 1, 1, 3)).astype(np.float32)
    fade = rng.uniform(-5, 5, (n, 1, 1, 1)).astype(np.float32)
    ramp = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    return np.broadcast_to(tint + fade * ramp, (n, height, width, 3)).copy()
