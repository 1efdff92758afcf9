"""The pictures that rows are given: which sources hold them, and which of them goes with which row."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from limner.core import Way
from limner.data.dataset import Data
from limner.data.items import Problem, same_form
from limner.data.tiles import picture_of
from limner.settings import BUILT_IN_TWO, DataOptions, LimnerError, join_words

_LOOKED_AT = 5_000  # names among which those nearest to one without a partner are looked for
Size = tuple[int, int]  # height, width


# Which sources ----------------------------------------------------------------------------------------------


def way_of(sources: Sequence[str], options: DataOptions) -> str:
    """'pairs' or 'domains' where sources or options say that rows are given pictures, else ''."""
    built_in = next((text.partition(":")[0] for text in sources if text in BUILT_IN_TWO), "")
    return built_in or options.given or ("pairs" if options.halves else "")


def settle(sources: Sequence[str], options: DataOptions, ways: Sequence[Way], family: str) -> DataOptions:
    """The options with which a family that can be given pictures in these ways trains on the sources.

    Raises LimnerError for sources that do not suit it.
    """
    asked = way_of(sources, options)
    if not ways and (asked or options.reverse or options.given_channels or options.given_size):
        raise LimnerError(
            f"{family} does not train on given pictures: leave out {' and '.join(BUILT_IN_TWO)}, --data.given and what "
            "else is for them, or choose a family that is given pictures (see `limner families`)."
        )
    others = [way for way in ways if way != "degraded"]
    way = asked or (others[0] if others and (len(sources) == 2 and ways[0] != "degraded") else "")
    if way and way not in others:
        raise LimnerError(
            f"{family} does not train on {way}: it is given {join_words([_IN_WORDS[w] for w in ways])}."
        )
    if way and not options.halves and sources[0] not in BUILT_IN_TWO:
        two_of(sources, way, family)
    if not way and ways and "degraded" not in ways:
        two_of(sources, ways[0], family)
    if way:
        return dataclasses.replace(options, given=way)
    return dataclasses.replace(options, fit=options.fit or ("tiles" if ways else "crop"))


_IN_WORDS = {
    "degraded": "pictures that it makes of its images", "pairs": "pairs of pictures", "domains": "two domains",
}  # fmt: skip


def two_of(sources: Sequence[str], way: str, family: str = "") -> tuple[str, str]:
    """The source of given and that of wanted pictures. Raises LimnerError for another number of them."""
    if built_in := next((text for text in sources if text in BUILT_IN_TWO), ""):
        raise LimnerError(f"{built_in} holds given and wanted pictures: name no other source beside it.")
    if len(sources) == 2:
        return sources[0], sources[1]
    from_two = f"from two sources, not from {len(sources)}"
    if way == "domains":
        who = f"{family} trains on pictures of two domains" if family else "Pictures of two domains come"
        raise LimnerError(f"{who} {from_two}: name both, as in horses/ zebras/.")
    who = f"{family} trains on pairs of pictures" if family else "Pairs of pictures come"
    raise LimnerError(
        f"{who} {from_two}: name the given pictures, then the wanted ones, as in sketches/ drawings/; or use "
        "--data.halves where each file holds both side by side."
    )


def wanted_alone(sources: tuple[str, ...], options: DataOptions) -> tuple[tuple[str, ...], DataOptions]:
    """The sources and options that read the wanted pictures alone; unchanged where a source holds both."""
    if not options.given or options.halves or len(sources) != 2:
        return sources, options
    return sources[:1] if options.reverse else sources[1:], options.without_given()


# Which picture ----------------------------------------------------------------------------------------------


def stem_of(name: str) -> str:
    """What the names of both pictures of a pair share: folders and stem, in one Unicode form."""
    return same_form(os.path.splitext(name)[0])


def partners_of(
    names: Sequence[str], given: Sequence[str], origin: str
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Indices [n] of names and [n] of given names that are equal but for extension and case; the others as problems."""
    if list(names) == list(given):  # such as two halves of the same files
        return np.arange(len(names)), np.arange(len(names)), []
    partner: dict[int, int] = {}
    used: dict[int, int] = {}
    stems, given_stems = ([stem_of(name) for name in each] for each in (names, given))
    keys: list[Callable[[str], str]] = [str, str.casefold]  # first those that are equal in case too
    for key in keys:
        place: dict[str, int] = {}  # the first of several
        for j, stem in enumerate(given_stems):
            if j not in used:
                place.setdefault(key(stem), j)
        for i, stem in enumerate(stems):
            if i not in partner and (j := place.pop(key(stem), -1)) >= 0:
                partner[i], used[j] = j, i
    first = {stem.casefold(): i for i, stem in enumerate(stems) if i in partner}
    problems = []
    for i, (name, stem) in enumerate(zip(names, stems, strict=True)):
        if i not in partner:
            same = first.get(stem.casefold())
            told = f"has no partner of the same name in {origin}" if same is None else _same_name(names[same])
            problems.append(Problem(name, told))
    taken = {given_stems[j].casefold(): j for j in reversed(used)}
    for j, (name, stem) in enumerate(zip(given, given_stems, strict=True)):
        if j not in used:
            same = taken.get(stem.casefold())
            told = "has no partner among the images" if same is None else _same_name(given[same])
            problems.append(Problem(f"{origin}: {name}", told))
    rows = sorted(partner)
    return np.array(rows, np.int64), np.array([partner[i] for i in rows], np.int64), problems


