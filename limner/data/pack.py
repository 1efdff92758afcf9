"""Sources -> one packed array in the cache: scan, then decode, orient and resize once.

A packing is named by what went in: the files' names, sizes and times, and the options.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from limner.data import sizes, tiles
from limner.data.annotations.labels import classes_of
from limner.data.cache import fingerprint_of, load, publish, sealed, unfinished
from limner.data.dataset import Data
from limner.data.images import decode
from limner.data.images.deep import Scale, scale_of
from limner.data.images.formats import advice, in_words
from limner.data.images.header import Header, colour_notes, read_header
from limner.data.items import Item, Listing, Problem, Source, printable
from limner.data.parallel import in_parallel
from limner.data.rows import BlockDigests
from limner.files import Damaged, cache_folder
from limner.progress import bar
from limner.settings import DataOptions, LimnerError

DEFAULTS = DataOptions()
# Of the packing, by --data.filter; another version ignores what is in the cache (1: colours as stored, 8 bits).
VERSIONS = {"exact": 3, "quick": 2}

# Options that do not change what is packed from one source, or that the source's key has.
_NOT_PACKED = (
    "flip", "holdout", "per_class", "classes", "cache", "given", "halves", "reverse", "given_channels", "given_size",
    "filter", "language",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be packed."""

    sources: tuple[Source, ...]
    size: tuple[int, int] | None  # None: the images' own
    options: DataOptions  # with no given pictures
    half: str = ""  # left or right: of files that hold two images
    sized: bool = False  # also keep the pictures' own sizes

    @property
    def tiled(self) -> bool:
        """Whether the rows are tiles. What Limner draws has no size of its own."""
        return self.options.fit == "tiles" and not all(source.drawn for source in self.sources)

    @property
    def folder(self) -> Path:
        """Where it is kept in the cache."""
        kept = {k: v for k, v in dataclasses.asdict(self.options).items() if k not in _NOT_PACKED}
        kept["fit"] = (
            "tiles" if self.tiled else "crop" if self.options.fit == "tiles" else self.options.fit or "crop"
        )
        parts = [
            VERSIONS[self.options.filter],
            [(s.name if s.drawn else "", s.key) for s in self.sources],
            self.size,
            kept,
        ]
        if self.half or len(self.sources) > 1:  # older packings of several do not say which image is whose
            parts.append(self.half)
        if self.sized:
            parts.append("sizes")
        key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
        return cache_folder(self.options.cache) / "packed" / key


def packed(request: Request, say: Console, flags: Mapping[str, str] = {}) -> Data:
    """The images of a request, packed now or found in the cache; ``flags`` are other names of those in its notes."""
    if request.size is not None:
        sizes.refuse_size(request.size)
    decode.colour(request.options.background)
    if request.tiled and any(source.drawn for source in request.sources):
        drawn = next(source.name for source in request.sources if source.drawn)
        raise LimnerError(
            f"{drawn} is drawn at the size that is asked for, so it has no tiles and cannot be trained on beside other "
            "sources at their own scale: name one kind of source, or choose --data.fit crop."
        )
    folder = request.folder
    try:
        data = load(folder)
    except Damaged as error:
        warnings.warn(f"{error} It is packed again.", stacklevel=2)
        data = None
    if data is None:
        _pack(request, folder, say)
        data = load(folder)
    if data is None:
        raise LimnerError(f"The packed data in {folder} vanished or was damaged: run it again.")
    for note in data.notes:
        for flag, other in flags.items():
            note = note.replace(flag, other)
        say.print(note, markup=False, highlight=False, soft_wrap=True)
    oracles = {source.oracle for source in request.sources}
    return dataclasses.replace(
        data,
        sources=tuple(source.name for source in request.sources),
        oracle=oracles.pop() if len(oracles) == 1 and data.spec.channels == 3 else None,
        tiled=request.tiled,
    )


# Packing ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
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


def _pack(request: Request, folder: Path, say: Console) -> None:
    """Writes what the request names into the folder of the cache. Raises LimnerError."""
    started = time.perf_counter()
    options = request.options
    listings = [source.listing() for source in request.sources]
    if not any(listing.items for listing in listings):
        raise LimnerError(_nothing(request.sources, listings))
    items, headers, bad = _scan(request, listings, say)
    plan = _plan(request, headers)
    rows = tiles.count(headers, plan.row[1:3]) if request.tiled else sum(map(len, items))
    need = 2 * rows * math.prod(plan.row) * plan.dtype.itemsize  # the rows, and array.npy
    sizes.refuse_beyond_disk(need, folder)
    try:
        with unfinished(folder.parent) as scratch:
            written, channels, undecodable = _write_rows(scratch, items, plan, say)
            kept, bad = [row.item for row in chain.from_iterable(written)], bad + undecodable
            _refuse_too_many(bad, sum(map(len, items)) + len(bad) - len(undecodable), options)
            skipped = [p for listing in listings for p in listing.skipped]
            unused = [p for listing in listings for p in listing.unused]
            index = _index(kept, skipped + unused + bad, plan, options.channels or max(channels), options)
            index["notes"] = [note for listing in listings for note in listing.notes] + index["notes"]
            if unused:
                of = "texts and rows of metadata"
                index["notes"].append(f"{len(unused):,} {of} are not used, such as {examples(unused, 1)}.")
            index["notes"] += colour_notes(headers)
            index["notes"] += sizes.size_notes(headers, (plan.height, plan.width), plan.fit, len(kept))
            index["notes"] += sizes.form_notes(headers, channels[4], options.channels)
            index["sources"] = list(map(len, written))
            if request.sized:
                index["sizes"] = [row.size for row in chain.from_iterable(written)]
            index["fingerprint"], index["blocks"] = _write_array(scratch, plan, len(kept), index)
            (scratch / "index.json").write_text(sealed(index), "utf-8")
            publish(scratch, folder)
    except OSError as error:
        raise LimnerError(
            f"Packing into {folder.parent} failed ({error.strerror or error}): it needs about {need:,} bytes"
            " there. Make room, or name another folder with --data.cache or LIMNER_CACHE."
        ) from None
    what = "tiles" if request.tiled else "images"
    say.print(f"packed {len(kept):,} {what}, {len(kept) / (time.perf_counter() - started):,.0f} {what}/s")
    if bad:
        say.print(f"left out {len(bad):,} that cannot be read, such as {examples(bad, 1)}", markup=False)


