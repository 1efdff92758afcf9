"""Sources -> one memory-mapped array in the cache: scan, then decode, orient and resize once.

The cache keeps one folder a packing, `array.npy` and `index.json`, named by what went in: the files' names,
sizes and times, and the options. It appears by one rename, so nobody ever sees half of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from limner.core import ImageSpec
from limner.data import decode
from limner.data.dataset import Data
from limner.data.find import find
from limner.data.sources import Item, Listing, Problem, Source, printable
from limner.settings import DataOptions, LimnerError

DEFAULTS = DataOptions()
VERSION = 1  # of the packing: a new one packs anew
DEFAULT_SIZE = (32, 32)
_GROUP = 16  # images that a thread takes at a time
_STALE = 86_400  # seconds after which an unfinished packing is taken for abandoned

R = TypeVar("R")
Tick = Callable[[], None]


def open_data(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    size: tuple[int, int] | None = None,
    options: DataOptions = DEFAULTS,
    progress: bool = True,
) -> Data:
    """The images of one or more sources at `size` (height, width), packed now or found in the cache.

    A source is a folder, image, zip, tar, webdataset shards ('a-{000..031}.tar'), parquet, 'hf:owner/name',
    or the built-in 'shapes', 'digits' or 'emoji'. Without a size: the images' own, where all have one of 16
    to 64 pixels a side, else 32x32. Raises LimnerError.
    """
    background = decode.colour(options.background)
    if size is not None and (min(size) < 1 or size[0] * size[1] > decode.MAX_PIXELS):
        raise LimnerError(
            f"Images of {size[0]}x{size[1]} pixels cannot be made: ask for a size such as 64x64."
        )
    cache = cache_folder(options)
    found = [find(os.fspath(s), cache) for s in named(sources)]
    folder = cache / "packed" / _key(found, size, options)
    data = _load(folder)
    if data is None:
        say = Console(stderr=True, quiet=not progress)
        _pack(found, size, options, background, folder, say)
        data = _load(folder)
        if data is None:
            raise LimnerError(f"The packed data in {folder} vanished or was damaged: run it again.")
    return data


def open_like(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], spec: ImageSpec,
    options: DataOptions, progress: bool = True, **changes: Any,
) -> Data:  # fmt: skip
    """Sources at the size and channels of ``spec``: as a run sees them, given the options it was trained with.

    ``changes`` are options that shall differ. Raises LimnerError.
    """
    options = dataclasses.replace(options, **{"channels": spec.channels, **changes})
    return open_data(sources, size=(spec.height, spec.width), options=options, progress=progress)


def own_size(source: str | os.PathLike[str], options: DataOptions = DEFAULTS) -> tuple[int, int] | None:
    """The height and width that all images of a source have; None where they differ."""
    found = find(os.fspath(source), cache_folder(options))
    seen = (header for _, header in in_parallel(_header, [] if found.drawn else found.listing().items))
    sizes = {(header.height, header.width) for header in seen if not isinstance(header, Problem)}
    return sizes.pop() if len(sizes) == 1 else None


def open_picture(path: str | os.PathLike[str], spec: ImageSpec, options: DataOptions) -> Tensor:
    """One picture as a run sees images, [1, C, H, W] in [-1, 1]. Raises LimnerError where it is not one."""
    if not Path(path).is_file():
        raise LimnerError(f"There is no picture {path}.")
    with tempfile.TemporaryDirectory() as cache:  # one picture's pixels are not worth keeping
        data = open_like([path], spec, options, False, labels=False, captions=False, cache=cache)
        if len(data) != 1:
            raise LimnerError(f"{path} holds {len(data)} images: name a single picture.")
        return data.batch(np.arange(1)).image


def named(sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not given:
        raise LimnerError("No source is given: name a folder of images, or shapes, digits or emoji.")
    return [os.fspath(source) for source in given]


def cache_folder(options: DataOptions) -> Path:
    return Path(options.cache or os.environ.get("LIMNER_CACHE") or "~/.cache/limner").expanduser()


def _key(sources: Sequence[Source], size: tuple[int, int] | None, options: DataOptions) -> str:
    kept = dataclasses.asdict(options)
    for name in ("flip", "holdout", "per_class", "cache"):  # these do not change what is packed
        del kept[name]
    parts = [VERSION, [(s.name if s.drawn else "", s.key) for s in sources], size, kept]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _load(folder: Path) -> Data | None:
    """What was packed in a folder; None where there is nothing whole."""
    try:
        index = json.loads((folder / "index.json").read_text("utf-8"))
        pixels = np.load(folder / "array.npy", mmap_mode="r", allow_pickle=False)
        spec = ImageSpec(**{**index["spec"], "classes": tuple(index["spec"]["classes"])})
        if len(pixels) != len(index["names"]) or pixels.shape[-1] != spec.channels:
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return Data(
        spec,
        index["fingerprint"],
        np.asarray(pixels),  # still mapped; indexing np.memmap itself is slower
        np.arange(len(pixels)),
        index["names"],
        None if index["labels"] is None else np.array(index["labels"], np.int64),
        index["captions"],
        [Problem(*problem) for problem in index["problems"]],
    )


# Work in threads: Pillow decodes and resizes without holding Python's lock ----------------------------------


def in_parallel(
    work: Callable[[Item], R], items: Sequence[Item], tick: Tick = lambda: None
) -> Iterator[tuple[Item, R | Problem]]:
    """Each item in turn with work(item), or why it could not be done; a bounded number is under way."""
    workers = cores()

    def attempt(item: Item) -> R | Problem:
        try:
            return work(item)
        except LimnerError:
            raise
        except Exception as error:  # on damaged files Pillow raises nearly anything
            return Problem(item.name, decode.reason(error))

    def several(group: Sequence[Item]) -> list[tuple[Item, R | Problem]]:
        return [(item, attempt(item)) for item in group]

    with ThreadPoolExecutor(workers) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bombs, palettes and EXIF: what matters becomes a Problem
        groups = (items[start : start + _GROUP] for start in range(0, len(items), _GROUP))
        submitted = (pool.submit(several, group) for group in groups)
        under_way = deque(islice(submitted, 4 * workers))
        while under_way:
            for pair in under_way.popleft().result():
                tick()
                yield pair
            under_way.extend(islice(submitted, 1))


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def bar(say: Console, what: str, total: int) -> Iterator[Tick]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=say, transient=True, disable=say.quiet or not say.is_terminal
    ) as progress:
        task = progress.add_task(printable(what), total=total)
        yield lambda: progress.advance(task)


# Packing ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What every image is made into before all are known; at the end channels nobody used are dropped."""

    height: int
    width: int
    frames: int
    channels: int
    dtype: np.dtype
    background: tuple[int, int, int]
    fit: str

    @property
    def row(self) -> tuple[int, int, int, int]:
        return self.frames, self.height, self.width, self.channels


