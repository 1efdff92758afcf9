"""The source that a text names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from limner.data.annotations.annotate import BESIDE, annotate
from limner.data.annotations.folder_names import hidden
from limner.data.annotations.labels import RULES, by_path
from limner.data.annotations.metadata import TABLES
from limner.data.images.formats import FILMS, SUFFIXES, not_read
from limner.data.items import FileOpener, Listing, Source, printable, stamp
from limner.data.sources.archive import archives, is_archive
from limner.data.sources.builtin import digits, emoji, shapes, two_of_shapes
from limner.data.sources.folder import Folder
from limner.data.sources.moving.source import moving, moving_digits
from limner.data.sources.table import hub, parquet
from limner.settings import BUILT_IN, BUILT_IN_TWO, LimnerError, nearest

_TABLES = *(f"metadata{suffix}" for suffix in sorted(TABLES)), "dataset.json"
MOST_SHARDS = 100_000  # that a range such as {000..031} may name
# By the language of captions.
_OPENERS: dict[str, Callable[[str], Source]] = {
    "shapes": shapes, "digits": lambda language: digits(), "emoji": emoji,
    "moving": moving, "moving-digits": moving_digits,
}  # fmt: skip


def find(text: str, scratch: Path, classes: str = "", language: str = "en", clips: str = "") -> Source:
    """The source that `text` names. Raises LimnerError.

    `scratch` is a folder for temporary files; `classes` and `language` are those of `DataOptions`; `clips` is as in
    `annotate`.
    """
    if text in _OPENERS:
        return _OPENERS[text](language)
    if text in BUILT_IN_TWO:
        raise LimnerError(
            f"{text} holds given and wanted pictures: name it alone, for a family that is given some."
        )
    if text.startswith("hf:"):
        return hub(text)
    if not text:
        raise LimnerError(f"No source was named.{_hint(text)}")
    path, suffixes = Path(text).expanduser(), SUFFIXES | FILMS if clips else SUFFIXES
    if path.is_dir():
        folder = Folder(path)
        kinds = {PurePosixPath(name).suffix.lower() for name in folder.files}
        if kinds & suffixes:
            return folder.source(text, classes, clips)
        files = [path / name for name in folder.files]
        if ".parquet" in kinds:
            return parquet(text, [file for file in files if file.suffix.lower() == ".parquet"])
        if within := [file for file in files if is_archive(file)]:
            return archives(text, within, scratch, classes, clips)
        return folder.source(text, classes, clips)
    matches = [path]
    if not path.is_file():
        matches = [Path(p) for word in _braces(str(path)) for p in sorted(glob.glob(word, recursive=True))]
    if not matches:
        raise LimnerError(f"There is no source {text!r}.{_hint(text)}")
    files = list(_files(matches, "**" in text))
    if any(file.suffix.lower() in suffixes for file in files):
        return _images(text, files, classes, clips)
    if files and all(file.suffix.lower() == ".parquet" for file in files):
        return parquet(text, files)
    if within := [file for file in files if is_archive(file)]:
        return archives(text, within, scratch, classes, clips)
    raise LimnerError(f"{text!r} is not a folder, image, archive or parquet file: {_what(files)}.")


def find_two(text: str, language: str = "en") -> tuple[Source, Source]:
    """The sources of given and of wanted pictures that a name of ``BUILT_IN_TWO`` stands for."""
    return two_of_shapes(text, language)


def _what(files: Sequence[Path]) -> str:
    """The format of the first of several files that are not images."""
    if not files:
        return "it has no files"
    try:
        with open(files[0], "rb") as file:
            return not_read(file)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _files(matches: Sequence[Path], deep: bool) -> Iterator[Path]:
    """The files that a pattern matches, and those below the folders that it matches, unless it is ``deep`` itself."""
    for path in matches:
        if path.is_file():
            yield path
        elif path.is_dir() and not deep:
            yield from (path / name for name in Folder(path).files)


def _images(text: str, paths: Sequence[Path], classes: str, clips: str) -> Source:
    """Files that a pattern matches; below the folder of them all, folders may be classes."""
    parent = Path(os.path.commonpath([path.parent for path in paths]))
    beside = [side for path in paths for suffix in BESIDE if (side := path.with_suffix(suffix)).is_file()]
    files = {path.relative_to(parent).as_posix(): path for path in (*paths, *beside)}
    key = ["images", RULES, classes, *((name, *stamp(path.stat())) for name, path in files.items())]
    openers = {name: FileOpener(path) for name, path in files.items() if not hidden(name)}

    def listing() -> Listing:
        found = by_path(annotate(openers, clips=clips), classes)
        return replace(found, notes=found.notes + _tables_beside(files, parent))

    return Source(text, key, listing)


def _tables_beside(files: Mapping[str, Path], parent: Path) -> list[str]:
    """A note on the tables that lie beside the files of a pattern, or above them, and that it leaves out."""
    folders = sorted({str(above) for name in files for above in PurePosixPath(name).parents})
    places = [f"{folder}/{table}".removeprefix("./") for folder in folders for table in _TABLES]
    left = [place for place in places if place not in files and (parent / place).is_file()]
    return [f"{printable(place)} is not read for a pattern: name the folder instead." for place in left[:1]]


def _hint(text: str) -> str:
    parent = Path(text).expanduser().parent
    beside: list[Path] = []
    with suppress(OSError):
        beside = [p for p in parent.iterdir() if not p.name.startswith(".")]
    hint = nearest(text, [*BUILT_IN, *BUILT_IN_TWO, *(printable(str(p)) for p in beside)], alike=0.6)
    return hint or f" Name a folder, an archive, hf:owner/name, or one of {', '.join(BUILT_IN)}."


def _braces(text: str) -> list[str]:
    """'a-{000..002}.tar' -> three names."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if not match:
        return [text]
    first, last = match.groups()
    if len(first) > 9 or len(last) > 9 or int(last) - int(first) >= MOST_SHARDS:
        raise LimnerError(f"{text!r} names more than {MOST_SHARDS:,} files: name fewer.")
    words = (f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1))
    return [rest for word in words for rest in _braces(text[: match.start()] + word + text[match.end() :])]
