"""Folders of numbered images, each of which is one clip: its frames, in the order of their numbers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath

from limner.data.images.animated import moves
from limner.data.images.formats import SUFFIXES
from limner.data.items import Opener, printable

ROOT = "frames"  # the name of a clip whose frames lie in no folder
_NUMBER = re.compile(r"(.*?)(\d+)$")


@dataclass
class Numbered:
    """What of the files of a source are frames."""

    rest: dict[str, Opener]  # the other files, and each folder of frames as its first one
    clips: dict[str, list[tuple[Opener, ...]]] = field(default_factory=dict)  # by folder: runs without a gap
    notes: list[str] = field(default_factory=list)


def numbered(files: Mapping[str, Opener]) -> Numbered:
    """The folders of which all images are named by one word and a number, two or more of them, as clips."""
    folders = defaultdict(list)
    for name in files:
        path = PurePosixPath(name)
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            folders[str(path.parent)].append(name)
    found = Numbered(dict(files))
    gaps = []
    for folder, names in folders.items():
        numbers = _numbers(names)
        if numbers is None or moves(files[names[0]]):
            continue
        for name in names:
            del found.rest[name]
        place = ROOT if folder == "." else folder
        runs = _runs(sorted(numbers))
        found.rest[place] = files[numbers[runs[0][0]]]
        found.clips[place] = [tuple(files[numbers[i]] for i in run) for run in runs]
        gaps += [f"{printable(place)!r} after {runs[0][-1]}"] if len(runs) > 1 else []
    if n := len(found.clips):
        which = f"{n:,} folders of numbered images are" if n > 1 else "1 folder of numbered images is"
        such = f"{'such as ' if n > 1 else ''}{printable(next(iter(found.clips)))!r}"
        what = "clips" if n > 1 else "a clip"
        found.notes.append(
            f"{which} read as {what}, {such} (--data.numbered stills takes each image by itself)."
        )
    if gaps:
        which = f"{len(gaps):,} of them lack" if len(gaps) > 1 else "1 of them lacks"
        found.notes.append(f"{which} numbers, such as {gaps[0]}: no clip crosses such a gap.")
    return found


def _numbers(names: Sequence[str]) -> dict[int, str] | None:
    """The images by number; None unless there are several, all of one word and a number of their own."""
    words, numbers = set(), {}
    for name in names:
        match = _NUMBER.match(PurePosixPath(name).stem)
        if match is None:
            return None
        words.add(match[1])
        numbers[int(match[2])] = name
    return numbers if len(words) == 1 and len(numbers) == len(names) > 1 else None


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """The numbers, cut wherever the next is not as far as most are."""
    gap = Counter(b - a for a, b in pairwise(numbers)).most_common(1)[0][0]
    runs = [[numbers[0]]]
    for before, number in pairwise(numbers):
        if number - before != gap:
            runs.append([])
        runs[-1].append(number)
    return runs
