"""Zip and tar archives, read in place: nothing is ever unpacked by its name.

An archive is refused if a member's name leads outside it, if it holds links or devices, or if it unpacks to
more than a limit.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

from limner.data.annotate import annotate
from limner.data.folder_names import hidden
from limner.data.labels import RULES, by_path
from limner.data.sources import Listing, Opener, Problem, Source, printable, stamp
from limner.settings import LimnerError

_MOST_GROWTH = 50  # times its own size that an archive may unpack to
_ALWAYS_FINE = 256 * 2**20  # bytes that any archive may unpack to
_DAMAGED = zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError
_DECOMPRESS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


def archives(text: str, paths: Sequence[Path], scratch: Path, classes: str = "") -> Source:
    """One source of one or more archives. `scratch` is a folder for temporary files."""

    parent = Path(os.path.commonpath([p.parent for p in paths]))
    names = {p: p.relative_to(parent).with_suffix("").as_posix() for p in paths}  # may say a split

    def listing() -> Listing:
        items, problems, notes, unused, kinds, origins = [], [], [], [], Counter[str](), []
        for path in paths:
            try:
                files = _zip(path) if _starts_with(path, b"PK") else _tar(path, scratch)
            except _DAMAGED as error:
                what = f"{path} cannot be read as an archive ({error})"
                raise LimnerError(f"{what}: make or download it again.") from None
            inside = annotate({n: opener for n, opener in files.items() if not hidden(n)})
            items += inside.items
            origins += [names[path]] * len(inside.items)
            problems += [Problem(f"{path.name}/{p.path}", p.reason) for p in inside.skipped]
            unused += [Problem(f"{path.name}/{p.path}", p.reason) for p in inside.unused]
            notes += [f"{path.name}: {note}" for note in inside.notes]
            kinds.update(inside.kinds)
        found = Listing(items, problems, kinds.total(), notes, dict(kinds), unused)
        return by_path(found, classes, origins)

    stamps = [(p.relative_to(parent).as_posix(), *stamp(p.stat())) for p in paths]
    return Source(text, ["archives", RULES, classes, stamps], listing)


def _refuse(path: Path, why: str) -> LimnerError:
    return LimnerError(f"{path} is refused: {why}. If you trust it, unpack it and use the folder instead.")


def _starts_with(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _check_name(path: Path, name: str) -> None:
    plain = name.replace("\\", "/")
    if plain.startswith("/") or plain[1:2] == ":":
        raise _refuse(path, f"its member {printable(name)!r} has an absolute name")
    if ".." in PurePosixPath(plain).parts:
        raise _refuse(path, f"its member {printable(name)!r} leads outside it")


def _check_size(path: Path, total: int) -> None:
    most = max(_ALWAYS_FINE, _MOST_GROWTH * path.stat().st_size)
    if total > most:
        raise _refuse(path, f"it unpacks to over {most / 2**20:,.0f} MiB, like a decompression bomb")


def _zip(path: Path) -> dict[str, Opener]:
    archive, total, files = zipfile.ZipFile(path), 0, {}
    for member in archive.infolist():
        _check_name(path, member.orig_filename)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _refuse(path, f"its member {printable(member.filename)!r} is a link")
        if member.flag_bits & 1:
            raise LimnerError(f"{path} is encrypted: unpack it and use the folder instead.")
        total += member.file_size  # reading a member never yields more than it declares
        _check_size(path, total)
        if not member.is_dir():
            files[member.filename] = partial(_read_zip, archive, member)
    return dict(sorted(files.items()))


def _read_zip(archive: zipfile.ZipFile, member: zipfile.ZipInfo, *size: int) -> IO[bytes]:
    if not size:  # a text or a table, which is read bit by bit
        return archive.open(member)
    return BytesIO(archive.read(member))


def _tar(path: Path, scratch: Path) -> dict[str, Opener]:
    file, total, files = _plain(path, scratch), 0, {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            _check_name(path, member.name)
            if member.issym() or member.islnk():
                raise _refuse(path, f"its member {printable(member.name)!r} is a link")
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise _refuse(path, f"its member {printable(member.name)!r} is a device or sparse")
            total += member.size
            _check_size(path, total)
            if member.isreg():
                name = str(PurePosixPath(member.name))  # './a' is 'a'
                files[name] = partial(_read_at, file, member.offset_data, member.size)
    return dict(sorted(files.items()))


def _read_at(file: IO[bytes], offset: int, size: int, *_: int) -> IO[bytes]:
    return BytesIO(os.pread(file.fileno(), size, offset))  # no shared position: safe from many threads


def _plain(path: Path, scratch: Path) -> IO[bytes]:
    """The tar itself, decompressed into a nameless temporary file where it is compressed."""
    opener = next((opener for magic, opener in _DECOMPRESS.items() if _starts_with(path, magic)), None)
    if opener is None:
        return open(path, "rb")
    scratch.mkdir(parents=True, exist_ok=True)
    plain, total = tempfile.TemporaryFile(dir=scratch), 0  # noqa: SIM115 (closed with its last reader)
    with opener(path) as packed:
        while block := packed.read(2**20):
            total += len(block)
            _check_size(path, total)
            plain.write(block)
    plain.seek(0)
    return plain
