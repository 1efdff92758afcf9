"""Sources -> one packed array in the cache: scan, then decode, orient and resize once.

A packing is named by what went in: the files' names, sizes and times, and the options.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
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
from limner.data.cache import load, publish, sealed, unfinished
from limner.data.clips import reels
from limner.data.clips.notes import clips_entries
from limner.data.clips.times import cut_of
from limner.data.clips.write import write_clips
from limner.data.dataset import Data
from limner.data.images import decode
from limner.data.images.deep import scale_of
from limner.data.images.formats import advice, in_words
from limner.data.images.header import Header, colour_notes, read_header
from limner.data.items import Item, Listing, Problem, Source, printable
from limner.data.parallel import in_parallel
from limner.data.write_rows import Plan, write_array, write_rows
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
_OF_CLIPS = "rate", "stride", "step", "hdr", "numbered"  # that change nothing of stills
_CLIPS_VERSION = 1  # of packings of clips, likewise


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
        unused = _NOT_PACKED if self.options.frames > 1 else (*_NOT_PACKED, *_OF_CLIPS)
        kept = {k: v for k, v in dataclasses.asdict(self.options).items() if k not in unused}
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
        if self.options.frames > 1:
            parts.append(["clips", _CLIPS_VERSION])
        key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
        return cache_folder(self.options.cache) / "packed" / key


def packed(request: Request, say: Console, flags: Mapping[str, str] = {}) -> Data:
    """The images of a request, packed now or found in the cache; ``flags`` are other names of those in its notes."""
    if request.size is not None:
        sizes.refuse_size(request.size)
    decode.colour(request.options.background)
    if request.tiled and request.options.frames > 1:
        raise LimnerError("Clips are not cut into tiles: choose --data.fit crop, pad or squash.")
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
    if plan.cut:
        rows = sum(count * header.frames for header, count in headers.items()) or plan.cut.frames * rows
    need = 2 * rows * math.prod(plan.row) * plan.dtype.itemsize  # the rows, and array.npy
    sizes.refuse_beyond_disk(need, folder)
    try:
        with unfinished(folder.parent) as scratch:
            if plan.cut:
                written = write_clips(scratch, items, plan, options.hdr, say)
            else:
                written = write_rows(scratch, items, plan, say)
            kept, bad = list(chain.from_iterable(written.rows)), bad + written.bad
            n = sum(map(len, items))
            _refuse_too_many(bad, n + len(bad) - len(written.bad), options)
            skipped = [p for listing in listings for p in listing.skipped]
            unused = [p for listing in listings for p in listing.unused]
            channels = options.channels or max(written.used)
            problems = skipped + unused + bad + written.short + written.cut
            index = _index([row.item for row in kept], problems, plan, channels, options)
            if plan.cut:
                entries, about = clips_entries(written, n - len(written.bad))
                index["clips"], index["spec"]["rate"] = entries["clips"], entries["rate"]
                index["notes"] += about
            index["notes"] = [note for listing in listings for note in listing.notes] + index["notes"]
            if unused:
                of = "texts and rows of metadata"
                index["notes"].append(f"{len(unused):,} {of} are not used, such as {examples(unused, 1)}.")
            index["notes"] += colour_notes(headers)
            index["notes"] += sizes.size_notes(headers, (plan.height, plan.width), plan.fit, len(kept))
            index["notes"] += sizes.form_notes(headers, written.used[4], options.channels)
            index["sources"] = list(map(len, written.rows))
            if own := sizes.median_size(headers):
                index["own"] = own
            if request.sized:
                index["sizes"] = [row.size for row in kept]
            rows = written.frames if plan.cut else len(kept)
            index["fingerprint"], index["blocks"] = write_array(scratch, plan, rows, index)
            (scratch / "index.json").write_text(sealed(index), "utf-8")
            publish(scratch, folder)
    except OSError as error:
        raise LimnerError(
            f"Packing into {folder.parent} failed ({error.strerror or error}): it needs about {need:,} bytes"
            " there. Make room, or name another folder with --data.cache or LIMNER_CACHE."
        ) from None
    what = "tiles" if request.tiled else "clips" if plan.cut else "images"
    say.print(f"packed {len(kept):,} {what}, {len(kept) / (time.perf_counter() - started):,.0f} {what}/s")
    if bad:
        say.print(f"left out {len(bad):,} that cannot be read, such as {examples(bad, 1)}", markup=False)


def _plan(request: Request, headers: Counter[Header]) -> Plan:
    """The form of the rows: large enough in channels and bits for every image."""
    drawn = [source.channels or 3 for source in request.sources if source.drawn]
    options, default = request.options, tiles.DEFAULT if request.tiled else (32, 32)
    return Plan(
        *(request.size or (None if drawn else sizes.common_size(headers)) or default),
        1,
        options.channels or max([1, *drawn, *(h.channels for h in headers)]),
        np.dtype(np.uint16 if any(h.bits == 16 for h in headers) else np.uint8),
        decode.colour(options.background),
        "tiles" if request.tiled else "crop" if options.fit == "tiles" else options.fit or "crop",
        request.half,
        scale_of((h.mode, *h.span) for h in headers.elements() if h.span),
        options.filter,
        cut_of(options),
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
        if request.options.frames > 1:
            read = partial(reels.header_of, hdr=request.options.hdr)
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


def _index(
    items: Sequence[Item], problems: Sequence[Problem], plan: Plan,
    channels: int, options: DataOptions,
) -> dict[str, Any]:  # fmt: skip
    found = classes_of(items) if options.labels else classes_of(())
    classes = found.names
    numbers = {name: i for i, name in enumerate(classes)}
    captions = [item.caption or "" for item in items] if options.captions else []
    has_captions = any(captions)
    frames = plan.cut.frames if plan.cut else 1
    spec = {"channels": channels, "height": plan.height, "width": plan.width, "frames": frames}
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
    what = "film" if options.frames > 1 else "image"
    if len(bad) == total == 1:
        raise LimnerError(f"The {what} {bad[0].path!r} cannot be read: {bad[0].reason}.")
    if len(bad) > options.max_bad * total or len(bad) == total:
        raise LimnerError(
            f"{len(bad):,} of {total:,} {what}s cannot be read, such as {examples(bad, 3)}. "
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