@dataclasses.dataclass(frozen=True)
class _Row:
    pixels: np.ndarray  # [T, H, W, C]
    transparent: bool
    coloured: bool


def _pack(
    sources: Sequence[Source],
    size: tuple[int, int] | None,
    options: DataOptions,
    background: tuple[int, int, int],
    folder: Path,
    say: Console,
) -> None:
    started = time.perf_counter()
    listings = [source.listing() for source in sources]
    if not any(listing.items for listing in listings):
        raise LimnerError(_nothing(sources, listings))
    items, headers, bad = _scan(sources, listings, options, say)

    drawn = [source.channels or 3 for source in sources if source.drawn]
    plan = _Plan(
        *(size or (None if drawn else common_size(headers)) or DEFAULT_SIZE),
        max(1, options.frames),
        options.channels or max([1, *drawn, *(h.channels for h in headers)]),
        np.dtype(np.uint16 if any(h.bits == 16 for h in headers) else np.uint8),
        background,
        options.fit,
    )
    try:
        with _unfinished(folder.parent) as scratch:
            kept, unreadable, channels = _write_rows(scratch, items, plan, say)
            bad += unreadable
            _give_up_if_too_many(bad, len(kept) + len(bad), options)
            skipped = [p for listing in listings for p in listing.skipped]
            index = _index(kept, skipped + bad, plan, options.channels or channels, options, say)
            index["fingerprint"] = _write_array(scratch, plan, len(kept), index)
            (scratch / "index.json").write_text(json.dumps(index), "utf-8")
            _publish(scratch, folder)
    except OSError as error:
        need = len(items) * math.prod(plan.row) * plan.dtype.itemsize
        raise LimnerError(
            f"Packing into {folder.parent} failed ({error.strerror or error}): it needs about {2 * need:,} bytes"
            " there. Make room, or name another folder with --data.cache or LIMNER_CACHE."
        ) from None
    say.print(f"packed {len(kept):,} images, {len(kept) / (time.perf_counter() - started):,.0f} images/s")
    if bad:
        say.print(f"left out {len(bad):,} that cannot be read, such as {_few(bad, 1)}", markup=False)


