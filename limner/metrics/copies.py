"""The original nearest to an image or a clip, also where it was mirrored, moved, cropped, brightened or compressed.

An image is looked at through every window that such a change may have moved the middle of an original to, mirrored
or not; each window is compared with every original's middle, with brightness and contrast fitted by least squares.
Candidates are found by their coarse cells, so that a search takes milliseconds.

Of a clip some frames are compared, each with the original's frame at the same time, all under the same change: its
frames stand one below another, and cells do not cross from one to the next.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from limner.metrics.windows import Change, Windows

GAINS = (0.7, 1.4)  # of the contrast, as far as they are fitted
OFFSET = 60.0  # grey levels of brightness that are fitted
OFFSET_PRICE = 0.05  # distance a fitted level, so that of equal fits the least changed original is nearest
CELLS = 12  # a side, whose mean brightness is compared
COLOUR_CELLS = 4  # the same of colour, which JPEG blurs
COLOUR_WEIGHT = 0.5  # of colour and opacity, relative to brightness
CHUNK = 16_384  # originals that are searched at a time
SHORT_LIST = 1024  # originals, by some of the windows,
CANDIDATES = 256  # of these, by all windows, whose cells are compared
EXACT = 8  # of these, whose pixels are compared
BATCH = 64  # images that are read at a time
DIGITS = 3  # of distances, so that rounding errors are 0
FRAMES = 8  # of a clip that are compared, at most
TONED = (0.06, 6.0)  # gain and grey levels from which another brightness or contrast is named


class ImageList(Protocol):
    """Images [N, C, H, W] or clips [N, C, T, H, W] in [-1, 1], read when they are indexed; a tensor is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | np.ndarray, /) -> Tensor: ...


@dataclass(frozen=True)
class Matches:
    """The nearest original of each image."""

    distance: Tensor  # [N] root mean square, in grey levels of 255, with the change undone
    index: Tensor  # [N] int64, of the original
    changes: list[Change]  # N

    def kinds(self, which: Tensor) -> dict[str, int]:
        """How often each kind of change occurs among those at ``which`` [N] bool, the most frequent first."""
        chosen = (self.changes[i].kind for i in which.nonzero()[:, 0].tolist())
        return dict(Counter(chosen).most_common())


class Originals:
    """Images that copies are searched of: about a kilobyte of each is held in memory."""

    def __init__(self, images: ImageList, watch: Callable[[float], None] = lambda share: None):
        self.images = images
        described = []
        for at in range(0, len(images), BATCH):
            batch, self.frames = _levels(images[at : at + BATCH])
            self.windows = Windows(tuple(batch.shape[2:]))  # type: ignore[arg-type]
            described.append(self._describe(self.windows.middles(batch)))
            watch(min(1.0, (at + BATCH) / len(images)))
        self.described = _Described(
            *(torch.cat([getattr(d, f) for d in described]) for f in _Described.__annotations__)
        )

    def nearest(self, images: ImageList, watch: Callable[[float], None] = lambda share: None) -> Matches:
        """The nearest original of each of ``images``, which are of the originals' size and channels."""
        found = []
        for at in range(0, len(images), BATCH):
            for i, image in enumerate(_levels(images[at : at + BATCH])[0], start=at + 1):
                found.append(self._nearest(image))
                watch(i / len(images))
        distance, index, changes = zip(*found, strict=True) if found else ((), (), ())
        return Matches(torch.tensor(distance), torch.tensor(index, dtype=torch.int64), list(changes))

    def _nearest(self, image: Tensor) -> tuple[float, int, Change]:
        """Of an image [C F, H, W] in grey levels: the distance to its original, its index and the change."""
        windows = self.windows.of(image)
        seen = self._describe(windows)
        some, every = seen.coarse[self.windows.first], self.described.coarse
        similar = torch.cat([(some @ part.T).amax(0) for part in every.split(CHUNK)])
        index = similar.topk(min(SHORT_LIST, len(similar))).indices
        similar = (seen.coarse @ every[index].T).amax(0)
        index = index[similar.topk(min(CANDIDATES, len(similar))).indices]
        square, view = seen.squares(self.described.rows(index), self.windows.complexity)
        least = square.topk(min(EXACT, len(square)), largest=False).indices
        square, index, view = square[least], index[least], view[least]
        originals = self.windows.middles(_levels(self.images[index.numpy()])[0])
        exact, toned = _compare_pixels(self._stack(windows[view]), self._stack(originals), self.frames)
        square = torch.minimum(square, exact)
        best = int(square.argmin())
        change = self.windows.changes[int(view[best])]
        if bool(toned[best]):
            change = Change(change.mirrored, change.cropped, change.right, change.down, True)
        return round(float(square[best].sqrt()), DIGITS), int(index[best]), change

    def _describe(self, pictures: Tensor) -> _Described:
        return _Described.of(self._stack(pictures), self.frames)

    def _stack(self, pictures: Tensor) -> Tensor:
        """[N, C F, h, w] -> [N, C, F h, w]"""
        return pictures.unflatten(1, (-1, self.frames)).flatten(2, 3)


