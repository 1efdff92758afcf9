"""Tar archives, read in place; a compressed one from a nameless temporary file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from limner.data.images.limits import Unusable
from limner.data.items import Problem, printable
from limner.data.sources import member_names
from limner.data.sources.members import Members, check_name, check_size, refused
from limner.settings import LimnerError

_DECOMPRESS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_LONGEST_HEADER = 2**20  # bytes


def is_tar(path: Path) -> bool:
    """Whether a file is a tar by its first header, compressed or not."""
    try:
        with _opener_of(path)(path, "rb") as file:
            header = file.read(tarfile.BLOCKSIZE)
        tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
    except (tarfile.HeaderError, OSError, EOFError, lzma.LZMAError, zlib.error, ValueError):
        return False
    return True


def read_tar(path: Path, scratch: Path) -> Members:
    """The members of a tar; ``scratch`` is a folder for temporary files.

    Raises LimnerError, and whatever `tarfile` and the decompressors raise on a damaged one.
    """
    file, total, places = _plain(path, scratch), 0, {}
    names: list[str] = []
    with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as archive:
        for member in _each(archive):
            check_name(path, member.name)
            if member.issym() or member.islnk():
                raise refused(path, f"its member {printable(member.name)!r} is a link")
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise refused(path, f"its member {printable(member.name)!r} is a device or sparse")
            total += member.size
            check_size(path, total)
            if member.isreg():
                names.append(member.name)
                places[len(names) - 1] = member.offset_data, member.size
        end = archive.offset
    members = Members()
    read, members.notes = _as_meant(names)
    for i, (at, size) in places.items():
        check_name(path, read[i])
        members.files[member_names.plain(read[i])] = partial(_read, file, at, size)
    if any(os.pread(file.fileno(), tarfile.BLOCKSIZE, end)):
        members.problems.append(Problem(f"byte {end:,}", "damaged: what follows in the archive is not read"))
    return members


def _each(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Every member, without keeping them. Raises tarfile.ReadError where a damaged one leads back."""
    before = -1
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]
        if member.size < 0 or archive.offset <= before:
            raise tarfile.ReadError("a member's size is damaged")
        before = archive.offset
        yield member


class _Headers:
    """A file from which headers are read: none of them is long, whatever a damaged one says."""

    def __init__(self, file: IO[bytes]):
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header says that it is {size:,} bytes long")
        return self._file.read(size)


def _as_meant(names: list[str]) -> tuple[list[str], list[str]]:
    """Names with '/' between folders and in their own encoding, and notes on it."""
    raw = [name.encode("utf-8", "surrogateescape") for name in names]
    read, notes = member_names.decoded(raw, "utf-8")
    return member_names.with_slashes(read, always=False), notes


class _Part(io.RawIOBase):
    """A part of a file, read bit by bit."""

    def __init__(self, file: IO[bytes], offset: int, size: int):
        self._file, self._at, self._end = file, offset, offset + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._file.fileno(), min(len(buffer), self._end - self._at), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _read(file: IO[bytes], offset: int, size: int, *image: int) -> IO[bytes]:
    if not image:  # a text or a table
        return io.BufferedReader(_Part(file, offset, size))
    data = os.pread(file.fileno(), size, offset)  # no shared position: safe from many threads
    if len(data) < size:
        raise Unusable("damaged: the archive ends within it")
    return io.BytesIO(data)


def _opener_of(path: Path) -> Any:
    """What opens a file to read its plain content: `open`, or a decompressor's by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(6)
    return next((opener for magic, opener in _DECOMPRESS.items() if start.startswith(magic)), open)


def _plain(path: Path, scratch: Path) -> IO[bytes]:
    """The tar itself, decompressed into a nameless temporary file where it is compressed."""
    opener = _opener_of(path)
    if opener is open:
        return open(path, "rb")
    total, plain = 0, None
    with opener(path) as packed:
        while block := packed.read(2**20):
            total += len(block)
            check_size(path, total)
            try:
                if plain is None:
                    scratch.mkdir(parents=True, exist_ok=True)
                    plain = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 (closed with its last reader)
                plain.write(block)
            except OSError as error:
                raise _no_room(path, scratch, total, error) from None
    if plain is None:
        raise EOFError("it is empty")
    try:
        plain.seek(0)  # writes what is left in the buffer
    except OSError as error:
        raise _no_room(path, scratch, total, error) from None
    return plain


def _no_room(path: Path, scratch: Path, total: int, error: OSError) -> LimnerError:
    return LimnerError(
        f"{path} cannot be unpacked into {scratch} ({error.strerror or error}): it needs over {total:,} bytes there. "
        "Make room, or name another folder with --data.cache or LIMNER_CACHE."
    )
