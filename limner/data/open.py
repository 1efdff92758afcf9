"""What a person names -> data: packed now or found in the cache, with the pictures that rows are given."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import Tensor

from limner.core import ImageSpec
from limner.data.dataset import Data
from limner.data.items import Problem, same_form
from limner.data.pack import DEFAULTS, Request, examples, header_of, packed
from limner.data.parallel import attempt_each
from limner.data.sources.find import find
from limner.fields import checked
from limner.files import cache_folder
from limner.settings import BUILT_IN, DataOptions, LimnerError

Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
OTHER_HALF = {"": "", "left": "right", "right": "left"}
OF_GIVEN = {"--size": "--data.given-size", "--data.channels": "--data.given-channels"}  # flags


def open_data(
    sources: Sources, *,
    size: tuple[int, int] | None = None, options: DataOptions = DEFAULTS, progress: bool = True,
) -> Data:  # fmt: skip
    """The images of one or more sources at `size` (height, width), packed now or found in the cache.

    A source is a folder, image, zip, tar, webdataset shards ('a-{000..031}.tar'), parquet, 'hf:owner/name',
    or a name of `BUILT_IN`. Without a size: the images' own, if all share one of 16 to 64 pixels a side, else
    32x32. With `options.pairs`, `side_by_side` or `domain` each row is given a picture. Raises LimnerError.
    """
    size = checked(tuple[int, int] | None, size, "size")
    options = checked(DataOptions, options, "options")
    cache = cache_folder(options.cache)
    found = tuple(find(s, cache, options.classes, options.language) for s in named(sources))
    say = Console(stderr=True, quiet=not progress)
    plain, half = options.without_given(), options.side_by_side
    data = packed(Request(found, size, plain, OTHER_HALF[half]), say)
    if not options.gives:
        return data
    others = found if half else (find(options.pairs or options.domain, cache),)
    size = options.given_size or (data.spec.height, data.spec.width)
    channels = options.given_channels
    plain = dataclasses.replace(plain, channels=channels, labels=False, captions=False, frames=1)
    given = packed(Request(others, size, plain, half), say, OF_GIVEN)
    if options.domain:
        return _joined(data, given, paired=False)
    pairs = _add_pairs(data, given)
    if alone := pairs.problems[len(data.problems) :]:
        say.print(f"left out {len(alone):,} without a partner, such as {examples(alone, 1)}", markup=False)
    return pairs


def open_like(
    sources: Sources, spec: ImageSpec, options: DataOptions, progress: bool = True, **changes: Any
) -> Data:
    """Sources at the size and channels of ``spec``, given pictures at those of ``spec.given``.

    ``options`` are those that a run was trained with, ``changes`` the fields that differ. Raises LimnerError.
    """
    if spec.given and options.gives:
        size = spec.given.height, spec.given.width
        changes = {"given_channels": spec.given.channels, "given_size": size, **changes}
    options = dataclasses.replace(options, **{"channels": spec.channels, **changes})
    return open_data(sources, size=(spec.height, spec.width), options=options, progress=progress)


def image_sizes(
    source: str | os.PathLike[str], limit: int | None = None, options: DataOptions = DEFAULTS
) -> list[tuple[int, int]]:
    """The height and width of each image of a source, or of up to ``limit`` evenly spaced ones; none if it is drawn."""
    found = find(os.fspath(source), cache_folder(options.cache))
    items = [] if found.drawn else found.listing().items
    step = -(-len(items) // limit) if limit and items else 1
    headers, _ = attempt_each(partial(header_of, half=options.side_by_side), items[::step])
    return [(header.height, header.width) for _, header in headers]


def image_count(source: str | os.PathLike[str]) -> int:
    """How many images a source lists; nothing is read of them. Raises LimnerError for one that does not exist."""
    return len(find(os.fspath(source), cache_folder(DEFAULTS.cache)).listing().items)


def open_picture(path: str | os.PathLike[str], spec: ImageSpec, options: DataOptions) -> Tensor:
    """One image file as a run's own images are read, [1, C, H, W] in [-1, 1]. Raises LimnerError."""
    if not Path(path).is_file():
        raise LimnerError(f"There is no picture {path}.")
    options = options.without_given()
    with tempfile.TemporaryDirectory() as cache:  # one picture's pixels are not worth keeping
        data = open_like([path], spec, options, False, labels=False, captions=False, cache=cache)
        if len(data) != 1:
            raise LimnerError(f"{path} holds {len(data)} images: name a single picture.")
        return data.batch(np.arange(1)).image


def named(sources: Sources) -> list[str]:
    """The names of sources. Raises LimnerError for none, and for an entry of another type."""
    names = checked(Sequence[str], sources if isinstance(sources, (list, tuple)) else [sources], "sources")
    if not names:
        raise LimnerError(f"No source is given: name a folder of images, or one of {', '.join(BUILT_IN)}.")
    return list(names)


def _add_pairs(data: Data, given: Data) -> Data:
    """Each row is given the picture of its name, whatever the extension.

    Rows and pictures without a partner are left out and become problems. Raises LimnerError if no row is left.
    """
    origin = " ".join(given.sources)
    rows, partners, problems = partners_of(data.names, given.names, origin)
    if not len(rows):
        raise LimnerError(
            f"None of the {len(data):,} images, such as {data.names[0]!r}, has a partner of the same name in "
            f"{origin}: give --data.pairs a source with the same file names in the same subfolders."
        )
    if given.sources != data.sources:
        problems += [Problem(f"{origin}: {p.path}", p.reason) for p in given.problems]
    data = dataclasses.replace(data, problems=data.problems + problems).part(rows)
    return _joined(data, given.part(partners), paired=True)


def partners_of(
    names: Sequence[str], given: Sequence[str], origin: str
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Indices [n] of names and [n] of given names that are equal without their extensions; the others as problems."""
    if list(names) == list(given):  # such as two halves of the same files
        return np.arange(len(names)), np.arange(len(names)), []
    stems, given_stems = ([same_form(os.path.splitext(name)[0]) for name in each] for each in (names, given))
    place = {stem: i for i, stem in reversed(list(enumerate(given_stems)))}  # the first of several
    alone = [name for name, stem in zip(names, stems, strict=True) if stem not in place]
    problems = [Problem(name, f"has no partner of the same name in {origin}") for name in alone]
    known = set(stems)
    for i, (name, stem) in enumerate(zip(given, given_stems, strict=True)):
        if place[stem] != i:
            problems.append(Problem(f"{origin}: {name}", f"has the name of {given[place[stem]]!r}"))
        elif stem not in known:
            problems.append(Problem(f"{origin}: {name}", "has no partner among the images"))
    rows = [i for i, stem in enumerate(stems) if stem in place]
    return np.array(rows, np.int64), np.array([place[stems[i]] for i in rows], np.int64), problems


def _joined(data: Data, given: Data, paired: bool) -> Data:
    """Row i is given picture i if they are ``paired``, else any picture, in an order of its own."""
    digest = hashlib.blake2b(f"{data.fingerprint} {given.fingerprint} {paired}".encode(), digest_size=16)
    if paired:
        digest.update(np.stack([data.rows, given.rows]).astype("<i8").tobytes())
    spec = dataclasses.replace(data.spec, given=given.spec)
    return dataclasses.replace(data, spec=spec, fingerprint=digest.hexdigest(), given=given, paired=paired)
