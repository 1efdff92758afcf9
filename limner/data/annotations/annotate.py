"""The files of a source -> images with labels and captions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from limner.data.annotations.encoding import NAMES, UNDETECTED, decode, decoded, detect
from limner.data.annotations.match import Rows
from limner.data.annotations.metadata import (
    LONGEST_TEXT,
    TABLES,
    columns_of,
    first,
    one_label,
    one_line,
    parse_json,
)
from limner.data.annotations.numbered import Numbered, numbered
from limner.data.annotations.stylegan import with_dataset_json
from limner.data.images.formats import FILMS, SUFFIXES, kind_of
from limner.data.items import Item, Listing, Opener, Problem, plain, printable, same_form

BESIDE = ".txt", ".caption", ".cls", ".json"  # of the texts that are read beside an image
_TABLES = "metadata.json", "captions.json", "labels.json", "annotations.json"  # of other programs
_POOL = 2**18  # bytes of texts from which their encoding is detected


@dataclass
class _Files:
    """The files of a source by what they are."""

    images: list[str] = field(default_factory=list)
    sides: dict[str, dict[str, str]] = field(default_factory=dict)  # stem -> suffix -> name
    tables: list[str] = field(default_factory=list)  # of metadata
    unread: list[str] = field(default_factory=list)  # tables of other names
    others: Counter[str] = field(default_factory=Counter)  # by what they are


def annotate(files: Mapping[str, Opener], skipped: Sequence[Problem] = (), clips: str = "") -> Listing:
    """The images among files, with labels and captions from metadata and files beside them; see `by_path` for folders.

    Labels: `label` in metadata, or .cls beside the image. Captions: `text` in metadata, or .txt or .caption
    beside it. A .json beside an image may hold both, as in webdataset shards. ``clips``: of a data set of clips
    `numbered` of ``DataOptions``, and films are read too; else "".
    """
    problems = list(skipped)
    frames = numbered(files) if clips == "clips" else Numbered(dict(files))
    files = frames.rest
    found = _sorted_out(files, problems, frames.clips.keys(), SUFFIXES | FILMS if clips else SUFFIXES)
    rows, beside = Rows(found.images), _Beside(files)
    for name in found.tables:
        rows.read(name, files[name])
    for i, name in enumerate(found.images):
        for suffix, side in found.sides.pop(same_form(os.path.splitext(name)[0]), {}).items():
            beside.read(i, suffix, side)
    beside.decode_others()
    items = []
    for i, name in enumerate(found.images):
        said = beside.said.get(i, {})
        label = rows.labels.get(i) or said.get("label") or said.get(".cls")
        caption = rows.captions.get(i) or said.get("text") or said.get(".txt") or said.get(".caption")
        texts = label and plain(label), caption and printable(caption)
        for pictures in frames.clips.get(name, [()]):
            items.append(Item(printable(name), files[name], *texts, pictures=pictures))
    notes = frames.notes + rows.notes + beside.notes + _notes(found, rows)
    if lost := [item.name for item in items if "\ufffd" in (item.caption or "")]:
        such = f"such as that of {lost[0]!r}"
        notes.append(f"{len(lost):,} captions hold U+FFFD, for text that was lost, {such}.")
    listing = Listing(items, problems, notes, found.others, rows.problems + beside.problems)
    return with_dataset_json(listing, files)


def _sorted_out(
    files: Iterable[str], problems: list[Problem], clips: Container[str], suffixes: frozenset[str]
) -> _Files:
    """The files by what they are; those that cannot be used are added to the problems.

    ``clips`` are folders of frames, and ``suffixes`` those of images.
    """
    found = _Files()
    for name in files:
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        if path.name.startswith("._") and suffix in SUFFIXES:
            problems.append(Problem(printable(name), "a macOS resource fork, not an image"))
        elif path.name.startswith("."):
            continue
        elif suffix in suffixes or name in clips:
            found.images.append(name)
        elif path.stem.lower() == "metadata" and suffix in TABLES:
            found.tables.append(name)
        elif suffix in BESIDE:
            found.sides.setdefault(same_form(os.path.splitext(name)[0]), {})[suffix] = name
        else:
            found.others[kind_of(path.name)] += 1
            found.unread += [name] if suffix in TABLES else []
    return found


def _notes(found: _Files, rows: Rows) -> list[str]:
    """Sentences on what is left of the files."""
    notes = []
    if (without := rows.without()) and found.tables and rows.labels.keys() | rows.captions.keys():
        notes.append(f"{without:,} of {len(found.images):,} images have no row in metadata.")
    lone = [side for sides in found.sides.values() for side in sides.values()]
    unread = found.unread + [side for side in lone if PurePosixPath(side).name in _TABLES]
    if unread and found.images:
        names = f"{printable(', '.join(unread[:3]))} {'are' if unread[1:] else 'is'} not read"
        notes.append(f"{names}: a table beside images is named metadata.csv, .jsonl or .parquet.")
    alone = [side for side in lone if not side.lower().endswith(".json")]
    if alone and found.images:
        notes.append(f"{len(alone):,} texts have no image of their name, such as {printable(alone[0])!r}.")
    return notes


class _Beside:
    """The texts beside images: ``said`` by the image's index, then by 'label', 'text' or the text's suffix."""

    def __init__(self, files: Mapping[str, Opener]):
        self.files = files
        self.said: dict[int, dict[str, str]] = {}
        self.problems: list[Problem] = []  # texts that are not used
        self.notes: list[str] = []
        self._others: list[tuple[int, str, str]] = []  # index, suffix and name of texts that are not Unicode
        self._pool = b""  # from their beginnings
        self._damaged: list[str] = []  # .json that is none; many are of other programs

    def read(self, i: int, suffix: str, name: str) -> None:
        """Read one text of image i; one that is not Unicode waits until all are known."""
        data = self._bytes(name)
        if data is None:
            return
        text = decode(data)
        if text is not None:
            self._take(i, suffix, name, text)
        else:
            self._others.append((i, suffix, name))
            self._pool += data + b"\n" if len(self._pool) < _POOL else b""

    def decode_others(self) -> None:
        """In the encoding detected from all of them, or else from each by itself."""
        together = detect(self._pool) if self._others else None
        read: dict[str, list[str]] = {}
        for i, suffix, name in self._others:
            data = self._bytes(name) or b""
            codec = together if together and decoded(data, together) is not None else detect(data)
            if codec is None:
                self.problems.append(Problem(printable(name), UNDETECTED))
            else:
                self._take(i, suffix, name, data.decode(codec))
                read.setdefault(NAMES[codec], []).append(name)
        for encoding, names in read.items():
            many = f"{len(names):,} texts are not UTF-8 and were"
            which = many if names[1:] else "1 text is not UTF-8 and was"
            self.notes.append(f"{which} read as {encoding}, such as {printable(names[0])!r}.")
        if some := self._damaged:
            such = f"such as {printable(some[0])!r}"
            self.notes.append(f"{len(some):,} .json beside images are not JSON, {such}.")

    def _bytes(self, name: str) -> bytes | None:
        """The content of a text; None, and a problem, for one that cannot be read or is too long."""
        try:
            with self.files[name]() as file:
                data = file.read(LONGEST_TEXT + 1)
        except Exception as error:  # damaged, as inside a zip, or without permission
            self.problems.append(Problem(printable(name), f"cannot be read ({error})"))
            return None
        if len(data) <= LONGEST_TEXT:
            return data
        self.problems.append(Problem(printable(name), f"is longer than the {LONGEST_TEXT:,} bytes of a text"))
        return None

    def _take(self, i: int, suffix: str, name: str, text: str) -> None:
        """Take over what a text says."""
        said = self.said.setdefault(i, {})
        if suffix != ".json":
            if line := one_line(text):
                said[suffix] = line
            return
        try:
            table = parse_json(text) if text.strip() else {}
        except ValueError:
            self._damaged.append(name)
            return
        if isinstance(table, dict):
            use = columns_of(tuple(table))
            pairs = ("label", first(table, use.labels, one_label)), ("text", first(table, use.texts))
            said |= {what: found[1] for what, found in pairs if found}
