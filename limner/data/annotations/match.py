"""The rows of metadata -> the images that they name, with what they say."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from limner.data.annotations.metadata import (
    LONGEST_TEXT,
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
        folder, shown = str(PurePosixPath(table).parent), printable(table)
        columns: dict[str, bool] = {}  # whether each is used, in order
        count = missing = again = loose = 0
        matched: set[int] = set()
        near: tuple[str, str] | None = None  # what a row calls its image, and the image's own name
        example = ""
        for count, row in enumerate(read_rows(table, opener, self.notes), 1):
            if count > max(_MANY, 100 * len(self._images.names)):
                many = f"{shown} has over {count - 1:,} rows for {len(self._images.names):,} images"
                raise LimnerError(f"{many}: leave out the rows of other images.")
            use = columns_of(tuple(row))
            named = next((row[c] for c in use.names if isinstance(row[c], str) and row[c].strip()), None)
            if named is None:
                raise LimnerError(_nameless(count, shown, row))
            for column in row if len(columns) < _SHOWN else ():
                columns.setdefault(column, column in use.names)
            found = self._images.find(folder, named)
            if isinstance(found, str):
                missing += 1
                example = example or printable(named)
                if missing <= _SHOWN:
                    path = printable(str(PurePosixPath(folder) / named))
                    self.problems.append(Problem(path, f"named in {shown}, but {found}"))
                continue
            again += found[0] in matched
            if not found[1]:
                loose += 1
                near = near or (printable(named), printable(self._images.names[found[0]]))
            matched.add(found[0])
            columns.update(dict.fromkeys(self._take(*found, row, shown), True))
        self._named |= matched
        if count:
            self.notes.append(_summary(shown, count, missing, example, columns))
        if near:
            self.notes.append(
                f"{loose:,} of {count:,} rows of {shown} name their image otherwise than it is named, such as "
                f"{near[0]!r} for {near[1]!r}."
            )
        if again:
            self.notes.append(
                f"{again:,} of {count:,} rows of {shown} name an image again: the last of them counts."
            )

    def _take(self, i: int, exact: bool, row: Mapping[str, Any], shown: str) -> Iterable[str]:
        """Take over what a row says of image i; returns the columns that it says it in."""
        if i in self._exact and not exact:
            return
        self._exact |= {i} if exact else set()
        use = columns_of(tuple(row))
        if not use.labels and not use.texts:
            return
        for said, of in (
            (first(row, use.labels, one_label), self.labels),
            (first(row, use.texts), self.captions),
        ):
            of.pop(i, None)  # of an earlier row
            if said and len(said[1]) > LONGEST_TEXT:
                name = printable(self._images.names[i])
                self.problems.append(
                    Problem(name, f"its text in {shown} is longer than {LONGEST_TEXT:,} characters")
                )
            elif said:
                of[i] = said[1]
                yield said[0]

    def without(self) -> int:
        """How many images no row names."""
        return len(self._images.names) - len(self._named)


def _nameless(number: int, shown: str, row: Mapping[str, Any]) -> str:
    has = printable(", ".join(map(str, row)))[:300] or "none"
    return f"row {number} of {shown} has no file_name (its columns: {has}): each row must name its image."


def _summary(shown: str, count: int, missing: int, example: str, columns: Mapping[str, bool]) -> str:
    """A sentence on how a table was read."""
    if missing == count:
        rows = (
            f"The row of {shown} names no"
            if count == 1
            else f"None of the {count:,} rows of {shown} names an"
        )
        return f"{rows} image that is there, such as {example!r}: name images by their paths from the table's folder."
    said = columns_said({column: used for column, used in columns.items() if not columns_of((column,)).names})
    lost = (
        f"; {missing:,} of {count:,} rows name no image that is there, such as {example!r}" if missing else ""
    )
    return f"{shown}: {said}{lost}."
