"""One image file -> its pixels at a given size: any mode, depth, orientation and aspect.

The pixels are uint8 or uint16 ``[T, H, W, C]`` with C of 1 grey, 3 RGB or 4 RGBA with premultiplied alpha.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image, ImageColor, ImageOps

from limner.settings import LimnerError

MAX_PIXELS = 100_000_000  # an image with more counts as a decompression bomb
SUFFIXES = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".webp", ".avif", ".bmp", ".dib")
    + (".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".ico", ".jp2", ".j2k", ".dds")
    + (".pcx", ".qoi", ".heic", ".heif", ".jxl")  # the last three are listed as problems
)
# Not EPS, PDF and the like, which run programs or read other files.
_FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "ICO") + (
    "JPEG2000", "DDS", "PCX", "QOI",
)  # fmt: skip
_ORIENTATION = 0x0112
_FULL = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


class Unusable(Exception):
    """Why one image cannot be used, in a few words."""


def reason(error: Exception) -> str:
    """Why an image could not be read, from the exception that reading it raised."""
    if isinstance(error, Unusable):
        return str(error)
    if isinstance(error, OSError) and error.errno:
        return f"cannot be read ({error.strerror})"
    message = " ".join(str(error).split()) or type(error).__name__
    return f"truncated or damaged ({message[:120]})"


@dataclass(frozen=True)
class Header:
    """The properties of an image file, read without decoding it."""

    format: str
    mode: str  # Pillow's
    width: int  # as shown, after the EXIF orientation
    height: int
    bits: int  # 8 or 16 a channel
    channels: int  # 1, 3, or 4 where there may be transparency
    frames: int


def open_image(source: IO[bytes] | Image.Image) -> Image.Image:
    """The image with only its header read. Raises Unusable."""
    if isinstance(source, Image.Image):
        return source
    start = source.read(16)
    source.seek(0)
    if not start:
        raise Unusable("the file is empty")
    Image.init()
    try:
        image = Image.open(source, formats=[name for name in _FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError:
        raise Unusable(f"more than {MAX_PIXELS / 1e6:.0f} million pixels: scale it down first") from None
    except Image.UnidentifiedImageError:
        if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1") or start[:2] == b"\xff\x0a":
            raise Unusable("HEIC and JPEG XL cannot be read: convert it to PNG or JPEG") from None
        raise Unusable("not an image, or its start is damaged") from None
    if image.width * image.height > MAX_PIXELS:
        raise Unusable(f"more than {MAX_PIXELS / 1e6:.0f} million pixels: scale it down first")
    if image.width * image.height == 0:
        raise Unusable("it has no pixels")
    return image


def read_header(source: IO[bytes] | Image.Image, half: str = "") -> Header:
    """The file's header, with the width of a `half` if that is named. Raises Unusable."""
    with open_image(source) as image:
        width, height = image.size
        # Pillow decodes a whole PNG to look for EXIF after the pixels; only a small one's size matters.
        if (image.format != "PNG" or max(image.size) <= 64) and _orientation(image) >= 5:
            width, height = height, width
        if half:
            width //= 2
        if width == 0:
            raise Unusable("it is too narrow to be cut in two")
        bits = 16 if image.mode.startswith(("I", "F")) else 8
        grey = image.mode in ("1", "L") or bits == 16
        channels = 4 if image.has_transparency_data and bits == 8 else 1 if grey else 3
        frames = getattr(image, "n_frames", 1)
        return Header(image.format or "", image.mode, width, height, bits, channels, frames)


def decode(
    source: IO[bytes] | Image.Image, height: int, width: int, fit: str, frames: int = 1, half: str = ""
) -> np.ndarray:
    """uint8 or uint16 [T, h, w, C]; h and w are below `height` and `width` only where `fit` is 'pad'.

    T is `frames`: the first ones, the last repeated where there are too few. `half` keeps the left or the
    right half of the image. On damaged files Pillow raises nearly anything; see `reason`.
    """
    with open_image(source) as image:
        return np.stack([_resized(frame, height, width, fit, half) for frame in _frames(image, frames)])


