"""Limits on the pixels, memory and time of one image, known from its header, and on the memory of all threads."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from PIL import Image

from limner.data.images import deep, png

MAX_PIXELS = 100_000_000  # an image with more counts as a decompression bomb
TOO_MANY = f"more than {MAX_PIXELS / 1e6:.0f} million pixels: scale it down first"
MAX_BYTES = 5 * 2**28  # of memory that decoding one image may take; one that takes more is refused
_MAX_ICON = 2**22  # pixels of an icon, which Pillow decodes as soon as it opens it
_MAX_SCANS = 2_000_000_000  # pixels times passes of a progressive JPEG: some seconds
# Pixels that a byte of a file can hold at most, where the format has a bound; of PNG those of one bit.
_MOST_GROWTH = {
    "PNG": 1032 * 8, "TIFF": 3000, "GIF": 3000, "JPEG": 2000, "MPO": 2000, "PCX": 256, "BMP": 128, "DIB": 128,
    "TGA": 64, "QOI": 64, "PPM": 8, "DDS": 2,
}  # fmt: skip
_SMALL = 2**20  # bytes; less is never waited for

# Bytes of memory a pixel, at most, while an image is decoded and made plain: measured for large ones.
_OF_MODE = {"1": 2, "L": 2, "P": 10, "RGB": 5, "RGBA": 9, "CMYK": 9, "I;16": 7, "I;16B": 7, "I;16L": 7}
_OF_FORMAT = {"WEBP": 12, "AVIF": 14, "JPEG2000": 17, "GIF": 2, "QOI": 4, "TGA": 4, "TIFF": 3, "ICO": 8}
_OF_DEEP = 25


class Unusable(Exception):
    """Why one image cannot be used, in a few words."""


class Budget:
    """Bytes that threads share: what would exceed them waits, and more than all of them is held alone."""

    def __init__(self, total: int):
        self.total = total
        self.held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Waits until ``size`` bytes are free, or nothing else is held. A thread holds one at a time."""
        if size < _SMALL:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self.held == 0 or self.held + size <= self.total)
            self.held += size
        try:
            yield
        finally:
            with self._changed:
                self.held -= size
                self._changed.notify_all()


UNDER_WAY = Budget(2**29)  # what the images that are decoded at once take, in all threads


def cost(image: Image.Image, found: deep.Layout | None = None) -> int:
    """Bytes of memory that decoding an image takes at most, about; ``found`` is how colour of 16 bits lies in it."""
    pixels = image.width * image.height
    if found is not None:
        return pixels * _OF_DEEP
    if image.format in ("JPEG", "MPO"):  # a progressive one keeps its coefficients, also when it is shrunk
        full = image.info.get("pixels", pixels) if image.info.get("progressive") else 0
        return pixels * _OF_MODE.get(image.mode, 12) + 6 * full
    return pixels * (_OF_MODE.get(image.mode, 13) + _OF_FORMAT.get(image.format or "", 0))


def check_size(width: int, height: int) -> None:
    """Raises Unusable for more than `MAX_PIXELS`, or none."""
    if width * height > MAX_PIXELS:
        raise Unusable(TOO_MANY)
    if width * height == 0:
        raise Unusable("it has no pixels")


def check_opened(image: Image.Image, found: deep.Layout | None, source: IO[bytes], start: bytes) -> None:
    """Raises Unusable for an image whose header asks for too much, or for more than its file can hold."""
    check_size(*image.size)
    image.info["pixels"] = pixels = image.width * image.height  # before the decoder shrinks it
    if pixels < _SMALL:
        return
    if (need := cost(image, found)) > MAX_BYTES:
        much = f"{need / 2**20:,.0f} MiB, over {MAX_BYTES / 2**20:,.0f}"
        raise Unusable(f"decoding it takes {much}: scale it down first")
    place = source.tell()  # where some decoders read on
    size = source.seek(0, 2)
    source.seek(place)
    most = _MOST_GROWTH.get(image.format or "", MAX_PIXELS)
    if image.format == "PNG":
        most //= max(1, start[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(start[25], 1))
    if image.mode != "1" and pixels > most * size:
        hold = f"{size:,} bytes cannot hold {image.width:,}x{image.height:,} pixels"
        raise Unusable(f"truncated or damaged (its {hold})")


def check_scans(image: Image.Image, source: IO[bytes]) -> None:
    """Raises Unusable for a progressive JPEG of so many passes that decoding it would take minutes."""
    pixels = image.width * image.height
    if not image.info.get("progressive") or pixels < _SMALL:
        return
    source.seek(0)
    passes = source.read().count(b"\xff\xda")
    if pixels * passes > _MAX_SCANS:
        over = f"{passes:,} passes over {pixels / 1e6:,.0f} million pixels"
        raise Unusable(f"a progressive JPEG of {over}: save it again")


def check_icon(source: IO[bytes]) -> None:
    """Raises Unusable for an icon with an image that is larger than icons are, whatever its directory says."""
    source.seek(0)
    (count,) = struct.unpack("<4xH", source.read(6).ljust(6, b"\0"))
    entries = source.read(16 * count)
    places = {struct.unpack_from("<I", entries, at + 12)[0] for at in range(0, len(entries) - 15, 16)}
    for place in sorted(places):
        source.seek(place)
        head = source.read(24).ljust(24, b"\0")
        if head[:8] == png.MAGIC:
            width, height = struct.unpack_from(">2I", head, 16)
        else:
            width, height = (abs(side) for side in struct.unpack_from("<2i", head, 4))
        if width * height > _MAX_ICON:
            raise Unusable(f"an icon that holds an image of {width:,}x{height:,} pixels: save that as PNG")
