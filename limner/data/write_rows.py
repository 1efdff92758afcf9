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

    @property
    def row(self) -> tuple[int, int, int, int]:
        return self.frames, self.height, self.width, self.channels

    @property
    def form(self) -> decode.Form:
        return decode.Form(self.height, self.width, self.fit, self.frames, self.half, self.scale, self.filter)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of a row that was written."""

    item: Item  # of a tile with the tile's name
    size: tuple[int, int]  # own height and width of its picture


def write_rows(
    scratch: Path, items: Sequence[Sequence[Item]], plan: Plan, say: Console
) -> tuple[list[list[Row]], Counter[int], list[Problem]]:
    """Writes the images of each source; returns their rows, the channels in use, and the images that are damaged."""
    kept: list[list[Row]] = [[] for _ in items]
    bad, used = [], Counter({1: 0})
    every = list(chain.from_iterable(items))
    origins = np.repeat(np.arange(len(items)), [len(some) for some in items]).tolist()
    with open(scratch / "rows", "wb") as file, bar("packing", say.quiet) as watch:
        # Whole pictures take memory: few of them are under way.
        done = in_parallel(partial(_decoded, plan), every, watch, group=1 if plan.fit == "tiles" else 16)
        for origin, (item, decoded) in zip(origins, done, strict=True):
            if isinstance(decoded, Problem):
                bad.append(decoded)
                continue
            pixels, names, channels, size = decoded
            file.write(pixels.data)
            kept[origin] += [Row(dataclasses.replace(item, name=name), size) for name in names]
            used[channels] += 1
    return kept, used, bad


def _decoded(plan: Plan, item: Item) -> tuple[np.ndarray, list[str], int, tuple[int, int]]:
    """The rows [K, T, H, W, C] of an image as planned, their names, how many channels are in use, and its own size."""
    if item.clip and plan.frames > 1:
        pixels, size = item.clip(plan.height, plan.width, plan.frames, 8.0), (plan.height, plan.width)
    else:
        with item.image(plan.height, plan.width) as source:
            pixels, size = decode.decode_with_size(source, plan.form)
    transparent = pixels.shape[-1] == 4 and bool((pixels[..., 3] < 255).any())
    coloured = pixels.shape[-1] > 1 and bool((pixels[..., :1] != pixels[..., 1:3]).any())
    pixels = decode.as_channels(pixels, plan.channels, plan.background, plan.dtype)
    channels = 4 if transparent and plan.channels == 4 else 3 if coloured else 1
    if plan.fit != "tiles":
        row = decode.padded(pixels, plan.height, plan.width, plan.background)
        return np.ascontiguousarray(row[None]), [item.name], channels, size
    cut = tiles.cut(pixels, plan.height, plan.width)
    return np.stack(list(cut.values())), [tiles.name_of(item.name, *place) for place in cut], channels, size


def write_array(scratch: Path, plan: Plan, n: int, index: dict[str, Any]) -> tuple[str, list[str]]:
    """Writes array.npy from the rows, in the channels of the index; returns the fingerprint and blocks' digests."""
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
