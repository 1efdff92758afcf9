"""The files of a source -> images with labels and captions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from limner.data.decode import SUFFIXES
from limner.data.formats import kind_of
from limner.data.metadata import first, one_line, parse_json, read_rows, read_text
from limner.data.sources import LABEL_COLUMNS, TEXT_COLUMNS, Item, Listing, Opener, Problem, printable


@dataclass
class _Files:
    """The files of a source by what they are."""

    images: list[str] = field(default_factory=list)
    sides: dict[str, dict[str, str]] = field(default_factory=dict)  # stem -> suffix -> name
    tables: list[str] = field(default_factory=list)  # of metadata
    others: Counter[str] = field(default_factory=Counter)  # by what they are


def annotate(files: Mapping[str, Opener], skipped: Sequence[Problem] = ()) -> Listing:
    """The images among files, with labels and captions from metadata and files beside them; see `by_path` for folders.

    Labels: `label` in metadata, or .cls beside the image. Captions: `text` in metadata, or .txt or .caption
    beside it. A .json beside an image may hold both, as in webdataset shards.
    """
    problems = list(skipped)
    found = _sorted_out(files, problems)
    metadata: dict[str, dict[str, Any]] = {}
    for name in found.tables:
        for row in read_rows(name, files[name]):
            metadata[str(PurePosixPath(name).parent / row["file_name"])] = row
    items = []
    for name in found.images:
        beside: dict[str, str | None] = {}
        for suffix, side in found.sides.get(os.path.splitext(name)[0], {}).items():
            try:
                beside[suffix] = one_line(read_text(files[side]))
            except Exception as error:  # damaged, as inside a zip, or without permission
                problems.append(Problem(printable(side), f"cannot be read ({error})"))
        row = {**parse_json(beside.get(".json")), **metadata.pop(name, {})}
        label = first(row, LABEL_COLUMNS) or beside.get(".cls")
        caption = first(row, TEXT_COLUMNS) or beside.get(".txt") or beside.get(".caption")
        texts = label and printable(label), caption and printable(caption)
        items.append(Item(printable(name), files[name], *texts))
    problems += [Problem(printable(name), "named in metadata, but not there") for name in metadata]
    return Listing(items, problems, found.others.total(), kinds=dict(found.others))


def _sorted_out(files: Iterable[str], problems: list[Problem]) -> _Files:
    """The files by what they are; those that cannot be used are added to the problems."""
    found = _Files()
    for name in files:
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        if path.name.startswith("._") and suffix in SUFFIXES:
            problems.append(Problem(printable(name), "a macOS resource fork, not an image"))
        elif path.name.startswith("."):
            continue
        elif suffix in SUFFIXES:
            found.images.append(name)
        elif path.name.lower() in ("metadata.jsonl", "metadata.csv"):
            found.tables.append(name)
        elif suffix in (".txt", ".caption", ".cls", ".json"):
            found.sides.setdefault(os.path.splitext(name)[0], {})[suffix] = name
        else:
            found.others[kind_of(path.name)] += 1
    return found
