"""The rows of a packing: decoded as planned and written one after another, then as one array."""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from limner.data import tiles
from limner.data.cache import fingerprint_of
from limner.data.clips.times import Cut
from limner.data.images import decode
from limner.data.images.deep import Scale
from limner.data.items import Item, Problem
from limner.data.parallel import in_parallel
from limner.data.rows import BlockDigests
from limner.progress import bar


@dataclasses.dataclass(frozen=True)
class Plan:
    """The form that every image is decoded to; channels that turn out unused are dropped at the end."""

    height: int
    width: int
    frames: int
    channels: int
    dtype: np.dtype
    background: tuple[int, int, int]
    fit: str
    half: str
    scale: Scale  # of floats and integers of any range
    filter: str
    cut: Cut | None = None  # of clips, whose rows are single frames

    @property
    def row(self) -> tuple[int, int, int, int]:
        return self.frames, self.height, self.width, self.channels

    @property
    def form(self) -> decode.Form:
        return decode.Form(self.height, self.width, self.fit, self.frames, self.half, self.scale, self.filter)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What is known of a row that was written."""

    item: Item  # of a tile with the tile's name
    size: tuple[int, int]  # own height and width of its picture
    first: int = 0  # of a clip: the row of its first frame
    stride: int = 0  # of a clip: rows from one frame to the next; 0: a still
    rate: float | None = None  # of a clip: frames a second, if known


@dataclasses.dataclass
class Written:
    """What was written of the items of each source."""

    rows: list[list[Row]]
    bad: list[Problem] = dataclasses.field(default_factory=list)  # that are damaged
    used: Counter[int] = dataclasses.field(
        default_factory=lambda: Counter({1: 0})
    )  # channels in use, by item
    short: list[Problem] = dataclasses.field(default_factory=list)  # of films without a clip
    cut: list[Problem] = dataclasses.field(default_factory=list)  # of films that could be read in part
    # of films: names of those that have each trait of `limner.data.clips.notes`
    traits: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    frames: int = 0  # of clips, in all


def uses(pixels: np.ndarray) -> int:
    """The channels in use of [..., C]: 4 where something is transparent, 3 where something has a colour, else 1."""
    if pixels.shape[-1] == 4 and (pixels[..., 3] < np.iinfo(pixels.dtype).max).any():
        return 4
    coloured = pixels.shape[-1] > 1 and bool((pixels[..., :1] != pixels[..., 1:3]).any())
    return 3 if coloured else 1


def write_rows(scratch: Path, items: Sequence[Sequence[Item]], plan: Plan, say: Console) -> Written:
    """Writes the images of each source."""
    written = Written([[] for _ in items])
    every = list(chain.from_iterable(items))
    origins = np.repeat(np.arange(len(items)), [len(some) for some in items]).tolist()
    with open(scratch / "rows", "wb") as file, bar("packing", say.quiet) as watch:
        # Whole pictures take memory: few of them are under way.
        done = in_parallel(partial(_decoded, plan), every, watch, group=1 if plan.fit == "tiles" else 16)
        for origin, (item, decoded) in zip(origins, done, strict=True):
            if isinstance(decoded, Problem):
                written.bad.append(decoded)
                continue
            pixels, names, channels, size = decoded
            file.write(pixels.data)
            for name in names:
                own = item if name == item.name else dataclasses.replace(item, name=name)
                written.rows[origin].append(Row(own, size))
            written.used[channels] += 1
    return written


def _decoded(plan: Plan, item: Item) -> tuple[np.ndarray, list[str], int, tuple[int, int]]:
    """The rows [K, T, H, W, C] of an image as planned, their names, how many channels are in use, and its own size."""
    with item.image(plan.height, plan.width) as source:
        pixels, size = decode.decode_with_size(source, plan.form)
    channels = min(uses(pixels), max(plan.channels, 3))
    pixels = decode.as_channels(pixels, plan.channels, plan.background, plan.dtype)
    if plan.fit != "tiles":
        row = decode.padded(pixels, plan.height, plan.width, plan.background)
        return np.ascontiguousarray(row[None]), [item.name], channels, size
    cut = tiles.cut(pixels, plan.height, plan.width)
    return np.stack(list(cut.values())), [tiles.name_of(item.name, *place) for place in cut], channels, size


def write_array(scratch: Path, plan: Plan, n: int, index: dict[str, Any]) -> tuple[str, list[str]]:
    """Writes array.npy from ``n`` rows, in the channels of the index; returns the fingerprint and blocks' digests."""
    channels = index["spec"]["channels"]
    shape = (n, *plan.row[0 if plan.frames > 1 else 1 : -1], channels)
    header = {"descr": np.lib.format.dtype_to_descr(plan.dtype), "fortran_order": False, "shape": shape}
    digest, blocks = fingerprint_of(shape, index), BlockDigests()
    count = math.prod(plan.row)
    together = count * max(1, 2**24 // count)
    with open(scratch / "rows", "rb") as rows, open(scratch / "array.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(start := io.BytesIO(), header)
        file.write(start.getbuffer())
        blocks.update(start.getbuffer())
        while (part := np.fromfile(rows, plan.dtype, together)).size:
            used = decode.as_channels(part.reshape(-1, *plan.row), channels, plan.background, plan.dtype)
            used = np.ascontiguousarray(used)
            digest.update(used.data)
            blocks.update(used.data)
            file.write(used.data)
        file.flush()
        os.fsync(file.fileno())
    (scratch / "rows").unlink()
    return digest.hexdigest(), blocks.finish()