def _plan(request: Request, headers: Counter[Header]) -> _Plan:
    """The form of the rows: large enough in channels and bits for every image."""
    drawn = [source.channels or 3 for source in request.sources if source.drawn]
    options, default = request.options, tiles.DEFAULT if request.tiled else (32, 32)
    return _Plan(
        *(request.size or (None if drawn else sizes.common_size(headers)) or default),
        max(1, options.frames),
        options.channels or max([1, *drawn, *(h.channels for h in headers)]),
        np.dtype(np.uint16 if any(h.bits == 16 for h in headers) else np.uint8),
        decode.colour(options.background),
        "tiles" if request.tiled else "crop" if options.fit == "tiles" else options.fit or "crop",
        request.half,
        scale_of((h.mode, *h.span) for h in headers.elements() if h.span),
        options.filter,
    )


def _scan(
    request: Request, listings: Sequence[Listing], say: Console
) -> tuple[list[list[Item]], Counter[Header], list[Problem]]:
    """Each source's images to decode, the headers of those that are files, and the unreadable ones."""
    items: list[list[Item]] = []
    headers, bad = Counter[Header](), []
    for source, listing in zip(request.sources, listings, strict=True):
        if source.drawn:
            items.append(listing.items)
            continue
        items.append([])
        read = partial(header_of, half=request.half)
        with bar(f"scanning {printable(source.name)}", say.quiet) as watch:
            for item, header in in_parallel(read, listing.items, watch):
                if isinstance(header, Problem):
                    bad.append(header)
                else:
                    items[-1].append(item)
                    headers[header] += 1
    _refuse_too_many(bad, len(bad) + sum(map(len, items)), request.options)
    return items, headers, bad


def header_of(item: Item, half: str = "") -> Header:
    with item.image(0, 0) as source:
        return read_header(source, half)


@dataclasses.dataclass(frozen=True)
class _Row:
    """What is known of a row that was written."""

    item: Item  # of a tile with the tile's name
    size: tuple[int, int]  # own height and width of its picture


def _write_rows(
    scratch: Path, items: Sequence[Sequence[Item]], plan: _Plan, say: Console
) -> tuple[list[list[_Row]], Counter[int], list[Problem]]:
    """Writes the images of each source; returns their rows, the channels in use, and the images that are damaged."""
    kept: list[list[_Row]] = [[] for _ in items]
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
            kept[origin] += [_Row(dataclasses.replace(item, name=name), size) for name in names]
            used[channels] += 1
    return kept, used, bad


def _decoded(plan: _Plan, item: Item) -> tuple[np.ndarray, list[str], int, tuple[int, int]]:
    """The rows [K, T, H, W, C] of an image as planned, their names, how many channels are in use, and its own size."""
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


def _write_array(scratch: Path, plan: _Plan, n: int, index: dict[str, Any]) -> tuple[str, list[str]]:
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


def _index(
    items: Sequence[Item], problems: Sequence[Problem], plan: _Plan,
    channels: int, options: DataOptions,
) -> dict[str, Any]:  # fmt: skip
    found = classes_of(items) if options.labels else classes_of(())
    classes = found.names
    numbers = {name: i for i, name in enumerate(classes)}
    captions = [item.caption or "" for item in items] if options.captions else []
    has_captions = any(captions)
    spec = {"channels": channels, "height": plan.height, "width": plan.width, "frames": plan.frames}
    return {
        "spec": {**spec, "classes": classes, "captions": has_captions},
        "names": [item.name for item in items],
        "labels": [numbers.get(item.label or "", -1) for item in items] if classes else None,
        "captions": captions if has_captions else None,
        "splits": [item.split for item in items] if any(item.split for item in items) else None,
        "problems": [(p.path, p.reason) for p in problems],
        "notes": found.notes(),
    }


def _refuse_too_many(bad: Sequence[Problem], total: int, options: DataOptions) -> None:
    if len(bad) == total == 1:
        raise LimnerError(f"The image {bad[0].path!r} cannot be read: {bad[0].reason}.")
    if len(bad) > options.max_bad * total or len(bad) == total:
        raise LimnerError(
            f"{len(bad):,} of {total:,} images cannot be read, such as {examples(bad, 3)}. "
            "Fix or remove them (limner data check lists all), or raise --data.max-bad."
        )


def examples(bad: Sequence[Problem], count: int) -> str:
    return ", ".join(f"{p.path!r} ({p.reason})" for p in bad[:count])


def _nothing(sources: Sequence[Source], listings: Sequence[Listing]) -> str:
    names = " or ".join(repr(source.name) for source in sources)
    kinds = sum((listing.kinds for listing in listings), Counter[str]())
    ignored = f", but {kinds.total():,} files of other kinds ({in_words(kinds)})" if kinds else ""
    problems = [problem for listing in listings for problem in listing.skipped]
    skipped = f", also {examples(problems, 1)}" if problems else ""
    said = f"There are no images in {names}{ignored}{skipped}: choose a folder with PNG, JPEG, WebP or other images."
    return " ".join([said, *advice(kinds)])
