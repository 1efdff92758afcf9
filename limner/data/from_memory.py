"""A picture from memory, with the pixels that ``open_picture`` gives of the same bytes in a file; masks."""

from __future__ import annotations

import dataclasses
import io
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.core import ImageSpec
from limner.data.images import decode
from limner.data.images.deep import scale_of
from limner.data.images.header import read_header
from limner.data.images.opening import TURNS, Opened, reading
from limner.data.images.whole import WholePicture, read_whole
from limner.settings import DataOptions, LimnerError


def picture_from_bytes(data: bytes, spec: ImageSpec, options: DataOptions) -> Tensor:
    """[1, C, H, W] in [-1, 1]: the picture at the size and channels of ``spec``, as a run's own images are read.

    Of several frames the first. Raises LimnerError, which names no path.
    """
    fit = "crop" if options.fit in (None, "tiles") else options.fit
    background = decode.colour(options.background)
    try:
        header = read_header(io.BytesIO(data))
        scale = scale_of([(header.mode, *header.span)] if header.span else [])
        form = decode.Form(spec.height, spec.width, fit, scale=scale, filter=options.filter)
        pixels, _ = decode.decode_with_size(io.BytesIO(data), form)
    except Exception as error:  # on damaged files Pillow raises nearly anything
        raise unusable("picture", error) from None
    dtype, full = (np.dtype(np.uint16), 65535) if header.bits == 16 else (np.dtype(np.uint8), 255)
    pixels = decode.as_channels(pixels, spec.channels, background, dtype)
    pixels = decode.padded(pixels, spec.height, spec.width, background)  # [1, H, W, C]
    image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1)).astype(np.float32))
    return image.mul_(2 / full).sub_(1)


def mask_from_bytes(data: bytes, picture: bytes, spec: ImageSpec, options: DataOptions) -> Tensor:
    """[1, 1, H, W] in {0, 1}: 1 where the mask is transparent, by at least a half: what is to be drawn anew.

    It is cropped to the size of ``spec`` as its picture is, and turned upright by its own EXIF, or by that of the
    picture where it has none of its own and is as large as the picture was before it was turned. Raises LimnerError
    for a mask of another size than the picture, without transparency, or without a transparent part.
    """
    raw, orientation = _seen(picture, "picture")
    try:
        alpha, own = reading(_alpha, io.BytesIO(data))
    except LimnerError:
        raise
    except Exception as error:
        raise unusable("mask", error) from None
    upright = raw[::-1] if orientation >= 5 else raw
    turned = own if own > 1 else orientation if alpha.size == raw and orientation > 1 else 1
    seen = alpha.size[::-1] if turned >= 5 else alpha.size
    if seen != upright:
        raise LimnerError(
            f"The mask is {seen[0]}x{seen[1]} pixels and its image {upright[0]}x{upright[1]}: they must be of one size."
        )
    if turned in TURNS:
        alpha = alpha.transpose(TURNS[turned])
    fit = "crop" if options.fit in (None, "tiles") else options.fit
    scaled = decode.resized(alpha, 1, decode.Form(spec.height, spec.width, fit, filter=options.filter))
    kept = decode.padded(scaled[None, ..., None], spec.height, spec.width, (255, 255, 255))[0, ..., 0]
    region = torch.from_numpy(kept < 128).float()[None, None]
    if not region.any():
        raise LimnerError(
            "The mask has no transparent part, so nothing would be drawn anew: make that part transparent."
        )
    return region


def whole_from_bytes(data: bytes) -> WholePicture:
    """The picture upright at its own size, in sRGB and without EXIF. Raises LimnerError, which names no path."""
    try:
        return reading(partial(read_whole, metadata=False, profile=False), io.BytesIO(data))
    except Exception as error:
        raise unusable("picture", error) from None


def own_size_from_bytes(data: bytes, spec: ImageSpec, options: DataOptions) -> Tensor:
    """[1, C, h, w] in [-1, 1]: the picture at its own size, in the channels of ``spec``. Raises LimnerError."""
    (width, height), orientation = _seen(data, "picture")
    height, width = (width, height) if orientation >= 5 else (height, width)
    return picture_from_bytes(data, dataclasses.replace(spec, height=height, width=width), options)


def unusable(what: str, error: Exception) -> LimnerError:
    """The error of a picture that cannot be read."""
    reason = decode.reason(error)
    return LimnerError(f"The {what} cannot be used: {reason}.")


def _seen(data: bytes, what: str) -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation."""
    try:
        return reading(lambda opened: (opened.image.size, opened.orientation), io.BytesIO(data))
    except Exception as error:
        raise unusable(what, error) from None


def _alpha(opened: Opened) -> tuple[Image.Image, int]:
    """The alpha of a mask as stored, of mode L, and its EXIF orientation."""
    image = opened.image
    if not image.has_transparency_data:
        raise LimnerError(
            "The mask has no transparency: save it as a PNG that is transparent where the image is to be drawn anew."
        )
    orientation = opened.orientation
    image.load()
    return image.convert("RGBA").getchannel("A"), orientation
