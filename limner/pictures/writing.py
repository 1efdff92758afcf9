"""A picture as the bytes of a file: its format by the suffix, with colours and metadata that the format can hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from limner.data.images.decode import as_channels
from limner.data.images.png import written as deep_png
from limner.data.images.whole import WholePicture, as_image, straight
from limner.pictures.grid import encode
from limner.settings import LimnerError, join_words

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 3}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95, "method": 2},
    "TIFF": {"compression": "tiff_deflate"},
}  # fmt: skip
_LONGEST = {"JPEG": 65535, "WEBP": 16383}  # pixels a side


def check_suffix(suffix: str) -> str:
    """The suffix. Raises LimnerError for a format that is not written."""
    if suffix.lower() not in FORMATS:
        known = join_words(("png", "jpg", "webp", "tif"))
        raise LimnerError(f"No picture is written as {suffix or 'a file without a suffix'}: choose {known}.")
    return suffix


def encoded(picture: WholePicture, suffix: str, background: tuple[int, int, int]) -> tuple[bytes, list[str]]:
    """The file, and what of the picture its format could not hold. Raises LimnerError for one of too long a side."""
    kind, pixels, notes = FORMATS[suffix.lower()], picture.pixels, []
    if max(pixels.shape[:2]) > _LONGEST.get(kind, 2**31):
        raise LimnerError(
            f"A {kind} has at most {_LONGEST[kind]:,} pixels a side, and the result has {max(pixels.shape[:2]):,}: "
            "write a .png."
        )
    if picture.alpha and kind == "JPEG":
        notes.append("JPEG has no alpha, so the background shows")
        whole = pixels if pixels.shape[2] == 4 else pixels[..., [0, 0, 0, 1]]
        pixels = as_channels(whole, 1 if picture.grey else 3, background, pixels.dtype)
    pixels = straight(pixels)
    deep = pixels.dtype == np.uint16
    if deep and not (kind == "PNG" or (kind == "TIFF" and pixels.shape[2] == 1)):
        notes.append(f"16 bits become 8, as {kind} has them here")
        pixels, deep = np.rint(pixels / np.float32(257)).astype(np.uint8), False
    if pixels.shape[2] == 2 and kind == "WEBP":
        pixels = pixels[..., [0, 0, 0, 1]]
    if deep and pixels.shape[2] > 1:
        return deep_png(pixels), notes
    options = _OPTIONS[kind] | ({"icc_profile": picture.profile} if picture.profile else {})
    if not picture.exif:
        return encode(as_image(pixels), kind, **options), notes
    if kind == "TIFF":
        options.pop("compression")  # libtiff, which compresses, takes no EXIF within
    try:
        return encode(as_image(pixels), kind, **options, exif=picture.exif), notes
    except Exception:  # Pillow raises nearly anything for EXIF that it read and cannot write
        notes.append(f"its EXIF cannot be written as {kind}, and is left out")
        return encode(as_image(pixels), kind, **options), notes
