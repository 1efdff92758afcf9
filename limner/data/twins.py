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


def _search(pixels: Pixels, of: np.ndarray, among: np.ndarray) -> np.ndarray:
    found = np.zeros(len(of), bool)
    cells, contrast = _described(pixels, of)
    own = cells.square().sum(1)
    for rows in _batches(pixels, among):
        others, contrasts = _described(pixels, rows)
        left = np.flatnonzero(~found)
        limit = NEAR * torch.minimum(contrast[left, None], contrasts)
        square = own[left, None] + others.square().sum(1) - 2 * cells[left] @ others.T
        excess, nearest = (square - limit.square()).min(1)
        # Squares of a difference of squares are rounded: what may be near is looked at itself.
        for k in np.flatnonzero((excess < 0.5 + 1e-6 * own[left]).numpy()):
            i, j = left[k], nearest[k]
            least = torch.minimum(contrast[i], contrasts[j])
            found[i] = _near(cells[i] - others[j], least, pixels, of[i], rows[j])
    return found


def _near(difference: Tensor, contrast: Tensor, pixels: Pixels, row: int, other: int) -> bool:
    """Whether two rows are twins, by the difference of their cells [D] and their pixels."""
    if float(difference.double().square().sum().sqrt()) > NEAR * float(contrast) + LEAST:
        return False
    one, two = (_levels(pixels, np.array([i])).double() for i in (row, other))
    return float((one - two).square().mean().sqrt()) <= NEAR_PIXELS * float(contrast)


def _described(pixels: Pixels, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """The cells [N, D] of rows, whose squares sum to a mean square, and the contrast [N] of their brightness."""
    cells, contrasts = [], []
    for some in _batches(pixels, rows):
        images = _means(_levels(pixels, some), CELLS)
        if images.shape[1] < 3:
            bright, colour = images[:, :1], images[:, 1:]
        else:
            red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
            bright = 0.299 * red + 0.587 * green + 0.114 * blue
            colour = torch.cat([blue - bright, red - bright, images[:, 3:]], 1)
        contrasts.append(bright.flatten(1).std(1, correction=0))
        cells.append(torch.cat([_scaled(bright), COLOUR_WEIGHT * _scaled(_means(colour, COLOUR_CELLS))], 1))
    return torch.cat(cells), torch.cat(contrasts)


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