@dataclass(frozen=True)
class _Described:
    """What of pictures [N, C, F h, w] is compared, each of F frames."""

    tone: Tensor  # [N, D] brightness of cells about its mean, and colour; squares sum to a mean square of levels
    mean: Tensor  # [N] of brightness
    opacity: Tensor  # [N, cells or 0]
    coarse: Tensor  # [N, E] unit vectors

    @classmethod
    def of(cls, pictures: Tensor, frames: int) -> _Described:
        brightness, colour, opacity = _planes(pictures)
        bright = _cells(brightness, CELLS, frames)
        mean = bright.mean((1, 2, 3))
        bright = bright - mean[:, None, None, None]
        half = _cells(bright, CELLS // 2, frames)
        colours, clear = _cells(colour, COLOUR_CELLS, frames), _cells(opacity, CELLS, frames)
        colours, clear = COLOUR_WEIGHT * _flat(colours), COLOUR_WEIGHT * _flat(clear)
        coarse = torch.cat([_flat(half), colours, clear], 1)
        coarse = coarse / (coarse.square().sum(1, keepdim=True) + 1).sqrt()
        return cls(torch.cat([_flat(bright), colours], 1), mean, clear, coarse)

    def rows(self, index: Tensor) -> _Described:
        return _Described(self.tone[index], self.mean[index], self.opacity[index], self.coarse[index])

    def squares(self, originals: _Described, complexity: Tensor) -> tuple[Tensor, Tensor]:
        """The least mean square [K] of these views of one image to each original, and the simplest good view [K]."""
        dot, own = self.tone @ originals.tone.T, self.tone.square().sum(1, keepdim=True)
        power = originals.tone.square().sum(1)
        gain = (dot / (power + 1)).clamp(*GAINS)
        square = own + gain * (gain * power - 2 * dot)
        square += _offset_square(self.mean[:, None] - originals.mean)
        if self.opacity.shape[1]:
            square += torch.cdist(self.opacity, originals.opacity).square()
        square = square.clamp(min=0)
        view = ((square + 1) * (1 + 0.1 * complexity)).argmin(0)
        return square.amin(0), view


def _compare_pixels(images: Tensor, originals: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Of pictures [K, C, F h, w]: their mean squares [K], and whether [K] brightness or contrast differ.

    Gain and offset are fitted where the image is not saturated; the original is cut off at black and white too.
    """
    x, y = (_planes(p)[0].flatten(1) for p in (originals, images))
    inner = ((images[:, :3] > 2) & (images[:, :3] < 253)).all(1).flatten(1)
    inner |= inner.double().mean(1, keepdim=True) < 0.05
    weight = inner.float() / inner.sum(1, keepdim=True)
    x_mean, y_mean = ((weight * v).sum(1, keepdim=True) for v in (x, y))
    power = (weight * (x - x_mean).square()).sum(1)
    gain = ((weight * (x - x_mean) * (y - y_mean)).sum(1) / (power + 1e-6)).clamp(*GAINS)
    gain = torch.where(power < 1, 1.0, gain)
    offset = (y_mean - x_mean * gain[:, None])[:, 0]
    changed = (originals[:, :3] * gain[:, None, None, None] + offset[:, None, None, None]).clamp(0, 255)
    toned_originals = torch.cat([changed, originals[:, 3:]], 1)
    a, b, plain = (_Described.of(each, frames) for each in (toned_originals, images, originals))
    shift = (plain.mean - b.mean).abs()
    square = (a.tone - b.tone).square().sum(1) + (a.opacity - b.opacity).square().sum(1)
    square += _offset_square(shift)
    # An image that fits about as well without a change was not changed.
    plain_square = (plain.tone - b.tone).square().sum(1) + (plain.mean - b.mean).square()
    toned = ((gain - 1).abs() > TONED[0]) | (shift > TONED[1])
    return square, toned & (plain_square > 1.2 * square + 1)


def _offset_square(offset: Tensor) -> Tensor:
    """What another brightness adds to a mean square."""
    return (OFFSET_PRICE * offset).square() + (offset.abs() - OFFSET).clamp(min=0).square()


def _levels(images: Tensor) -> tuple[Tensor, int]:
    """[N, C, H, W] or [N, C, T, H, W] in [-1, 1] -> grey levels [N, C F, H, W], and F frames: some of T, or 1."""
    if images.ndim == 4:
        return (images + 1) * 127.5, 1
    length = images.shape[2]
    frames = min(length, FRAMES)
    chosen = torch.linspace(0, length - 1, frames).round().long()
    return (images[:, :, chosen].flatten(1, 2) + 1) * 127.5, frames


def _planes(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[N, 1, 3 or 4, h, w] -> brightness [N, 1, h, w], colour [N, 0 or 2, h, w] and opacity [N, 0 or 1, h, w]"""
    if pictures.shape[1] < 3:
        return pictures[:, :1], pictures[:, :0], pictures[:, 1:]
    red, green, blue = pictures[:, 0:1], pictures[:, 1:2], pictures[:, 2:3]
    brightness = 0.299 * red + 0.587 * green + 0.114 * blue
    return brightness, torch.cat([blue - brightness, red - brightness], 1), pictures[:, 3:]


def _cells(planes: Tensor, most: int, frames: int) -> Tensor:
    """[N, C, F h, w] -> the means of at most ``most`` cells a side of each frame."""
    height, width = planes.shape[2:]
    return F.adaptive_avg_pool2d(planes, (frames * min(most, height // frames), min(most, width)))


def _flat(cells: Tensor) -> Tensor:
    """[N, C, h, w] -> [N, D], so that the sum of squares is the mean square of cells, summed over channels."""
    return cells.flatten(1) / math.sqrt(cells.shape[2] * cells.shape[3])
