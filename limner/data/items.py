"""Sources of images, of every kind: a key, and a listing of the images."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

Opener = Callable[..., IO[bytes]]  # of a file; takes the height and width of an image, and ignores them


@dataclass(frozen=True)
class Problem:
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Item:
    """One image or film. `image(height, width)` opens its file, or draws it where the source draws."""

    name: str
    image: Callable[[int, int], IO[bytes] | Image.Image]
    label: str | None = None
    caption: str | None = None
    split: str = ""  # train, val or test, where the source has splits
    pictures: tuple[Opener, ...] = ()  # of a clip whose frames are files: each of them, in order
    # (height, width, frames, rate) -> uint8 [frames, height, width, C], where the source draws clips
    clip: Callable[[int, int, int, float], np.ndarray] | None = None


@dataclass(frozen=True)
class Listing:
    items: list[Item]
    skipped: list[Problem] = field(default_factory=list)  # files that cannot be used, and why
    notes: list[str] = field(default_factory=list)  # sentences on how the source was read, for the person
    kinds: Counter[str] = field(default_factory=Counter)  # other files, by what they are: 'SVG drawings'
    unused: list[Problem] = field(default_factory=list)  # texts and rows of metadata, and why


class Oracle(Protocol):
    """Knows what the pictures of a built-in set show, and so how well other pictures follow their captions."""

    def score(self, images: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
        """uint8 [N, H, W, 3] and N captions -> shares in [0, 1]; ``exact``: everything that a caption says."""
        ...

    def compare(self, images: np.ndarray, others: np.ndarray) -> dict[str, float]:
        """uint8 [N, H, W, 3] twice -> shares in [0, 1]; ``exact``: all that is seen of an image is as in its other."""
        ...

    def unseen(self, n: int, seed: int, known: Sequence[str], language: str = "en") -> list[str]:
        """Up to ``n`` captions of what neither the set's images nor the captions ``known`` show.

        ``language`` is that of ``DataOptions``.
        """
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
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return name  # itself, as many names are kept


def same_form(name: str) -> str:
    """In the one Unicode form (NFC) in which names and labels are compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def plain(label: str) -> str:
    """A label as it is kept: printable, in one form."""
    return same_form(printable(label))


def in_short(error: Exception) -> str:
    """The message of a library's error in one line."""
    return printable(" ".join(str(error).split())[:300]) or type(error).__name__


NOTHING = "the images have no captions and no classes"


def to_follow(images: int, captions: int = 0, classes: int = 0, noun: str = "image") -> str:
    """What a model can follow of its data, in words; "" for nothing."""
    parts = [f"captions of {captions:,} of {images:,} {noun}s"] if captions else []
    return "; ".join(parts + ([f"{classes:,} classes"] if classes else []))


FEW = 100  # images, below which a model learns them by heart
LEAST_TO_HOLD_OUT = 20  # images; of fewer none is held out


def of_few(count: int, noun: str = "image", split: bool = True) -> str:
    """What comes of so few images, in a sentence; "" of more. ``split``: they are split image by image."""
    if count >= FEW:
        return ""
    are = f"{noun}s are" if count != 1 else f"{noun} is"
    unmeasured = f", and of fewer than {LEAST_TO_HOLD_OUT} none is held out, so nothing is measured"
    unmeasured = unmeasured if split and count < LEAST_TO_HOLD_OUT else ""
    return (
        f"{count} {are} few: a model will copy them more than it varies them{unmeasured}. Add more; --data.flip "
        "mirrors half of them."
    )


def finder(classes: Sequence[str]) -> Callable[[str], int]:
    """The index of a class by its name, in whatever Unicode form; -1 for a name that is none of them."""
    forms = {same_form(name): i for i, name in reversed(list(enumerate(classes)))}
    exact = {name: i for i, name in enumerate(classes)}
    return lambda name: exact.get(name, forms.get(same_form(name), -1))


def stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Size, time and inode of a file; one of them differs when the file does."""
    return status.st_size, status.st_mtime_ns, status.st_ino


@dataclass(frozen=True, slots=True)
class FileOpener:
    """The Opener of a file, in memory that counts where there are many."""

    name: str | Path
    folder: Path | str = ""

    def __call__(self, *size: int) -> IO[bytes]:
        return open(os.path.join(self.folder, self.name), "rb")