def _scan(
    sources: Sequence[Source], listings: Sequence[Listing], options: DataOptions, say: Console
) -> tuple[list[Item], list[decode.Header], list[Problem]]:
    """The images to decode, what the files among them say of themselves, and the unreadable ones."""
    items: list[Item] = []
    headers: list[decode.Header] = []
    bad: list[Problem] = []
    for source, listing in zip(sources, listings, strict=True):
        if source.drawn:
            items += listing.items
            continue
        with bar(say, f"scanning {source.name}", len(listing.items)) as tick:
            for item, seen in in_parallel(_header, listing.items, tick):
                if isinstance(seen, Problem):
                    bad.append(seen)
                else:
                    items.append(item)
                    headers.append(seen)
    _give_up_if_too_many(bad, len(items) + len(bad), options)
    return items, headers, bad


def _header(item: Item) -> decode.Header:
    with item.image(0, 0) as source:
        return decode.read_header(source)


def common_size(headers: Sequence[decode.Header]) -> tuple[int, int] | None:
    """The height and width that images are trained at if nobody asks: where all have one that is small enough."""
    sizes = {(h.height, h.width) for h in headers}
    return next(iter(sizes)) if len(sizes) == 1 and all(16 <= side <= 64 for side in min(sizes)) else None


def _write_rows(
    scratch: Path, items: Sequence[Item], plan: _Plan, say: Console
) -> tuple[list[Item], list[Problem], int]:
    """Writes what can be decoded; returns it, what cannot, and the number of channels that are in use."""
    kept: list[Item] = []
    bad: list[Problem] = []
    transparent = coloured = False
    with open(scratch / "rows", "wb") as file, bar(say, "packing", len(items)) as tick:
        for item, row in in_parallel(partial(_row, plan), items, tick):
            if isinstance(row, Problem):
                bad.append(row)
                continue
            kept.append(item)
            file.write(row.pixels.data)
            transparent, coloured = transparent or row.transparent, coloured or row.coloured
    return kept, bad, 4 if transparent and plan.channels == 4 else 3 if coloured else 1


def _row(plan: _Plan, item: Item) -> _Row:
    with item.image(plan.height, plan.width) as source:
        pixels = decode.decode(source, plan.height, plan.width, plan.fit, plan.frames)
    transparent = pixels.shape[-1] == 4 and bool((pixels[..., 3] < 255).any())
    coloured = pixels.shape[-1] > 1 and bool((pixels[..., :1] != pixels[..., 1:3]).any())
    pixels = decode.as_channels(pixels, plan.channels, plan.background, plan.dtype)
    pixels = decode.padded(pixels, plan.height, plan.width, plan.background)
    return _Row(np.ascontiguousarray(pixels), transparent, coloured)


