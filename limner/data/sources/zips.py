"""Zip archives, read in place. A member is inflated only as far as the archive says that it is long."""

from __future__ import annotations

import bz2
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from limner.data.images.formats import SUFFIXES
from limner.data.images.limits import Unusable
from limner.data.items import Problem, printable
from limner.data.sources import member_names
from limner.data.sources.members import Members, check_name, check_size, refused
from limner.settings import LimnerError

_UTF8, _ENCRYPTED, _PATCH, _STRONG, _MASKED = 0x800, 0x1, 0x20, 0x40, 0x2000  # bits of a member's flags
_UNICODE_PATH = 0x7075  # Info-ZIP's extra field: version, CRC-32 of the plain name, name in UTF-8
_BLOCK = 2**18  # bytes read at a time
_METHODS = {  # of compression that are not read: APPNOTE.TXT of PKWARE, 4.4.5
    1: "shrink", 2: "reduce", 3: "reduce", 4: "reduce", 5: "reduce", 6: "implode", 7: "tokenize", 9: "deflate64",
    10: "IBM TERSE", 16: "IBM CMPSC", 18: "IBM TERSE", 19: "IBM LZ77", 20: "zstd", 93: "zstd", 94: "MP3", 95: "xz",
    96: "a JPEG variant", 97: "WavPack", 98: "PPMd",
}  # fmt: skip


def read_zip(path: Path) -> Members:
    """The members of a zip. Raises LimnerError, and whatever `zipfile` raises on a damaged one."""
    archive = zipfile.ZipFile(path)
    listed = archive.infolist()
    names, notes = _names(listed)
    members, total, count = Members(notes=notes), 0, 0
    for name, member in zip(names, listed, strict=True):
        check_name(path, name)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise refused(path, f"its member {printable(name)!r} is a link")
        if member.flag_bits & (_ENCRYPTED | _STRONG | _MASKED):
            how = " with AES" if member.compress_type == 99 else ""
            raise LimnerError(f"{path} is encrypted{how}: unpack it and use the folder instead.")
        total += member.file_size  # reading a member never yields more than it declares
        check_size(path, total)
        if name.endswith("/"):
            continue
        is_image = os.path.splitext(name)[1].lower() in SUFFIXES
        count += is_image
        if member.compress_type in (0, 8, 12, 14) and not member.flag_bits & _PATCH:
            members.files[member_names.plain(name)] = partial(_read, archive, member)
        elif is_image:
            method = _METHODS.get(member.compress_type, f"method {member.compress_type}")
            members.problems.append(Problem(printable(name), f"is compressed by {method}, which is not read"))
    if count and len(members.problems) == count:
        reason = members.problems[0].reason.removeprefix("is ")
        advice = "unpack it and use the folder, or zip it with deflate"
        raise LimnerError(f"The images in {path} are {reason}: {advice}.")
    return members


def _names(listed: list[zipfile.ZipInfo]) -> tuple[list[str], list[str]]:
    """The members' names as they were meant, and notes on them."""
    names: list[str] = []
    unstated: list[int] = []  # whose encoding nothing states
    raw: list[bytes] = []
    for member in listed:
        name = member.orig_filename.partition("\0")[0]
        names.append(name)
        if not member.flag_bits & _UTF8 and not name.isascii():
            data = name.encode("cp437")  # what zipfile took the bytes for
            if (stated := _stated(member.extra, data)) is not None:
                names[-1] = stated
            else:
                unstated.append(len(names) - 1)
                raw.append(data)
    read, notes = member_names.decoded(raw, "cp437")
    for i, name in zip(unstated, read, strict=True):
        names[i] = name
    return member_names.with_slashes(names, always=True), notes


def _stated(extra: bytes, raw: bytes) -> str | None:
    """The name in the extra field of Info-ZIP, if it is of this plain name."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        data, extra = extra[4 : 4 + size], extra[4 + size :]
        matches = kind == _UNICODE_PATH and len(data) > 5 and data[0] == 1
        if matches and struct.unpack_from("<I", data, 1)[0] == zlib.crc32(raw):
            return data[5:].decode("utf-8", "replace")
    return None


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, *size: int) -> IO[bytes]:
    """The content of a member, from any thread. Raises Unusable where it is not what the archive says."""
    if not size:  # a text or a table, which is read bit by bit
        return archive.open(member)
    assert archive.fp is not None
    file = archive.fp.fileno()
    start = os.pread(file, 30, member.header_offset)
    if len(start) < 30 or start[:4] != b"PK\3\4":
        raise Unusable("damaged: it is not where the archive says")
    at = member.header_offset + 30 + sum(struct.unpack_from("<HH", start, 26))
    data = BytesIO()
    for part in _inflated(file, at, member):
        data.write(part)
    if data.tell() != member.file_size:
        than = f"{'more' if data.tell() > member.file_size else 'fewer'} than the {member.file_size:,} bytes"
        raise Unusable(f"damaged: it unpacks to {than} that the archive says")
    if zlib.crc32(data.getbuffer()) != member.CRC:
        raise Unusable("damaged: its checksum is not the archive's")
    data.seek(0)
    return data


def _inflated(file: int, at: int, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content in parts, up to one byte more than the archive says."""
    decompressor, block = _decompressor(member.compress_type)
    packed, left = member.compress_size, member.file_size + 1
    while packed > 0 and left > 0 and (data := os.pread(file, min(packed, block), at)):
        at, packed = at + len(data), packed - len(data)
        part = data if decompressor is None else decompressor.decompress(data, left)
        left -= len(part)
        yield part
        if decompressor is not None and decompressor.eof:
            break


def _decompressor(method: int) -> tuple[Any, int]:
    """What inflates a member, with the bytes that it is given at a time; None for a stored one."""
    if method == 0:
        return None, _BLOCK
    if method == 8:
        return zlib.decompressobj(-15), _BLOCK
    return (bz2.BZ2Decompressor(), _BLOCK) if method == 12 else (_Lzma(), 2**12)


class _Lzma(zipfile.LZMADecompressor):  # type: ignore[name-defined, misc]
    """LZMA with the header of zips. It has no bound on its output, so it is given few bytes at a time."""

    def decompress(self, data: bytes, limit: int) -> bytes:
        return super().decompress(data)[:limit]
