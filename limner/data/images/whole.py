"""A picture at its own size, with what lies beside its pixels, for whoever writes it again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limner.data.images import deep, tiff
from limner.data.images.decode import reason, whole
from limner.data.images.limits import UNDER_WAY, Unusable, check_scans, cost
from limner.data.images.opening import Opened, reading
from limner.settings import LimnerError

_ORIENTATION, _PROFILE = 274, 34675
_PRINTS = "CMYK", "LAB", "YCbCr", "HSV"  # colours that no output format shares: they become sRGB


@dataclass(frozen=True)
class WholePicture:
    """A picture upright at its own size; colours are premultiplied by alpha."""

    pixels: np.ndarray  # uint8 or uint16 [H, W, C]: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA
    exif: bytes = b""  # without the orientation, which is applied
    profile: bytes = b""  # the ICC profile that the pixels are in; b"": sRGB
    notes: tuple[str, ...] = ()  # what was changed when it was read

    @property
    def grey(self) -> bool:
        return self.pixels.shape[2] < 3

    @property
    def alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)


def open_whole(path: Path, metadata: bool = True, profile: bool = True) -> WholePicture:
    """A file's first frame. Without ``metadata`` or ``profile`` its colours are converted to sRGB.

    Raises LimnerError for a file that is no picture, is damaged, too large, or holds NaN.
    """
    try:
        with open(path, "rb") as source:
            return reading(partial(read_whole, metadata=metadata, profile=metadata and profile), source)
    except Exception as error:  # on damaged files Pillow raises nearly anything
        raise LimnerError(f"{path} cannot be used: {reason(error)}.") from None


def read_whole(opened: Opened, metadata: bool, profile: bool) -> WholePicture:
    """As ``open_whole``, of an opened image. Raises Unusable, and on damaged files nearly anything."""
    image, notes = opened.image, []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"of its {frames} frames the first is used")
    if image.format in ("JPEG", "MPO") and opened.source is not None:
        check_scans(image, opened.source)
    if opened.deep or deep.cut(image):
        notes.append("its colours of 16 bits become 8")
    if image.mode in _PRINTS:
        notes.append(f"{image.mode} becomes RGB")
    embedded = image.info.get("icc_profile") if profile and image.mode not in _PRINTS else None
    grey_alpha = image.mode in ("LA", "La") or (image.mode in ("1", "L") and image.has_transparency_data)
    kept = dataclasses.replace(opened, deep=None, profile=None if embedded else opened.profile)
    with UNDER_WAY.hold(cost(image)):
        pixels = whole(kept, _scale(image))
    exif = _exif(image) if metadata else b""  # changes what says which way is up
    if grey_alpha and pixels.shape[2] == 4:
        pixels = pixels[..., [0, 3]]
    return WholePicture(pixels, exif, embedded if isinstance(embedded, bytes) else b"", tuple(notes))


def _scale(image: Image.Image) -> deep.Scale:
    """Which numbers of floats and integers of any range become black and white. Raises Unusable for NaN."""
    if image.mode not in ("I", "F"):
        return deep.Scale()
    values = np.asarray(image)
    if bad := int((~np.isfinite(values)).sum()):
        raise Unusable(f"{bad:,} of its values are NaN or infinite: give them numbers first")
    return deep.scale_of([(image.mode, float(values.min()), float(values.max()))])


def _exif(image: Image.Image) -> bytes:
    """The EXIF of a file with the orientation 1; b"" where it has none, or it is damaged."""
    try:
        exif = image.getexif()
        for tag in list(exif):
            if tag == _PROFILE or (image.format == "TIFF" and tag in tiff.OF_PIXELS):
                del exif[tag]
        if not len(exif):
            return b""
        exif[_ORIENTATION] = 1
        return exif.tobytes()
    except Exception:  # on damaged EXIF Pillow raises nearly anything
        return b""


def straight(pixels: np.ndarray) -> np.ndarray:
    """[H, W, C] with premultiplied colours -> the same with straight ones; without alpha as it is."""
    if pixels.shape[2] not in (2, 4):
        return pixels
    out, full = pixels.copy(), np.iinfo(pixels.dtype).max
    for rows in (out[y : y + 64] for y in range(0, len(out), 64)):  # in little memory
        alpha = np.maximum(rows[..., -1:].astype(np.float32), 1)
        rows[..., :-1] = np.rint(np.minimum(rows[..., :-1] * (full / alpha), full))
    return out


def resized(pixels: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    """[H, W, C] at the size (width, height); no colour is brighter than its alpha."""
    if size == pixels.shape[1::-1]:
        return pixels
    kind = "F" if pixels.dtype == np.uint16 else "L"
    planes = [
        np.asarray(Image.fromarray(pixels[..., c]).convert(kind).resize(size, how))
        for c in range(pixels.shape[2])
    ]
    full = np.iinfo(pixels.dtype).max
    out = np.rint(np.stack(planes, -1)).clip(0, full).astype(pixels.dtype)
    return np.minimum(out, out[..., -1:]) if pixels.shape[2] in (2, 4) else out


def as_image(pixels: np.ndarray) -> Any:
    """[H, W, C] with straight colours as Pillow has it."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
