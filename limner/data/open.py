"""What a person names -> data: packed now or found in the cache, with the pictures that rows are given."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import Tensor

from limner.core import ImageSpec
from limner.data.dataset import Data
from limner.data.given import (
    Size,
    add_pairs,
    joined,
    most_common,
    partners_of,
    size_of_given,
    times_as_large,
    two_of,
    way_of,
)
from limner.data.items import Source
from limner.data.pack import DEFAULTS, Request, examples, header_of, packed
from limner.data.parallel import attempt_each
from limner.data.sources.find import find, find_two
from limner.fields import checked
from limner.files import cache_folder
from limner.settings import BUILT_IN, BUILT_IN_TWO, DataOptions, LimnerError

Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
OF_GIVEN = {"--size": "--data.given-size", "--data.channels": "--data.given-channels"}  # flags


def open_data(
    sources: Sources, *,
    size: tuple[int, int] | None = None, options: DataOptions = DEFAULTS, progress: bool = True,
) -> Data:  # fmt: skip
    """The images of one or more sources at `size` (height, width), packed now or found in the cache.

    A source is a folder, image, zip, tar, webdataset shards ('a-{000..031}.tar'), parquet, 'hf:owner/name',
    or a name of `BUILT_IN`. Without a size: the images' own, if all share one of 16 to 64 pixels a side, else
    32x32, and tiles of 128x128. With `options.given` there are two sources, and each row is given a picture of the
    first; likewise with `options.halves` and of `BUILT_IN_TWO`. Raises LimnerError.
    """
    size = checked(tuple[int, int] | None, size, "size")
    options = checked(DataOptions, options, "options")
    return _open(named(sources), size, options.given_size, options, progress)


def _open(
    texts: Sequence[str], size: Size | None, given_size: Size | None, options: DataOptions, progress: bool
) -> Data:
    """As ``open_data``. ``given_size`` may be known without being asked for: then unequal pairs are left out too."""
    say = Console(stderr=True, quiet=not progress)
    way, plain = way_of(texts, options), options.without_given()
    if not way:
        if options.given_channels or options.given_size or options.reverse:
            raise LimnerError(
                "--data.given-channels, --data.given-size and --data.reverse are for given pictures, and there are "
                "none: name two sources and --data.given pairs or domains, or use --data.halves."
            )
        return packed(Request(_find(texts, options), size, plain), say)
    if options.frames > 1:
        raise LimnerError("Given pictures are for images, not for clips: leave out --data.frames.")
    others, wanted = _given_and_wanted(texts, way, options)
    data = packed(dataclasses.replace(wanted, size=size, options=plain), say)
    size = data.spec.height, data.spec.width
    same_source = others.sources == wanted.sources  # of halves, or each picture its own partner
    checks = way == "pairs" and options.given_size is None and not same_source
    if checks and given_size is None:
        given_size = size_of_given(size, _times_as_large(wanted, others))
    plain = dataclasses.replace(plain, channels=options.given_channels, labels=False, captions=False)
    others = dataclasses.replace(others, size=given_size or size, options=plain)
    given = packed(others, say, OF_GIVEN)
    if way == "domains":
        return joined(data, given, paired=False)
    pairs = add_pairs(data, given, checks)
    if alone := pairs.problems[len(data.problems) :]:
        say.print(
            f"left out {len(alone):,} without a partner that fits, such as {examples(alone, 1)}", markup=False
        )
    return pairs


def _find(texts: Sequence[str], options: DataOptions) -> tuple[Source, ...]:
    clips = options.numbered if options.frames > 1 else ""
    scratch = cache_folder(options.cache)
    return tuple(find(s, scratch, options.classes, options.language, clips) for s in texts)


def _given_and_wanted(texts: Sequence[str], way: str, options: DataOptions) -> tuple[Request, Request]:
    """What is to be packed of given and of wanted pictures; their sizes and options are still to be set."""
    request = Request((), None, DEFAULTS, sized=way == "pairs")
    if options.halves:
        both = dataclasses.replace(request, sources=_find(texts, options), sized=False)
        two = [dataclasses.replace(both, half=half) for half in ("left", "right")]
    elif len(texts) == 1 and texts[0] in BUILT_IN_TWO:
        two = [
            dataclasses.replace(request, sources=(source,), sized=False)
            for source in find_two(texts[0], options.language)
        ]
    else:
        two = [dataclasses.replace(request, sources=_find([text], options)) for text in two_of(texts, way)]
    return (two[1], two[0]) if options.reverse else (two[0], two[1])


def _times_as_large(wanted: Request, given: Request, looked_at: int = 64) -> Fraction | None:
    """How many times as large wanted pictures are as given ones in most of some pairs; None if no size is known."""
    if any(source.drawn for source in (*wanted.sources, *given.sources)):
        return None
    items, others = (request.sources[0].listing().items for request in (wanted, given))
    rows, partners, _ = partners_of([item.name for item in items], [item.name for item in others], "")
    step = -(-len(rows) // looked_at) or 1
    chosen = zip(rows[::step], partners[::step], strict=True)
    sizes = []
    for i, j in chosen:
        headers, bad = attempt_each(header_of, [items[i], others[j]])
        if not bad:
            sizes.append([(header.height, header.width) for _, header in headers])
    return most_common([times_as_large(*pair) for pair in sizes])


def open_like(
    sources: Sources, spec: ImageSpec, options: DataOptions, progress: bool = True, **changes: Any
) -> Data:
    """Sources at the size and channels of ``spec``, given pictures at those of ``spec.given``.

    ``options`` are those that a run was trained with, ``changes`` the fields that differ. Raises LimnerError.
    """
    texts, given_size = named(sources), None
    if spec.given and way_of(texts, options):
        given_size = spec.given.height, spec.given.width
        changes = {"given_channels": spec.given.channels, **changes}
    options = dataclasses.replace(options, **{"channels": spec.channels, **changes})
    return _open(texts, (spec.height, spec.width), given_size, options, progress)


def image_sizes(
    source: str | os.PathLike[str], limit: int | None = None, options: DataOptions = DEFAULTS
) -> list[tuple[int, int]]:
    """The height and width of each image of a source, or of up to ``limit`` evenly spaced ones; none if it is drawn."""
    found = _sources_of(os.fspath(source), options)
    items = [item for each in found if not each.drawn for item in each.listing().items]
    step = -(-len(items) // limit) if limit and items else 1
    headers, _ = attempt_each(partial(header_of, half="left" if options.halves else ""), items[::step])
    return [(header.height, header.width) for _, header in headers]


def image_count(source: str | os.PathLike[str]) -> int:
    """How many images a source lists; nothing is read of them. Raises LimnerError for one that does not exist."""
    return sum(len(each.listing().items) for each in _sources_of(os.fspath(source), DEFAULTS))


def _sources_of(text: str, options: DataOptions) -> Sequence[Source]:
    """The source of a name, or both that it stands for."""
    return find_two(text) if text in BUILT_IN_TWO else _find([text], options)


def open_picture(path: str | os.PathLike[str], spec: ImageSpec, options: DataOptions) -> Tensor:
    """One image file as a run's own images are read, [1, C, H, W] in [-1, 1]. Raises LimnerError."""
    if not Path(path).is_file():
        raise LimnerError(f"There is no picture {path}.")
    options = dataclasses.replace(options.without_given(), frames=1)
    options = dataclasses.replace(options, fit="crop") if options.fit == "tiles" else options
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
