"""Sources of images, of every kind: a key, and a listing of the images."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

from limner.data.decode import SUFFIXES
from limner.settings import LimnerError

TEXT_COLUMNS = ("text", "caption", "prompt")
LABEL_COLUMNS = ("label", "class", "labels")
SPLITS = frozenset(("train", "training", "test", "val", "valid", "validation"))
Opener = Callable[..., IO[bytes]]  # of a file; takes the height and width of an image, and ignores them


@dataclass(frozen=True)
class Problem:
    path: str
    reason: str


@dataclass(frozen=True)
class Item:
    """One image. `image(height, width)` opens its file, or draws it where the source draws."""

    name: str
    image: Callable[[int, int], IO[bytes] | Image.Image]
    label: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Listing:
    items: list[Item]
    skipped: list[Problem] = field(default_factory=list)  # files that cannot be used, and why
    others: int = 0  # files of other kinds, ignored


class Oracle(Protocol):
    """Knows what the pictures of a built-in set show, and so how well other pictures follow their captions."""

    def score(self, images: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
        """uint8 [N, H, W, 3] and N captions -> shares in [0, 1]; ``exact``: everything that a caption says."""
        ...


@dataclass(frozen=True)
class Source:
    name: str
    key: Sequence[Any]  # JSON values that differ whenever the images may differ
    listing: Callable[[], Listing]
    drawn: bool = False  # drawn by Limner at any size: 8 bits, no files to scan
    channels: int | None = None  # of a drawn source, unless the options say others
    oracle: Oracle | None = None  # of drawn pictures whose captions can be checked


def printable(name: str) -> str:
    """A name or text as Unicode: lone surrogates, such as bytes of a file name that are not UTF-8, are replaced."""
    return name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# Folders ----------------------------------------------------------------------------------------------------


def stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Size, time and inode of a file; one of them differs when the file does."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def opener_of(path: str | Path) -> Opener:
    return lambda *size: open(path, "rb")


class Folder:
    """The regular files below a folder, by relative name; links are followed, each folder visited once."""

    def __init__(self, root: Path):
        self.root = root
        self.files: dict[str, tuple[int, int, int]] = {}
        self.skipped: list[Problem] = []
        self._walk(str(root), "", set())

    def _walk(self, path: str, name: str, visited: set[tuple[int, int]]) -> None:
        """Adds a file, or the files below a folder."""
        place, problem = PurePosixPath(name), ""
        try:
            status = os.stat(path)
            identity = status.st_dev, status.st_ino
            if stat.S_ISREG(status.st_mode):
                self.files[name] = stamp(status)
            elif not stat.S_ISDIR(status.st_mode):
                problem = "not a regular file" if place.suffix.lower() in SUFFIXES else ""
            elif place.name.startswith(".") or place.name == "__MACOSX":
                return
            elif identity in visited:
                problem = "a link to a folder that was read already"
            else:
                visited.add(identity)
                for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                    self._walk(entry.path, str(place / entry.name), visited)
        except OSError as error:  # such as a link into nowhere, or round in a circle
            problem = f"cannot be read ({error.strerror})"
        if problem:
            self.skipped.append(Problem(printable(name), problem))

    def source(self, text: str) -> Source:
        openers = {name: opener_of(os.path.join(self.root, name)) for name in self.files}
        key = [("folder", *([printable(name), *stamp] for name, stamp in self.files.items()))]
        return Source(text, key, lambda: annotate(openers, self.skipped))


# Names to images with labels and captions -------------------------------------------------------------------


def annotate(files: Mapping[str, Opener], skipped: Sequence[Problem] = ()) -> Listing:
    """The images among files, with labels and captions from folders, metadata and files beside them.

    Labels: the folders that an image lies in ('a/b'; a first folder named train, test or the like does not
    count), or `label` in metadata, or .cls beside it. Captions: `text` in metadata, or .txt or .caption
    beside it. A .json beside an image may hold both, as in webdataset shards.
    """
    problems = list(skipped)
    images: list[str] = []
    sides: dict[str, dict[str, str]] = {}  # stem -> suffix -> name
    metadata: dict[str, dict[str, Any]] = {}
    others = 0
    for name in files:
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        if path.name.startswith("._") and suffix in SUFFIXES:
            problems.append(Problem(printable(name), "a macOS resource fork, not an image"))
        elif path.name.startswith("."):
            continue
        elif suffix in SUFFIXES:
            images.append(name)
        elif path.name.lower() in ("metadata.jsonl", "metadata.csv"):
            for row in _rows(name, files[name]):
                metadata[str(path.parent / row["file_name"])] = row
        elif suffix in (".txt", ".caption", ".cls", ".json"):
            sides.setdefault(os.path.splitext(name)[0], {})[suffix] = name
        else:
            others += 1

    tops = {PurePosixPath(name).parts[0] for name in images if "/" in name}
    drop = 1 if tops and tops <= SPLITS and all("/" in name for name in images) else 0
    items = []
    for name in images:
        beside: dict[str, str | None] = {}
        for suffix, side in sides.get(os.path.splitext(name)[0], {}).items():
            try:
                beside[suffix] = one_line(_text(files[side]))
            except Exception as error:  # damaged, as inside a zip, or without permission
                problems.append(Problem(printable(side), f"cannot be read ({error})"))
        row = {**_json(beside.get(".json")), **metadata.pop(name, {})}
        label = _first(row, LABEL_COLUMNS) or beside.get(".cls")
        label = label or "/".join(PurePosixPath(name).parts[drop:-1]) or None
        caption = _first(row, TEXT_COLUMNS) or beside.get(".txt") or beside.get(".caption")
        texts = label and printable(label), caption and printable(caption)
        items.append(Item(printable(name), files[name], *texts))
    problems += [Problem(printable(name), "named in metadata, but not there") for name in metadata]
    return Listing(items, problems, others)


def one_line(value: Any) -> str | None:
    """A text or a number with each run of white space as one space; None for anything else, or nothing."""
    return " ".join(str(value).split()) or None if isinstance(value, str | int) else None


def _text(opener: Opener) -> str:
    with opener() as file:
        return file.read().decode("utf-8-sig", "replace")


def _json(text: str | None) -> dict[str, Any]:
    """The table in a .json beside an image; {} if there is none."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    return next(filter(None, (one_line(row.get(column)) for column in columns)), None)


def _rows(name: str, opener: Opener) -> Iterator[dict[str, Any]]:
    """The rows of a metadata file, each with its file_name."""
    try:
        text = _text(opener)
        jsonl = name.lower().endswith("l")
        rows: list[Any] = list(_json_lines(name, text) if jsonl else csv.DictReader(io.StringIO(text)))
    except LimnerError:
        raise
    except Exception as error:  # whatever a damaged archive or table raises
        raise LimnerError(f"{printable(name)} cannot be read ({error}): fix or remove it.") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            where = f"row {number} of {printable(name)}"
            raise LimnerError(f"{where} has no file_name: each row must name its image.")
        yield row


def _json_lines(name: str, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                where = f"line {number} of {printable(name)}"
                raise LimnerError(f"{where} is not JSON ({error}): fix or remove it.") from None
