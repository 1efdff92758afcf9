"""One image file -> its pixels at a given size: any mode, depth, orientation and aspect.

The pixels are uint8 or uint16 ``[T, H, W, C]`` with C of 1 grey, 3 RGB or 4 RGBA with premultiplied alpha, in sRGB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any

import numpy as np
from PIL import Image, ImageColor

from limner.data.images import deep
from limner.data.images.header import Header, examine
from limner.data.images.limits import UNDER_WAY, Unusable, check_scans, check_size, cost
from limner.data.images.opening import TURNS, Opened, open_image, reading
from limner.settings import LimnerError

_PLAIN = deep.Scale()
_FINE = 8  # times the size asked for that averaging blocks of pixels leaves: what follows differs by 2 levels at most


def reason(error: Exception) -> str:
    """Why an image could not be read, from the exception that reading it raised."""
    if isinstance(error, Unusable):
        return str(error)
    if isinstance(error, OSError) and error.errno:
        return f"cannot be read ({error.strerror})"
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, NotImplementedError):
        return f"of a form that is not read ({message[:120]}): convert it to PNG"
    if isinstance(error, MemoryError):
        return "decoding it takes more memory than there is: scale it down first"
    return f"truncated or damaged ({message[:120]})"


@dataclass(frozen=True)
class Form:
    """What an image is decoded to."""

    height: int
    width: int
    fit: str = "crop"  # crop, pad or squash; tiles: at its own size, to be cut
    frames: int = 1  # the first ones, the last repeated where there are too few
    half: str = ""  # left or right: that half of the image alone
    scale: deep.Scale = _PLAIN  # of floats and integers of any range
    filter: str = "exact"  # as in DataOptions


def decode(
    source: IO[bytes] | Image.Image, height: int, width: int, fit: str,
    frames: int = 1, half: str = "", scale: deep.Scale = _PLAIN, filter: str = "exact",
) -> np.ndarray:  # fmt: skip
    """uint8 or uint16 [T, h, w, C]; h and w are below `height` and `width` only where `fit` is 'pad'.

    T is `frames`: the first ones, the last repeated where there are too few. `half` keeps the left or the
    right half of the image; `scale` is that of floats and integers of any range; `filter` is as in DataOptions. On
    damaged files Pillow raises nearly anything; see `reason`.
    """
    return reading(partial(_pixels, form=Form(height, width, fit, frames, half, scale, filter)), source)


def decode_with_size(source: IO[bytes] | Image.Image, form: Form) -> tuple[np.ndarray, tuple[int, int]]:
    """As ``decode``, and the picture's own height and width: upright, of its half if the form has one."""

    def act(opened: Opened) -> tuple[np.ndarray, tuple[int, int]]:
        width, height = opened.image.size  # before the decoder shrinks it
        pixels = _pixels(opened, form)
        if opened.orientation >= 5:
            width, height = height, width
        return pixels, (height, width // 2 if form.half else width)

    return reading(act, source)


def look(source: IO[bytes] | Image.Image, fit: str) -> Header:
    """The header of an image that can be decoded: opened once, decoded at 64x64. Raises as `decode`."""

    def act(opened: Opened) -> Header:
        header = examine(opened)
        _pixels(opened, Form(64, 64, fit))
        return header

    return reading(act, source)


def whole(opened: Opened, scale: deep.Scale = _PLAIN) -> np.ndarray:
    """uint8 or uint16 [H, W, C] of an opened image at its own size, upright."""
    planes = [
        np.asarray(plane.transpose(TURNS[opened.orientation]) if opened.orientation in TURNS else plane)
        for plane in _planes(opened, scale)
    ]
    pixels = np.dstack(planes) if len(planes) > 1 else planes[0].reshape(*planes[0].shape[:2], -1)
    return np.clip(np.rint(pixels), 0, 65535).astype(np.uint16) if pixels.dtype == np.float32 else pixels


def _pixels(opened: Opened, form: Form) -> np.ndarray:
    """[T, h, w, C]"""
    image = opened.image
    several = form.frames > 1 and getattr(image, "n_frames", 1) > 1
    extent = None
    if image.format in ("JPEG", "MPO") and opened.source is not None:
        check_scans(image, opened.source)
        if not form.half and not several and form.fit != "tiles":
            extent = _draft(image, form, opened.orientation)
    with UNDER_WAY.hold(cost(image, opened.deep)):
        if not several:
            return np.stack([frame(opened, form, extent)] * form.frames)
        frames = [frame(page, form) for page in _pages(opened, form.frames)]
        frames += frames[-1:] * (form.frames - len(frames))
        if len({frame.dtype for frame in frames}) > 1:
            raise Unusable("its frames have different depths: save them all with 8 or all with 16 bits")
        channels = max(frame.shape[-1] for frame in frames)
        return np.stack([as_channels(frame, channels, (0, 0, 0), frame.dtype) for frame in frames])


def _pages(opened: Opened, count: int) -> Iterator[Opened]:
    """The first ``count`` frames of a file, one at a time, or all where there are fewer."""
    image: Any = opened.image
    for i in range(min(count, image.n_frames)):
        image.seek(i)
        check_size(*image.size)
        yield replace(opened, deep=deep.layout(image), frame=i)


Extent = tuple[float, float]  # width and height of the picture in pixels as they are decoded


def _draft(image: Image.Image, form: Form, orientation: int) -> Extent | None:
    """Has the decoder shrink by up to 8, to twice the size needed; not halves, which would mix at the seam.

    Returns what the picture then takes of the decoded pixels, whose last column and row may lie half beyond it.
    """
    across, down = (form.height, form.width) if orientation >= 5 else (form.width, form.height)
    if form.fit != "squash":  # the size that the whole image must have
        choose = max if form.fit == "crop" else min
        scale = choose(across / image.width, down / image.height)
        across, down = int(scale * image.width) + 1, int(scale * image.height) + 1
    drafted = image.draft(None, (2 * across, 2 * down))
    return drafted[1][2:] if drafted and form.filter == "exact" else None


def frame(opened: Opened, form: Form, extent: Extent | None = None) -> np.ndarray:
    """[h, w, C] of the frame that an opened image is at; ``extent`` is that of ``resized``."""
    planes = [resized(plane, opened.orientation, form, extent) for plane in _planes(opened, form.scale)]
    pixels = np.dstack(planes) if len(planes) > 1 else planes[0].reshape(*planes[0].shape[:2], -1)
    if pixels.dtype == np.float32:
        pixels = np.clip(np.rint(pixels), 0, 65535).astype(np.uint16)
    if pixels.shape[-1] == 4:  # filters overshoot: no colour is brighter than its alpha
        pixels = np.minimum(pixels, pixels[..., 3:])
    return pixels


def _planes(opened: Opened, scale: deep.Scale) -> Iterator[Image.Image]:
    """The whole image as one of mode L, RGB or RGBa (premultiplied), or a plane F of 0 to 65535 for each channel."""
    image = opened.image
    if opened.deep and opened.source is not None:
        pixels = deep.read(image, partial(_again, opened.source, opened.frame), opened.deep)
        pixels = deep.finished(pixels, opened.deep, image.info.get("transparency"), opened.profile)
        for channel in range(pixels.shape[-1]):
            yield Image.fromarray(pixels[..., channel].astype(np.float32))
        return
    image.load()
    mode = image.mode
    if mode.startswith("I;16") and opened.profile:
        grey = opened.profile.convert_deep(np.asarray(image)[..., None])
        yield Image.fromarray(grey[..., 0].astype(np.float32))
    elif mode.startswith(("I", "F")):
        yield scale.apply(image)
    else:
        yield _plain(opened.profile.convert(image) if opened.profile else image)


def _again(source: IO[bytes], frame: int) -> Image.Image:
    source.seek(0)
    image = open_image(source).image
    if frame:
        image.seek(frame)
    return image


def resized(
    image: Image.Image, orientation: int, form: Form, extent: Extent | None = None, aspect: float = 1.0
) -> np.ndarray:
    """[h, w] or [h, w, C] of a plain image, of which the picture takes ``extent`` (None: all).

    ``aspect`` is how wide its pixels are in their heights, once it is upright.
    """
    left, top, beyond = 0.0, 0.0, [0.0, 0.0]  # pixels across and down that are not of the picture
    if extent is not None:
        beyond = [image.width - extent[0], image.height - extent[1]]  # at the right and below
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
        beyond = beyond[::-1] if orientation >= 5 else beyond
        left = beyond[0] if orientation in (2, 3, 6, 7) else 0.0
        top = beyond[1] if orientation in (3, 4, 7, 8) else 0.0
    if form.half:  # the middle column of an odd width belongs to neither
        side = image.width // 2
        start = 0 if form.half == "left" else image.width - side
        image = image.crop((start, 0, start + side, image.height))
    if form.fit == "tiles":
        return np.asarray(image)
    across, down = aspect * (image.width - beyond[0]), image.height - beyond[1]
    height, width = form.height, form.width
    if form.fit == "pad":
        scale = min(width / across, height / down)
        width = min(width, max(1, round(across * scale)))
        height = min(height, max(1, round(down * scale)))
    x, y = 0.0, 0.0  # cut off at each side
    if form.fit == "crop":
        scale = max(width / across, height / down)
        spare = across - width / scale, down - height / scale
        x, y = (max(0.0, each / 2) for each in spare)  # against rounding below 0
    box = (left + x / aspect, top + y, left + across / aspect - x / aspect, top + down - y)
    return _scaled(image, box, (width, height), form.filter)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _scaled(image: Image.Image, box: Box, size: tuple[int, int], filter: str) -> np.ndarray:
    """[h, w] or [h, w, C]: the box of an image at the size (width, height); a symmetric image stays symmetric."""
    across, down = box[2] - box[0], box[3] - box[1]
    # Lanczos rings when it enlarges.
    how = Image.Resampling.LANCZOS if across >= size[0] else Image.Resampling.BICUBIC
    if filter == "quick":
        return np.asarray(image.resize(size, how, box, reducing_gap=2.0))
    by = _whole_factor(image.width, across / size[0]), _whole_factor(image.height, down / size[1])
    if by != (1, 1):  # a factor that leaves a rest would move the picture
        image, box = image.reduce(by), (box[0] / by[0], box[1] / by[1], box[2] / by[0], box[3] / by[1])
    return np.asarray(image.resize(size, how, box))


def _whole_factor(side: int, scale: float) -> int:
    """The largest divisor of a side that still leaves ``_FINE`` pixels for each one wanted, at that scale."""
    return max(factor for factor in range(1, max(1, int(scale / _FINE)) + 1) if side % factor == 0)


def _plain(image: Image.Image) -> Image.Image:
    """Any mode of 8 bits as L, RGB or RGBa (premultiplied)."""
    if image.has_transparency_data:
        return (image if image.mode == "RGBA" else image.convert("RGBA")).convert("RGBa")
    plain = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == plain else image.convert(plain)


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
    full, have = np.iinfo(dtype).max, pixels.shape[-1]
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
