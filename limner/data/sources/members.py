"""The members of an archive, and what an archive may hold: of zips and tars alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from limner.data.items import Opener, Problem, printable
from limner.settings import LimnerError

_MOST_GROWTH = 50  # times its own size that an archive may unpack to
_DEEPEST = 200  # folders that a member may lie in
_ALWAYS_FINE = 256 * 2**20  # bytes that any archive may unpack to


@dataclass
class Members:
    """The files of an archive by their names, those that cannot be read, and sentences on how it was read."""

    files: dict[str, Opener] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def refused(path: Path, why: str) -> LimnerError:
    return LimnerError(f"{path} is refused: {why}. If you trust it, unpack it and use the folder instead.")


def check_name(path: Path, name: str) -> None:
    """Raises LimnerError for a member's name that leads outside its archive."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or plain[1:2] == ":":
        raise refused(path, f"its member {printable(name)!r} has an absolute name")
    if ".." in PurePosixPath(plain).parts:
        raise refused(path, f"its member {printable(name)!r} leads outside it")
    if (depth := plain.count("/")) > _DEEPEST:
        raise refused(path, f"its member {printable(name[:50])!r}... lies in {depth:,} folders")


def check_size(path: Path, total: int) -> None:
    """Raises LimnerError where ``total`` unpacked bytes are far more than an archive of images has."""
    most = max(_ALWAYS_FINE, _MOST_GROWTH * path.stat().st_size)
    if total > most:
        raise refused(path, f"it unpacks to over {most / 2**20:,.0f} MiB, like a decompression bomb")