def _write_array(scratch: Path, plan: _Plan, n: int, index: dict[str, Any]) -> str:
    """Writes array.npy from the rows, in the channels of the index; returns the data's fingerprint."""
    channels = index["spec"]["channels"]
    shape = (n, *plan.row[0 if plan.frames > 1 else 1 : -1], channels)
    header = {"descr": np.lib.format.dtype_to_descr(plan.dtype), "fortran_order": False, "shape": shape}
    said = [shape, index["spec"], index["labels"], index["captions"]]
    digest = hashlib.blake2b(json.dumps(said).encode(), digest_size=16)
    count = math.prod(plan.row)
    together = count * max(1, 2**24 // count)
    with open(scratch / "rows", "rb") as rows, open(scratch / "array.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        while (some := np.fromfile(rows, plan.dtype, together)).size:
            used = decode.as_channels(some.reshape(-1, *plan.row), channels, plan.background, plan.dtype)
            used = np.ascontiguousarray(used)
            digest.update(used.data)
            file.write(used.data)
        file.flush()
        os.fsync(file.fileno())
    (scratch / "rows").unlink()
    return digest.hexdigest()


def _index(
    items: Sequence[Item],
    problems: Sequence[Problem],
    plan: _Plan,
    channels: int,
    options: DataOptions,
    say: Console,
) -> dict[str, Any]:
    given = [item.label for item in items if item.label is not None] if options.labels else []
    classes: tuple[str, ...] = ()
    if len(given) == len(items) and len(set(given)) > 1:
        classes = tuple(sorted(set(given), key=_natural))
    elif 0 < len(given) < len(items):
        say.print(f"classes are left out: {len(items) - len(given):,} of {len(items):,} images have none")
    numbers = {name: i for i, name in enumerate(classes)}
    labels = [numbers[label] for label in given] if classes else None
    captions = None
    if options.captions and any(item.caption for item in items):
        captions = [item.caption or "" for item in items]
    spec = ImageSpec(channels, plan.height, plan.width, plan.frames, classes, captions is not None)
    return {
        "spec": {name: value for name, value in dataclasses.asdict(spec).items() if name != "given"},
        "names": [item.name for item in items],
        "labels": labels,
        "captions": captions,
        "problems": [(p.path, p.reason) for p in problems],
    }


def _natural(name: str) -> tuple[int, int, str]:
    """'2' before '10', numbers before words."""
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)


@contextmanager
def _unfinished(packed: Path) -> Iterator[Path]:
    """A folder of our own to write in, gone afterwards unless it was renamed."""
    packed.mkdir(parents=True, exist_ok=True)
    for path in packed.glob("unfinished-*"):  # what packings that were killed left behind
        with suppress(OSError):  # another process may be faster
            if time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix="unfinished-", dir=packed))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, folder: Path) -> None:
    """Renames into place. Where another process was first, its work is as good as ours."""
    for _ in range(3):
        try:
            os.rename(scratch, folder)
            return
        except OSError:
            if _load(folder) is not None:
                return
            if not folder.exists():
                raise
            damaged = tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent)
            os.rename(folder, damaged)
            shutil.rmtree(damaged, ignore_errors=True)


# What went wrong --------------------------------------------------------------------------------------------


def _give_up_if_too_many(bad: Sequence[Problem], total: int, options: DataOptions) -> None:
    if len(bad) > options.max_bad * total or len(bad) == total:
        raise LimnerError(
            f"{len(bad):,} of {total:,} images cannot be read, such as {_few(bad, 3)}. "
            "Mend or remove them (limner data check lists all), or raise --data.max-bad."
        )


def _few(bad: Sequence[Problem], count: int) -> str:
    return ", ".join(f"{p.path!r} ({p.reason})" for p in bad[:count])


def _nothing(sources: Sequence[Source], listings: Sequence[Listing]) -> str:
    names = " or ".join(repr(source.name) for source in sources)
    others = sum(listing.others for listing in listings)
    passed = f", but {others:,} files of other kinds" if others else ""
    problems = [problem for listing in listings for problem in listing.skipped]
    skipped = f", also {_few(problems, 1)}" if problems else ""
    return f"There are no images in {names}{passed}{skipped}: give a folder with PNG, JPEG, WebP or other images."
