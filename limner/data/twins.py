"""Images that stand on both sides of a split: equal, or the same picture saved or scaled in another way.

Two images are twins if their means over CELLS x CELLS cells, and of colour over fewer, differ by less than NEAR of
their contrast, and their pixels by less than NEAR_PIXELS of it: root mean squares of grey levels, contrast being the
standard deviation of brightness. Images of no contrast are twins only if they are equal.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from limner import files
from limner.data.rows import PackedArray
from limner.settings import LimnerError

CELLS = 16  # a side
COLOUR_CELLS = 4  # JPEG blurs colour
COLOUR_WEIGHT = 0.5
NEAR = 0.07
NEAR_PIXELS = 0.5
RULE = 1  # to be raised with any change of what counts as near
LEAST = 1e-3  # grey levels, for rounding
BATCH = 2**22  # values that are read at a time
# Only images of nearly the same brightness are compared: so many are put in its order, and so many of them compared
# at a time, which bounds the memory.
SORTED, TOGETHER = 2**13, 2**8

Pixels = PackedArray | np.ndarray  # [M, H, W, C]; video [M, T, H, W, C]


def find_twins(pixels: Pixels, of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """[K] bool: whether each row in ``of`` [K] has a twin in the rows ``among`` [N]; kept beside a packed array.

    Of clips the rows of all frames, ``of`` [K, T] and ``among`` [N, T].
    """
    if not len(of) or not len(among):
        return np.zeros(len(of), bool)
    if not isinstance(pixels, PackedArray):
        return _search(pixels, of, among)
    digest = hashlib.blake2b(f"{RULE} {len(of)}".encode(), digest_size=16)
    for rows in (of, among):
        digest.update(np.asarray(rows, "<i8").tobytes())
    file = pixels.path.with_name(f"twins-{digest.hexdigest()}")
    try:
        kept = np.frombuffer(file.read_bytes(), np.uint8)
        if len(kept) == len(of) and kept.max() <= 1:
            return kept.astype(bool)
    except OSError:
        pass
    found = _search(pixels, of, among)
    with suppress(LimnerError):  # a cache that cannot be written to is searched again
        files.write_bytes(file, found.astype(np.uint8).tobytes())
    return found


@dataclass(frozen=True)
class Described:
    """What images are compared by."""

    cells: Tensor  # [N, D], whose squares sum to a mean square
    contrast: Tensor  # [N] of the cells' brightness
    brightness: Tensor  # [N] the mean of that: images differ in it no more than in their cells

    def part(self, rows: Tensor | np.ndarray) -> Described:
        return Described(self.cells[rows], self.contrast[rows], self.brightness[rows])


def _search(pixels: Pixels, of: np.ndarray, among: np.ndarray) -> np.ndarray:
    found, own = np.zeros(len(of), bool), _described(pixels, of)
    order = own.brightness.argsort()
    own = own.part(order)
    for rows, others in _by_brightness(pixels, among):
        reach = NEAR * float(others.contrast.max()) + 2 * LEAST
        ends = others.brightness[[0, -1]] + torch.tensor([-reach, reach])
        start, end = torch.searchsorted(own.brightness, ends).tolist()
        left = start + np.flatnonzero(~found[order[start:end].numpy()])
        near = own.part(left)
        limit = NEAR * torch.minimum(near.contrast[:, None], others.contrast)
        squares = near.cells.square().sum(1)
        square = squares[:, None] + others.cells.square().sum(1) - 2 * near.cells @ others.cells.T
        excess, nearest = (square - limit.square()).min(1)
        # Squares of a difference of squares are rounded: what may be near is looked at itself.
        for k in np.flatnonzero((excess < 0.5 + 1e-6 * squares).numpy()):
            i, j = int(order[left[k]]), nearest[k]
            least = torch.minimum(near.contrast[k], others.contrast[j])
            found[i] = _near(near.cells[k] - others.cells[j], least, pixels, of[i], rows[j])
    return found


def _by_brightness(pixels: Pixels, among: np.ndarray) -> Iterator[tuple[np.ndarray, Described]]:
    """Few rows at a time and what describes them, alike in brightness and in its order."""
    for at in range(0, len(among), SORTED):
        rows = among[at : at + SORTED]
        described = _described(pixels, rows)
        for some in described.brightness.argsort().split(TOGETHER):
            yield rows[some.numpy()], described.part(some)


def _near(difference: Tensor, contrast: Tensor, pixels: Pixels, row: int, other: int) -> bool:
    """Whether two rows are twins, by the difference of their cells [D] and their pixels."""
    if float(difference.double().square().sum().sqrt()) > NEAR * float(contrast) + LEAST:
        return False
    one, two = (_levels(pixels, np.array([i])).double() for i in (row, other))
    return float((one - two).square().mean().sqrt()) <= NEAR_PIXELS * float(contrast)


def _described(pixels: Pixels, rows: np.ndarray) -> Described:
    parts = []
    for some in _batches(pixels, rows):
        images = _means(_levels(pixels, some), CELLS)
        if images.shape[1] < 3:
            bright, colour = images[:, :1], images[:, 1:]
        else:
            red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
            bright = 0.299 * red + 0.587 * green + 0.114 * blue
            colour = torch.cat([blue - bright, red - bright, images[:, 3:]], 1)
        contrast, brightness = torch.std_mean(bright.flatten(1), 1, correction=0)
        cells = torch.cat([_scaled(bright), COLOUR_WEIGHT * _scaled(_means(colour, COLOUR_CELLS))], 1)
        parts.append((cells, contrast, brightness))
    return Described(*map(torch.cat, zip(*parts, strict=True)))


def _levels(pixels: Pixels, rows: np.ndarray) -> Tensor:
    """Float32 [B, C, H, W] of 0 to 255; the frames of a video one below another."""
    values = np.asarray(pixels[rows])
    full = 255 if values.dtype == np.uint8 else 65535
    images = torch.from_numpy(values.reshape(len(rows), -1, *values.shape[-2:])).movedim(-1, 1)
    return images.float() * (255 / full)


def _means(images: Tensor, most: int) -> Tensor:
    """Over at most ``most`` cells a side."""
    return F.adaptive_avg_pool2d(images, (min(most, images.shape[2]), min(most, images.shape[3])))


def _scaled(cells: Tensor) -> Tensor:
    return cells.flatten(1) / math.sqrt(cells.shape[2] * cells.shape[3])


def _batches(pixels: Pixels, rows: np.ndarray) -> Iterator[np.ndarray]:
    size = max(1, BATCH // (math.prod(pixels.shape[1:]) * math.prod(rows.shape[1:])))
    for at in range(0, len(rows), size):
        yield rows[at : at + size]
