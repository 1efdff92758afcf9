"""A drawn image as the bytes of a file."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from limner.core import ImageSpec
from limner.data.images.whole import WholePicture, resized, straight
from limner.pictures.animations import WebP
from limner.pictures.clips import ASSUMED_RATE
from limner.pictures.grid import encode, to_pil
from limner.serve.messages import Form

TEXT = "limner"  # the keyword of the text in a PNG


def encode_image(image: Tensor, form: Form, spec: ImageSpec) -> bytes:
    """[C, H, W] or a clip [C, T, H, W], in [-1, 1], as a file of ``form``; the same image gives the same bytes.

    A clip is an animated WebP, whatever the format.
    """
    if image.ndim == 4:
        return _clip(image, form, float(spec.rate or ASSUMED_RATE))
    return encode_picture(_fitted(to_pil(image), form), form)


def encode_picture(picture: Image.Image, form: Form) -> bytes:
    """L, LA, RGB or RGBA with straight alpha as a file of ``form``, at the size that it has."""
    if not form.transparent or form.format == "jpeg":
        picture = _on_white(picture)
    if form.format == "jpeg":
        return encode(picture, "JPEG", quality=form.compression, subsampling=0)
    if form.format == "webp":
        return encode(picture, "WEBP", quality=form.compression, method=2)
    options: dict[str, Any] = {"compress_level": 3}
    if form.metadata:
        options["pnginfo"] = info = PngInfo()
        info.add_itxt(TEXT, form.metadata)
    return encode(picture, "PNG", **options)


def encode_whole(picture: WholePicture, form: Form) -> bytes:
    """A picture of ``limner.data`` as a file of ``form``, at its own size and in 8 bits a channel."""
    pixels = straight(picture.pixels)
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / np.float32(257)).astype(np.uint8)
    return encode_picture(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), form)


def _fitted(picture: Image.Image, form: Form) -> Image.Image:
    """The picture at the size of the form: enlarged smoothly, reduced without aliasing."""
    size = form.width or picture.width, form.height or picture.height
    if size == picture.size:
        return picture
    # Filters see colours premultiplied, or what is transparent would tint its neighbours.
    plain = picture.convert("RGBa") if picture.mode == "RGBA" else picture
    larger = size[0] > picture.width
    how = Image.Resampling.BICUBIC if larger else Image.Resampling.LANCZOS  # Lanczos rings when it enlarges
    pixels = resized(np.asarray(plain).reshape(*picture.size[::-1], -1), size, how)
    if picture.mode == "RGBA":
        return Image.fromarray(straight(pixels))
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _on_white(picture: Image.Image) -> Image.Image:
    """Without alpha; white shows through."""
    if picture.mode not in ("LA", "RGBA"):
        return picture
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture.convert("RGBA")).convert(
        "L" if picture.mode == "LA" else "RGB"
    )


def _clip(image: Tensor, form: Form, rate: float) -> bytes:
    """An endless animation, without loss at the highest quality."""
    file = io.BytesIO()
    alpha = image.shape[0] == 4 and form.transparent
    height, width = form.height or image.shape[2], form.width or image.shape[3]
    animation = WebP(file, (width, height), alpha, form.compression == 100)
    times = [round(i / rate / animation.unit) for i in range(image.shape[1] + 1)]
    for i, frame in enumerate(image.unbind(1)):
        picture = _fitted(to_pil(frame), form)
        if not alpha:
            picture = _on_white(picture).convert("RGB")
        animation.add(np.asarray(picture), max(times[i + 1] - times[i], 1))
    animation.close()
    return file.getvalue()
