"""TIFF files without what lies beside the pixels. Format: TIFF, revision 6.0."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import IO

_MOST = 2**28  # bytes of a file that is copied
_ORIENTATION, _PROFILE = 274, 34675
OF_PIXELS = frozenset(
    (254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332)
    + (338, 339, 347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532)
)


def essential(file: IO[bytes]) -> BytesIO | None:
    """The TIFF's first image with the tags of its pixels, orientation and colour profile alone.

    None if the file is not a TIFF of 32-bit offsets, or has no other tags.
    """
    file.seek(0)
    head = file.read(8)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None or len(head) < 8 or file.seek(0, 2) > _MOST:
        return None
    (at,) = struct.unpack_from(order + "I", head, 4)
    file.seek(0)
    content = bytearray(file.read())
    if at + 2 > len(content):
        return None
    (count,) = struct.unpack_from(order + "H", content, at)
    entries = [bytes(content[i : i + 12]) for i in range(at + 2, at + 2 + 12 * count, 12)]
    kept = [entry for entry in entries if len(entry) == 12 and _keeps(order, entry, len(content))]
    if len(kept) == len(entries):
        return None
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)  # no other image follows
    content[at : at + len(directory)] = directory
    return BytesIO(bytes(content))


def _keeps(order: str, entry: bytes, size: int) -> bool:
    tag, kind, count, value = struct.unpack(order + "HHII", entry)
    if tag == _ORIENTATION:
        return kind == 3 and count == 1
    if tag == _PROFILE:
        return kind in (1, 7) and value + count <= size
    return tag in OF_PIXELS