def _same_name(name: str) -> str:
    return f"has the name of {name!r}"


def nearest_names(name: str, given: Sequence[str], n: int = 2) -> list[str]:
    """The names that are nearest to a name: those of the same file in other folders, else similar ones."""
    last = stem_of(name).casefold().rpartition("/")[2]
    same = [other for other in given if stem_of(other).casefold().rpartition("/")[2] == last]
    return same[:n] or difflib.get_close_matches(name, given[:_LOOKED_AT], n=n, cutoff=0.4)


def add_pairs(data: Data, given: Data, check_sizes: bool) -> Data:
    """Each row is given the picture of its name, and rows without become problems. Raises LimnerError if none is left.

    ``check_sizes``: also leave out pairs of unequal sizes, unless one is as many times as large in all of them.
    """
    origin = " ".join(given.sources)
    rows, partners, problems = partners_of(data.names, given.names, origin)
    if not len(rows):
        raise LimnerError(unpaired(data, given.names, origin))
    if given.sources != data.sources:
        problems += [Problem(f"{origin}: {p.path}", p.reason) for p in given.problems]
    data = dataclasses.replace(data, problems=data.problems + _by_picture(problems, data.tiled)).part(rows)
    given = given.part(partners)
    if check_sizes and data.sizes is not None and given.sizes is not None:
        kept, problems = alike(data.names, data.sizes.tolist(), given.sizes.tolist())
        if not len(kept):
            raise LimnerError(
                f"All {len(data):,} pairs are of unequal sizes: {problems[0].path!r} {problems[0].reason}; make both "
                "pictures of a pair equal, or one a whole number of times as large."
            )
        data = dataclasses.replace(data, problems=data.problems + _by_picture(problems, data.tiled))
        data, given = data.part(kept), given.part(kept)
    return joined(data, given, paired=True)


def unpaired(data: Data, given: Sequence[str], origin: str) -> str:
    """The sentence for sources in which nothing is a pair, with the names nearest to a match."""
    name, others = data.names[0], list(given)
    if data.tiled:
        name, others = picture_of(name), list(dict.fromkeys(map(picture_of, others)))
    near = join_words([repr(other) for other in nearest_names(name, others)], "and")
    nearest = f" (nearest: {near})" if near else ""
    return (
        f"None of the {len(data):,} images, such as {name!r}, has a partner of the same name in {origin}{nearest}: "
        "both sources need the same file names in the same subfolders."
    )


def _by_picture(problems: Sequence[Problem], tiled: bool) -> list[Problem]:
    """One problem for all tiles of a picture."""
    if not tiled:
        return list(problems)
    return list(dict.fromkeys(Problem(picture_of(p.path), p.reason) for p in problems))


def alike(
    names: Sequence[str], sizes: Sequence[Sequence[int]], given: Sequence[Sequence[int]]
) -> tuple[np.ndarray, list[Problem]]:
    """Indices of the pairs in which one picture is as many times as large as the other as in most; else problems.

    ``sizes`` and ``given`` are heights and widths of both pictures.
    """
    times = [times_as_large(one, other) for one, other in zip(sizes, given, strict=True)]
    most = most_common(times)
    fits = np.array([found is not None and found == most for found in times], bool)
    problems = []
    for i in np.flatnonzero(~fits).tolist():
        own, partner = (f"{height}x{width}" for height, width in (sizes[i], given[i]))
        why = (
            "neither equal nor one a whole multiple" if times[i] is None else "another scale than other pairs"
        )
        problems.append(Problem(names[i], f"has {own} pixels and its partner {partner}, {why}"))
    return np.flatnonzero(fits), problems


def times_as_large(size: Sequence[int], other: Sequence[int]) -> Fraction | None:
    """How many times as large a picture is as another, if that is a whole number, or one divided by it."""
    ratio = Fraction(int(size[0]), int(other[0]))
    same = ratio == Fraction(int(size[1]), int(other[1]))
    return ratio if same and 1 in (ratio.numerator, ratio.denominator) else None


def most_common(times: Sequence[Fraction | None]) -> Fraction | None:
    """The most common one; of equally common ones the smallest."""
    counts = Counter(each for each in times if each is not None)
    return min(counts, key=lambda each: (-counts[each], each)) if counts else None


def size_of_given(size: Size, times: Fraction | None) -> Size:
    """The size of given pictures whose wanted ones of ``size`` are ``times`` as large. Raises LimnerError."""
    height, width = (Fraction(side) / (times or 1) for side in size)
    if height.denominator > 1 or width.denominator > 1:
        raise LimnerError(
            f"The wanted pictures are {times} times as large as the given ones, so their size cannot be "
            f"{size[0]}x{size[1]}: choose a --size that {times} divides."
        )
    return int(height), int(width)


def joined(data: Data, given: Data, paired: bool) -> Data:
    """Row i is given picture i if they are ``paired``, else any picture, in an order of its own."""
    digest = hashlib.blake2b(f"{data.fingerprint} {given.fingerprint} {paired}".encode(), digest_size=16)
    changes: dict[str, Any] = {}
    if paired:
        digest.update(np.stack([data.rows, given.rows]).astype("<i8").tobytes())
    else:
        changes["alone"] = data.fingerprint
    spec = dataclasses.replace(data.spec, given=given.spec)
    return dataclasses.replace(
        data, spec=spec, fingerprint=digest.hexdigest(), given=given, paired=paired, **changes
    )
