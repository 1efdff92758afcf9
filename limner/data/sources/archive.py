"""Archives as a source: zips and tars, known by their content and read in place. Nothing is unpacked by its name.

An archive is refused if a member's name leads outside it, if it holds links or devices, or if it unpacks to
more than a limit.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from limner.data.annotations.annotate import annotate
from limner.data.annotations.folder_names import hidden
from limner.data.annotations.labels import RULES, by_path
from limner.data.images.formats import not_read
from limner.data.items import Listing, Problem, Source, in_short, stamp
from limner.data.sources.members import Members
from limner.data.sources.tars import is_tar, read_tar
from limner.data.sources.zips import read_zip
from limner.settings import LimnerError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_ZIP = b"PK\3\4", b"PK\5\6", b"PK\7\x08"  # a member, the end of an empty archive, a part of a split one


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or a tar, by its content, or is named like one."""
    try:
        return path.name.lower().endswith(SUFFIXES) or bool(_kind(path))
    except OSError:
        return False


def _kind(path: Path) -> str:
    """'zip', 'tar', or '' for another file. A zip may have something before it, as a program that unpacks itself."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start in _ZIP or (not (tar := is_tar(path)) and zipfile.is_zipfile(path)):
        return "zip"
    return "tar" if tar else ""


def archives(text: str, paths: Sequence[Path], scratch: Path, classes: str = "", clips: str = "") -> Source:
    """One source of one or more archives. `scratch` is a folder for temporary files; ``clips`` as in `annotate`."""
    parent = Path(os.path.commonpath([path.parent for path in paths]))
    names = {path: path.relative_to(parent).as_posix() for path in paths}

    def listing() -> Listing:
        items, problems, notes, unused, kinds, origins = [], [], [], [], Counter[str](), []
        for path, name in names.items():
            members = _members(path, scratch)
            files = {n: opener for n, opener in sorted(members.files.items()) if not hidden(n)}
            inside = annotate(files, clips=clips)
            items += inside.items
            origins += [str(PurePosixPath(name).with_suffix(""))] * len(inside.items)  # may say a split
            problems += [Problem(f"{name}/{p.path}", p.reason) for p in members.problems + inside.skipped]
            unused += [Problem(f"{name}/{p.path}", p.reason) for p in inside.unused]
            notes += [f"{name}: {note}" for note in members.notes + inside.notes]
            kinds.update(inside.kinds)
        return by_path(Listing(items, problems, notes, kinds, unused), classes, origins)

    stamps = [(name, *stamp(path.stat())) for path, name in names.items()]
    return Source(text, ["archives", RULES, classes, stamps], listing)


def _members(path: Path, scratch: Path) -> Members:
    """What an archive holds. Raises LimnerError for a file that is none, or a damaged one."""
    try:
        kind = _kind(path)
        if kind:
            return read_zip(path) if kind == "zip" else read_tar(path, scratch)
        with open(path, "rb") as file:
            what = not_read(file)
    except LimnerError:
        raise
    except OSError as error:
        if error.errno:
            raise LimnerError(f"{path} cannot be read ({error.strerror}).") from None
        raise _damaged(path, error) from None
    except Exception as error:  # on damaged archives zipfile and tarfile raise nearly anything
        raise _damaged(path, error) from None
    raise LimnerError(f"{path} cannot be read as an archive ({what}): name a zip or a tar, or unpack it.")


def _damaged(path: Path, error: Exception) -> LimnerError:
    return LimnerError(f"{path} cannot be read as an archive ({in_short(error)}): make or download it again.")
