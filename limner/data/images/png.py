"""PNG files by their chunks: without what lies beside the pixels, and colour of 16 bits written.

Format: W3C, Portable Network Graphics (third edition).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import IO

import numpy as np

from limner.data.images.profiles import MOST_BYTES

MAGIC = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"cHRM", b"sRGB")
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> grey, grey and alpha, RGB, RGBA


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, bytes, bool]]:
    """Kind, content and whether the checksum is right of each chunk that is whole."""
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        content, checksum = file.read(size), file.read(4)
        if len(content) < size:
            yield kind, content, False  # cut off
            return
        yield kind, content, checksum == struct.pack(">I", zlib.crc32(kind + content))


def essential(file: IO[bytes]) -> tuple[IO[bytes], bytes | None] | None:
    """The PNG without text and other chunks beside its pixels, and its colour profile.

    None if the file is not a PNG, or has nothing that could be left out. Compressed text is never inflated.
    """
    file.seek(0)
    if file.read(8) != MAGIC:
        return None
    kept, profile, dropped = [MAGIC], None, False
    for kind, content, sound in _chunks(file):
        if kind in _PIXELS or (kind == b"eXIf" and sound):
            kept.append(_chunk(kind, content, sound))
        else:
            dropped = True
            if kind == b"iCCP" and sound:
                profile = _profile(content)
    return (BytesIO(b"".join(kept)), profile) if dropped else None


def _chunk(kind: bytes, content: bytes, sound: bool = True) -> bytes:
    """A chunk, whose checksum is wrong unless it is ``sound``."""
    checksum = zlib.crc32(kind + content) ^ (0 if sound else 2**32 - 1)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _profile(content: bytes) -> bytes | None:
    """The ICC profile in an iCCP chunk; None if it is damaged or too large."""
    _, _, packed = content.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(packed[1:], MOST_BYTES)
    except zlib.error:
        return None
    return None if inflate.unconsumed_tail else profile


def code_points(start: bytes) -> tuple[int, int] | None:
    """(primaries, transfer) of ITU-T H.273 that a cICP chunk in the first bytes of a PNG says."""
    at = start.find(b"\0\0\0\x04cICP")
    return (start[at + 8], start[at + 9]) if 0 < at <= len(start) - 10 else None


def written(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits: uint16 [H, W, C], with C of 1 grey, 2 grey and alpha, 3 RGB or 4 RGBA (straight alpha)."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    rows = np.ascontiguousarray(pixels, ">u2").view(np.uint8).reshape(height, -1)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), rows - above])  # 2: minus the row above
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b"")
    return MAGIC + b"".join(_chunk(*part) for part in parts)
