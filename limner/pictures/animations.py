"""Animated GIF and WebP, frame by frame: each frame is kept, and its time with it.

Pillow encodes the frames; the containers are written here, since Pillow and libwebp merge neighbours that are equal.
"""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from limner.data.images.whole import as_image

FOREVER = 0  # repetitions of both formats


class Gif:
    """An endless GIF89a [H, W, 1, 3 or 4] of one palette a frame, in hundredths of a second; alpha is on or off."""

    unit = Fraction(1, 100)  # second
    longest = 65535  # pixels a side

    def __init__(self, to: Path | IO[bytes], size: tuple[int, int]):
        self.file = file = opened(to)
        file.write(b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0))
        file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", FOREVER) + b"\x00")

    def add(self, pixels: np.ndarray, units: int) -> None:
        """A frame, shown for so many units."""
        image, clear = _with_palette(pixels)
        table, descriptor, data = _parts_of_gif(image)
        disposal = 2 if pixels.shape[2] == 4 else 1  # clear the canvas before the next frame, or leave it
        flags = disposal << 2 | (clear is not None)
        self.file.write(b"\x21\xf9\x04" + struct.pack("<BHBB", flags, min(units, 65535), clear or 0, 0))
        entries = (len(table) // 3 - 1).bit_length()
        local = 0x80 | (descriptor[9] & 0x40) | max(entries - 1, 0)
        self.file.write(descriptor[:9] + bytes([local]) + table + data)

    def close(self) -> None:
        self.file.write(b"\x3b")
        self.abandon()

    def abandon(self) -> None:
        if not isinstance(self.file, io.BytesIO):
            self.file.close()


def _with_palette(pixels: np.ndarray) -> tuple[Image.Image, int | None]:
    """A picture of at most 256 colours, and the index of what is transparent in it."""
    if pixels.shape[2] < 4:
        colours, clear = np.broadcast_to(pixels, (*pixels.shape[:2], 3)), None
    else:
        colours, clear = np.where(pixels[..., 3:] < 128, 0, pixels[..., :3]), pixels[..., 3] < 128
    most = 256 if clear is None else 255
    image = _exactly(colours, most) or Image.fromarray(np.ascontiguousarray(colours)).quantize(most)
    if clear is None or not clear.any():
        return image, None
    palette = image.getpalette() or []
    index = np.where(clear, len(palette) // 3, np.asarray(image)).astype(np.uint8)
    image = Image.fromarray(index).convert("P")
    image.putpalette([*palette, 0, 0, 0])
    return image, len(palette) // 3


def _exactly(colours: np.ndarray, most: int) -> Image.Image | None:
    """The same colours as a palette, if they are few."""
    packed = colours.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)  # [H, W]
    found, index = np.unique(packed, return_inverse=True)
    if len(found) > most:
        return None
    image = Image.fromarray(index.reshape(packed.shape).astype(np.uint8)).convert("P")
    image.putpalette(np.stack([found >> 16, found >> 8 & 255, found & 255], -1).astype(np.uint8).tobytes())
    return image


def _parts_of_gif(image: Image.Image) -> tuple[bytes, bytes, bytes]:
    """The table of colours, the descriptor and the data of a GIF of one frame."""
    file = io.BytesIO()
    image.save(file, "GIF", interlace=0, optimize=False)
    content = file.getvalue()
    at = 13 + 3 * (2 << (content[10] & 7))
    table = content[13:at]
    while content[at] == 0x21:  # extensions, in blocks
        at += 2
        while content[at]:
            at += 1 + content[at]
        at += 1
    return table, content[at : at + 10], content[at + 10 : -1]


class WebP:
    """An endless animated WebP [H, W, 1, 3 or 4], in milliseconds."""

    unit = Fraction(1, 1000)  # second
    longest = 16383  # pixels a side

    def __init__(self, to: Path | IO[bytes], size: tuple[int, int], alpha: bool, lossless: bool):
        self.file = opened(to)
        self.size = b"".join(_three_bytes(side - 1) for side in size)
        self.options: dict[str, Any] = {"lossless": True, "exact": True} if lossless else {"quality": 90}
        self.file.write(b"RIFF\0\0\0\0WEBP")
        self._chunk(b"VP8X", struct.pack("<I", 0x02 | (0x10 if alpha else 0)) + self.size)
        self._chunk(b"ANIM", struct.pack("<IH", 0, FOREVER))

    def add(self, pixels: np.ndarray, units: int) -> None:
        """A frame, shown for so many units."""
        file = io.BytesIO()
        as_image(pixels).save(file, "WEBP", **self.options)
        chunks = [
            chunk for chunk in _chunks(file.getvalue()[12:]) if chunk[:4] in (b"ALPH", b"VP8 ", b"VP8L")
        ]
        replaces = b"\x02"  # what is there, rather than blending with it
        head = bytes(6) + self.size + _three_bytes(min(units, 2**24 - 1)) + replaces
        self._chunk(b"ANMF", head + b"".join(chunks))

    def _chunk(self, name: bytes, content: bytes) -> None:
        self.file.write(name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2))

    def close(self) -> None:
        length = self.file.tell() - 8
        self.file.seek(4)
        self.file.write(struct.pack("<I", length))
        self.abandon()

    def abandon(self) -> None:
        if not isinstance(self.file, io.BytesIO):
            self.file.close()


def opened(to: Path | IO[bytes]) -> IO[bytes]:
    return open(to, "wb") if isinstance(to, Path) else to


def _three_bytes(number: int) -> bytes:
    return struct.pack("<I", number)[:3]


def _chunks(content: bytes) -> list[bytes]:
    """The chunks of a RIFF file, each with its name, length and padding."""
    found, at = [], 0
    while at < len(content):
        length = struct.unpack_from("<I", content, at + 4)[0]
        found.append(content[at : at + 8 + length + length % 2])
        at += 8 + length + length % 2
    return found