def _frames(image: Image.Image, count: int) -> Iterator[Image.Image]:
    available = getattr(image, "n_frames", 1) if count > 1 else 1
    for i in range(count):
        if available > 1:
            image.seek(min(i, available - 1))
        yield image.copy() if available > 1 else image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation still to be applied; Pillow applies that of a TIFF itself."""
    return 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)


def _resized(image: Image.Image, height: int, width: int, fit: str, half: str) -> np.ndarray:
    """[h, w, C]"""
    # The decoder may shrink by up to 8, to twice the size needed; not halves, which would mix at the seam.
    if image.format in ("JPEG", "MPO") and not half:
        across, down = (height, width) if _orientation(image) >= 5 else (width, height)
        if fit != "squash":  # the size that the whole image must have
            choose = max if fit == "crop" else min
            scale = choose(across / image.width, down / image.height)
            across, down = int(scale * image.width) + 1, int(scale * image.height) + 1
        image.draft(None, (2 * across, 2 * down))
    image.load()
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if half:  # the middle column of an odd width belongs to neither
        side = image.width // 2
        left = 0 if half == "left" else image.width - side
        image = image.crop((left, 0, left + side, image.height))
    if fit == "pad":
        scale = min(width / image.width, height / image.height)
        width = min(width, max(1, round(image.width * scale)))
        height = min(height, max(1, round(image.height * scale)))
    box = (0.0, 0.0, float(image.width), float(image.height))
    if fit == "crop":
        scale = max(width / image.width, height / image.height)
        spare = image.width - width / scale, image.height - height / scale
        x, y = (max(0.0, each / 2) for each in spare)  # against rounding below 0
        box = (x, y, image.width - x, image.height - y)

    shrinks = box[2] - box[0] >= width
    how = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC  # Lanczos rings when it enlarges
    pixels = np.asarray(_plain(image).resize((width, height), how, box, reducing_gap=2.0))
    if pixels.dtype == np.float32:
        pixels = np.clip(np.rint(pixels), 0, 65535).astype(np.uint16)
    pixels = pixels.reshape(height, width, -1)
    if pixels.shape[-1] == 4:  # filters overshoot: no colour is brighter than its alpha
        pixels = np.minimum(pixels, pixels[..., 3:])
    return pixels


def _plain(image: Image.Image) -> Image.Image:
    """Any mode as L, RGB, RGBa (premultiplied), or F holding 0 to 65535."""
    mode = image.mode
    if mode.startswith(("I", "F")):
        return Image.fromarray(_to_16_bits(np.asarray(image).astype(np.float32), mode))
    if image.has_transparency_data:
        return image.convert("RGBA").convert("RGBa")
    return image.convert("L" if mode in ("1", "L") else "RGB")


def _to_16_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey of any range in [0, 65535].

    Integers up to 65535 are 16-bit values; floats in [0, 1], [0, 255] or [0, 65535] are scaled from that
    range; whatever lies outside is stretched from its own least to its greatest value.
    """
    values = np.nan_to_num(values, nan=0.0)
    low, high = float(values.min()), float(values.max())
    for top in (65535,) if mode.startswith("I") else (1, 255, 65535):
        if low >= 0 and high <= top:
            return values * np.float32(65535 / top)
    low64 = values.astype(np.float64) - low
    return (low64 * (65535 / max(float(low64.max()), 1e-30))).astype(np.float32)


def colour(name: str) -> tuple[int, int, int]:
    """(R, G, B) in 0 to 255 of a colour's name or #rrggbb."""
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise LimnerError(f"The background {name!r} is not a colour: write a name or #rrggbb.") from None


def as_channels(
    pixels: np.ndarray, channels: int, background: tuple[int, int, int], dtype: np.dtype
) -> np.ndarray:
    """[..., c] -> [..., channels] of `dtype`; transparency that is dropped shows the background."""
    if pixels.dtype != dtype:  # 8 bits among 16-bit images: 255 becomes 65535
        pixels = pixels.astype(dtype) * dtype.type(257)
    full, have = _FULL[dtype], pixels.shape[-1]
    if have == channels:
        return pixels
    if have == 4:  # premultiplied, so compositing is one sum
        back = np.array(background, np.float32) * (full / 255)
        shows = 1 - pixels[..., 3:].astype(np.float32) / full
        pixels = np.rint(pixels[..., :3] + shows * back).clip(0, full).astype(dtype)
    if channels == 1 and pixels.shape[-1] == 3:  # ITU-R 601 luma in the fixed point that Pillow uses
        weights = np.array([19595, 38470, 7471], np.uint32)
        return ((pixels * weights).sum(-1, keepdims=True, dtype=np.uint32) + 0x8000 >> 16).astype(dtype)
    if pixels.shape[-1] == 1 and channels > 1:
        pixels = np.repeat(pixels, 3, -1)
    if channels == 4:
        pixels = np.concatenate([pixels, np.full((*pixels.shape[:-1], 1), full, dtype)], -1)
    return pixels


def padded(pixels: np.ndarray, height: int, width: int, background: tuple[int, int, int]) -> np.ndarray:
    """[T, h, w, C] in the middle of [T, height, width, C]; around it transparent or the background."""
    _, h, w, channels = pixels.shape
    if (h, w) == (height, width):
        return pixels
    fill = np.zeros(4, pixels.dtype)
    if channels != 4:
        fill = as_channels(np.array(background, np.uint8), channels, background, pixels.dtype)
    out = np.broadcast_to(fill, (len(pixels), height, width, channels)).copy()
    top, left = (height - h) // 2, (width - w) // 2
    out[:, top : top + h, left : left + w] = pixels
    return out
