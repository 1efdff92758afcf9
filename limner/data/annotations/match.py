"""The rows of metadata -> the images that they name, with what they say."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from limner.data.annotations.metadata import (
    LONGEST_TEXT,
    Columns,
    columns_of,
    columns_said,
    first,
    one_label,
    read_rows,
)
from limner.data.images.formats import SUFFIXES
from limner.data.items import Opener, Problem, printable, same_form
from limner.settings import LimnerError

_MANY = 1_000_000  # rows of a table, and 100 for each image: more are refused
_LONGEST_NAME = 1000  # characters that are shown
_SHOWN = 1000  # rows of a table that are listed as problems; more are counted


def _folded(path: str) -> str:
    """A path whatever its case, separators and Unicode form."""
    return posixpath.normpath(same_form(path).replace("\\", "/").casefold())


class Images:
    """The images of a source by name, for rows that name them more or less exactly."""

    def __init__(self, names: Sequence[str]):
        self.names = names
        self.exact = {name: i for i, name in enumerate(names)}

    @cached_property
    def _folded(self) -> list[str]:
        return list(map(_folded, self.names))

    @cached_property
    def _places(self) -> Mapping[str, list[int]]:
        """By the path without its extension, and by a '/' with its last part, and with its last two."""
        places: defaultdict[str, list[int]] = defaultdict(list)
        for i, image in enumerate(self._folded):
            stem = posixpath.splitext(image)[0]
            parts = stem.split("/")[-2:]
            for key in {stem, f"/{parts[-1]}", f"/{'/'.join(parts)}"}:
                places[key].append(i)
        return places

    @cached_property
    def _deepest(self) -> int:
        return 1 + max((name.count("/") for name in self._folded), default=0)

    def find(self, folder: str, name: str) -> tuple[int, bool] | str:
        """The image that a row of a table in ``folder`` names, and whether exactly; or why there is none.

        A name that is not exact may differ in case, separators, Unicode form and extension, and may have folders too
        many or too few, if it names one image then.
        """
        if folder == "." and name in self.exact:
            return self.exact[name], True
        whole = posixpath.normpath(posixpath.join(folder, name))
        if whole in self.exact:
            return self.exact[whole], True
        wanted = _folded(name)
        inside = _folded(folder) + "/" if folder not in ("", ".") and not wanted.startswith("../") else ""
        wanted = wanted.lstrip("./")
        stem, suffix = posixpath.splitext(wanted)
        without = ((stem, False),) if suffix in SUFFIXES else ()
        for path, ending in ((wanted, True), (wanted, False), *without):
            near = self._near(inside, path, ending)
            if len(near) == 1:
                return near[0], False
            if near:
                return f"may be {self.names[near[0]]!r} or {self.names[near[1]]!r}"
        return "there is no such image"

    def _near(self, inside: str, path: str, ending: bool) -> list[int]:
        """Images below the folder ``inside`` with this path, or else with more folders, or else with fewer.

        ``ending``: the path has an extension. Of images with more folders two at most are looked for, as all images
        may have the same name in folders of their own.
        """
        if near := self._at(inside + path, ending):
            return near
        parts = (posixpath.splitext(path)[0] if ending else path).split("/")
        found = self._places.get("/" + "/".join(parts[-2:]), ())
        longer = (i for i in found if self._lies(i, inside, path, ending))
        if near := list(islice(longer, 2)):
            return near
        parts = path.split("/")
        shorter = ("/".join(parts[-count:]) for count in range(1, min(len(parts), self._deepest + 1)))
        return [i for rest in shorter for i in self._at(inside + rest, ending)]

    def _at(self, path: str, ending: bool) -> list[int]:
        stem = posixpath.splitext(path)[0] if ending else path
        return [i for i in self._places.get(stem, ()) if not ending or self._folded[i] == path]

    def _lies(self, i: int, inside: str, path: str, ending: bool) -> bool:
        """Whether image i has the path below some folder of ``inside``."""
        image = self._folded[i] if ending else posixpath.splitext(self._folded[i])[0]
        return image.startswith(inside) and image[len(inside) :].endswith(f"/{path}")


@dataclass
class _Table:
    """What was found so far in the rows of a table."""

    shown: str  # its name
    folder: str
    rows: int = 0
    missing: int = 0  # rows that name no image that is there
    example: str = ""  # what the first of them names
    again: int = 0  # rows of an image that an earlier one names
    otherwise: int = 0  # rows that do not name their image exactly
    near: str = ""  # what the first of them names, for which image
    columns: dict[str, bool] = field(default_factory=dict)  # whether each is used, in order
    matched: set[int] = field(default_factory=set)  # images

    def notes(self) -> list[str]:
        """Sentences on how the table was read."""
        if not self.rows:
            return []
        rows = f"{self.rows:,} rows of {self.shown}"
        if self.missing == self.rows:
            few, many = f"The row of {self.shown} names no image", f"None of the {rows} names an image"
            named = few if self.rows == 1 else many
            advice = "name images by their paths from the table's folder"
            return [f"{named} that is there, such as {self.example!r}: {advice}."]
        used = {c: is_used for c, is_used in self.columns.items() if not columns_of((c,)).names}
        notes = [f"{self.shown}: {columns_said(used)}"]
        if self.missing:
            lost = f"{self.missing:,} of {self.rows:,} rows name no image that is there"
            notes[0] += f"; {lost}, such as {self.example!r}"
        if self.near:
            such = f"such as {self.near}"
            notes.append(
                f"{self.otherwise:,} of {rows} name their image by another path than its own, {such}"
            )
        if self.again:
            notes.append(f"{self.again:,} of {rows} name an image again: the last of them counts")
        return [f"{note}." for note in notes]


class Rows:
    """What the tables of a source say of its images: ``labels`` and ``captions`` by the image's index."""

    def __init__(self, names: Sequence[str]):
        self._images = Images(names)
        self.labels: dict[int, str] = {}
        self.captions: dict[int, str] = {}
        self.problems: list[Problem] = []  # rows that are not used
        self.notes: list[str] = []
        self._exact: set[int] = set()  # images that a row names exactly: other rows do not change them
        self._named: set[int] = set()

    def read(self, table: str, opener: Opener) -> None:
        """Read one table. Raises LimnerError for one that cannot be read, or a row that names no image at all."""
        found, images = _Table(printable(table), str(PurePosixPath(table).parent)), len(self._images.names)
        for row in read_rows(table, opener, self.notes):
            found.rows += 1
            if found.rows > max(_MANY, 100 * images):
                many = f"{found.shown} has over {found.rows - 1:,} rows for {images:,} images"
                raise LimnerError(f"{many}: leave out the rows of other images.")
            use = columns_of(tuple(row))
            for column in row if len(found.columns) < _SHOWN else ():
                found.columns.setdefault(column, column in use.names)
            if (match := self._match(row, use, found)) is not None:
                found.columns.update(dict.fromkeys(self._take(*match, row, use, found.shown), True))
        self._named |= found.matched
        self.notes += found.notes()

    def _match(self, row: Mapping[str, Any], use: Columns, table: _Table) -> tuple[int, bool] | None:
        """The image that a row names, and whether exactly; None if it is not there. Raises LimnerError."""
        name = next((row[c] for c in use.names if isinstance(row[c], str) and row[c].strip()), None)
        if name is None:
            has = printable(", ".join(map(str, row)))[:300] or "none"
            where = f"row {table.rows} of {table.shown} has no file_name (its columns: {has})"
            raise LimnerError(f"{where}: each row must name its image.")
        found, shown = self._images.find(table.folder, name), printable(name[:_LONGEST_NAME])
        if isinstance(found, str):
            table.missing += 1
            table.example = table.example or shown
            if table.missing <= _SHOWN:
                reason = f"named in {table.shown}, but {found}"
                self.problems.append(Problem(printable(str(PurePosixPath(table.folder) / shown)), reason))
            return None
        i, exact = found
        table.again += i in table.matched
        table.matched.add(i)
        if not exact:
            table.otherwise += 1
            table.near = table.near or f"{shown!r} for {printable(self._images.names[i])!r}"
        return found

    def _take(self, i: int, exact: bool, row: Mapping[str, Any], use: Columns, shown: str) -> Iterable[str]:
        """Take over what a row says of image i; returns the columns that it says it in."""
        if i in self._exact and not exact:
            return
        self._exact |= {i} if exact else set()
        if not use.has_some:
            return
        label, caption = first(row, use.labels, one_label), first(row, use.texts)
        for said, of in ((label, self.labels), (caption, self.captions)):
            of.pop(i, None)  # of an earlier row
            if said and len(said[1]) > LONGEST_TEXT:
                reason = f"its text in {shown} is longer than {LONGEST_TEXT:,} characters"
                self.problems.append(Problem(printable(self._images.names[i]), reason))
            elif said:
                of[i] = said[1]
                yield said[0]

    def without(self) -> int:
        """How many images no row names."""
        return len(self._images.names) - len(self._named)
