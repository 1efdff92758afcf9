"""What packing makes of the images' sizes, transparency and depth, in sentences for the person."""

from __future__ import annotations

import math
import os
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from limner.data.images.header import Header
from limner.data.images.limits import MAX_PIXELS
from limner.settings import LimnerError

_SMALL_SHARE = 0.05  # of a picture's area; a crop that takes no more is not mentioned


def common_size(headers: Iterable[Header]) -> tuple[int, int] | None:
    """The size of all images, if they share one of 16 to 64 pixels a side: what they are packed at by default."""
    sizes = {(h.height, h.width) for h in headers}
    return next(iter(sizes)) if len(sizes) == 1 and all(16 <= side <= 64 for side in min(sizes)) else None


def median_size(headers: Counter[Header]) -> tuple[int, int] | None:
    """The median height and the median width of all images; None of none."""
    if not headers:
        return None
    sides = ([h.height for h in headers.elements()], [h.width for h in headers.elements()])
    height, width = map(statistics.median_low, sides)
    return height, width


def size_notes(headers: Counter[Header], size: tuple[int, int], fit: str | None, rows: int) -> list[str]:
    """The images' own sizes, the size (height, width) they are packed at, and what the fit does; [] if all is kept.

    ``rows`` is the number of tiles, where the fit is that.
    """
    own = np.array([(h.height, h.width) for h in headers], np.int64).reshape(-1, 2)
    own = np.repeat(own, list(headers.values()), 0)
    if not len(own) or (own == size).all():
        return []
    if fit == "tiles":
        tiles = f"{rows:,} tiles of {_by(size)}"
        return [
            f"{_own(own)}: they are cut into {tiles} at their own scale (--size and --data.fit change this)."
        ]
    change = "--size changes this"
    to = _by(size)
    scale = (np.array(size) / own).max(1, keepdims=True)
    kept = (np.array(size) / (scale * own)).prod(1)  # share of each image's area
    cut = kept < 1 - _SMALL_SHARE
    if fit in (None, "crop") and cut.any():
        whose = "their area" if cut.all() else f"the area of {cut.sum():,} of them"
        median = "" if np.ptp(kept[cut]) < 0.01 else " in the median"
        to += f" and cropped, which keeps {np.median(kept[cut]):.0%} of {whose}{median}"
    elif cut.any():
        to = f"fit {to} and padded" if fit == "pad" else f"{to}, which changes their shapes"
    if cut.any():
        change = "--size and --data.fit change this"
    return [f"{_own(own)}: they are resized to {to} ({change}).", *_enlarged(own, size, fit)]


def _enlarged(own: np.ndarray, size: tuple[int, int], fit: str | None) -> list[str]:
    """A sentence on the images that are enlarged, by their own sizes [N, 2]; [] where none is."""
    times = np.array(size) / own
    times = times.min(1) if fit == "pad" else times.max(1)
    if not (small := int((times > 1).sum())):
        return []
    which = "All" if small == len(own) else f"{small:,} of the {len(own):,}"
    are = "is" if small == 1 else "are"
    return [
        f"{which} {are} smaller than {_by(size)} and {are} enlarged, up to {times.max():.2g} times, which blurs them."
    ]


def _own(sizes: np.ndarray) -> str:
    if (sizes == sizes[0]).all():
        return f"All images are {_by(sizes[0])} (height x width)"
    order = np.argsort(sizes.prod(1), kind="stable")
    least, most = sizes[order[0]], sizes[order[-1]]
    middle = np.median(sizes, 0).astype(int)
    return f"The images are {_by(middle)} in the median (height x width), from {_by(least)} to {_by(most)}"


def _by(size: Sequence[int] | np.ndarray) -> str:
    return f"{size[0]}x{size[1]}"


def form_notes(headers: Counter[Header], transparent: int, channels: int | None) -> list[str]:
    """How some images decide the channels and bits of all; ``transparent`` of them are, ``channels`` were asked for."""
    n, notes = headers.total(), []
    if channels is None and 0 < transparent < n:
        notes.append(
            f"With transparency in {transparent:,} of {n:,} images, all are packed as RGBA "
            "(--data.channels 3 lays them over --data.background)."
        )
    if 0 < (deep := sum(count for h, count in headers.items() if h.bits == 16)) < n:
        notes.append(f"With 16 bits a channel in {deep:,} of {n:,} images, all are packed in 16 bits.")
    return notes


def refuse_size(size: tuple[int, int]) -> None:
    """Raises LimnerError for a size (height, width) that no image can have here."""
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise LimnerError(f"Images of {_by(size)} pixels cannot be made: choose a size such as 64x64.")


def refuse_beyond_memory(count: int, shape: Sequence[int]) -> None:
    """Raises LimnerError if so many float32 images of a shape (C, [T,] H, W) are more than the machine's memory."""
    if (need := 4 * count * math.prod(shape)) > memory():
        raise LimnerError(
            f"{count:,} images of {_by(shape[-2:])} take {need / 1e9:,.0f} GB, more than this machine's memory of "
            f"{memory() / 1e9:,.0f} GB: choose a smaller --size or fewer images at a time."
        )


def refuse_beyond_disk(need: int, folder: Path) -> None:
    """Raises LimnerError if the disk of a folder, which need not exist yet, has no room for so many bytes."""
    while not folder.exists():
        folder = folder.parent
    if need > (free := shutil.disk_usage(folder).free):
        raise LimnerError(
            f"Packing these images needs about {need:,} bytes in {folder}, where {free:,} are free: choose a smaller "
            "--size, make room, or name another folder with --data.cache or LIMNER_CACHE."
        )


@cache
def memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
