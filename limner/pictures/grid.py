"""Pictures for people: tensors to PIL images, PNG files, and sheets of images with captions."""

from __future__ import annotations

import io
import math
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from limner import files
from limner.data.images.png import written as deep_png
from limner.settings import LimnerError

Picture = Tensor | np.ndarray | Image.Image

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of sheets

_PAPER, _INK, _MARK, _GUTTER = (250, 250, 248), (66, 66, 72), (196, 48, 40), 12
_TILE = 128  # pixels that small images are enlarged towards
_STRIP = 1536  # likewise, of all frames of a clip side by side
_LINES = 4  # of a caption at most
_READ = 3000  # characters of a caption that are looked at
_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "segoeui.ttf", "LiberationSans-Regular.ttf"),
    *("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc", "Arial Unicode.ttf"),
)


def to_pil(image: Tensor, bits: int = 8) -> Image.Image:
    """[C, H, W] in [-1, 1] -> L, RGB or RGBA with straight alpha; grey also in 16 bits (I;16).

    Of a video [C, T, H, W] the first frame.
    """
    pixels = to_pixels(image, bits)
    if bits == 16 and pixels.shape[-1] != 1:
        raise LimnerError(
            f"Pillow has no images of 16 bits and {pixels.shape[-1]} channels: write it with png()."
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def to_pixels(image: Tensor, bits: int = 8) -> np.ndarray:
    """[C, H, W] in [-1, 1] -> uint8 or uint16 [H, W, C], alpha straight; of a video [C, T, H, W] the first frame."""
    if image.ndim == 4:
        image = image[:, 0]
    channels = image.shape[0]
    if channels not in (1, 3, 4) or bits not in (8, 16):
        raise LimnerError(
            f"An image of {channels} channels cannot be a PNG of {bits} bits: 1, 3 or 4, of 8 or 16 bits."
        )
    values = image.detach().float().cpu().permute(1, 2, 0).numpy().clip(-1, 1) / 2 + 0.5  # [H, W, C]
    if channels == 4:  # colours are premultiplied inside
        alpha = values[..., 3:]
        values = np.concatenate([np.minimum(values[..., :3] / np.maximum(alpha, 1e-6), 1), alpha], -1)
    full, dtype = (255, np.uint8) if bits == 8 else (65535, np.uint16)
    return np.rint(values * np.float32(full)).astype(dtype)


def png(image: Tensor, bits: int = 8) -> bytes:
    """[C, H, W] in [-1, 1] as a PNG of ``bits`` a channel (``ImageSpec.bits``)."""
    if bits == 16 and len(image) > 1:  # Pillow writes grey alone in 16 bits
        return deep_png(to_pixels(image, 16))
    return encode(to_pil(image, bits))


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file; to be written whole, so that Pillow meets no full disk."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def save_png(image: Tensor, path: Path, bits: int = 8) -> None:
    """Write an image as ``png`` gives it, whole or not at all. Raises LimnerError."""
    files.write_bytes(path, png(image, bits))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of its suffix (SUFFIXES), whole or not at all. Raises LimnerError."""
    files.write_bytes(path, encode(picture, SUFFIXES.get(path.suffix.lower(), "PNG")))


def grid(
    images: Tensor | np.ndarray | Sequence[Picture], captions: Sequence[str] | None = None,
    columns: int | None = None, scale: int | None = None, marked: Sequence[bool] = (),
) -> Image.Image:  # fmt: skip
    """A contact sheet, RGB. Transparency lies over a checkerboard; small images are enlarged by a whole factor.

    `images`: [N, C, H, W] in [-1, 1], uint8 [N, H, W, C], or a list of such images or of PIL's; or clips
    [N, C, T, H, W], frames across and clips down. Those `marked` have a red frame and a red caption.
    """
    if any(isinstance(image, Tensor) and image.ndim == 4 for image in images):
        scale, columns = 1, columns or 1
    pictures = [_picture(image) for image in images]
    if not pictures:
        raise LimnerError("There are no images for a sheet.")
    if captions is not None and len(captions) != len(pictures):
        raise LimnerError(f"A sheet of {len(pictures)} images cannot take {len(captions)} captions.")
    width, height = (max(p.size[axis] for p in pictures) for axis in (0, 1))
    scale = scale or max(1, _TILE // max(width, height))
    width, height = width * scale, height * scale
    columns = min(len(pictures), columns or math.ceil(math.sqrt(len(pictures) * height / width)))

    size = max(11, min(20, width // 11))
    line = round(1.3 * size)
    texts = [_wrap(_clean(caption), size, width) for caption in captions or [""] * len(pictures)]
    tops = [_GUTTER]
    for start in range(0, len(texts), columns):
        most = max(map(len, texts[start : start + columns]))
        tops.append(tops[-1] + height + _GUTTER + (most * line + 4 if most else 0))

    sheet = Image.new("RGB", (columns * (width + _GUTTER) + _GUTTER, tops[-1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
        row, column = divmod(i, columns)
        tile = _opaque(ImageOps.scale(picture, scale, Image.Resampling.NEAREST))
        left, top = _GUTTER + column * (width + _GUTTER), tops[row]
        sheet.paste(tile, (left + (width - tile.width) // 2, top + (height - tile.height) // 2))
        ink = _MARK if any(marked[i : i + 1]) else _INK
        if ink == _MARK:
            pen.rectangle((left - 4, top - 4, left + width + 3, top + height + 3), outline=_MARK, width=2)
        for k, text in enumerate(lines):
            x = left + (width - _length(text, size)) / 2
            for font, words in _runs(text, size):
                pen.text((x, top + height + 4 + k * line + size), words, ink, font, anchor="ls")
                x += font.getlength(words)
    return sheet


def in_rows(columns: Sequence[Tensor], order: str = "") -> Image.Image:
    """A sheet in which pictures [N, C, h, w] in [-1, 1] of the same place in each column stand beside each other.

    Small ones are enlarged to the size of the largest by repeating pixels; ``order`` names the columns, once.
    """
    height, width = (max(x.shape[axis] for x in columns) for axis in (-2, -1))
    scale = max(1, _TILE // max(height, width))
    height, width = scale * height, scale * width
    gap = _GUTTER // 3
    rows = []
    for pictures in zip(*columns, strict=True):
        row = Image.new("RGB", (len(columns) * (width + gap) - gap, height), _PAPER)
        for i, picture in enumerate(pictures):
            enlarged = to_pil(picture).resize((width, height), Image.Resampling.NEAREST)
            row.paste(_opaque(enlarged), (i * (width + gap), 0))
        rows.append(row)
    return grid(rows, [order, *[""] * (len(rows) - 1)] if order else None, scale=1)


def save_grid(
    path: Path, images: Tensor | np.ndarray | Sequence[Picture], captions: Sequence[str] | None = None,
    columns: int | None = None, marked: Sequence[bool] = (),
) -> None:  # fmt: skip
    """Write a ``grid`` in the format of the suffix (SUFFIXES), whole or not at all."""
    save_picture(grid(images, captions, columns, marked=marked), path)


def _picture(image: Picture) -> Image.Image:
    if isinstance(image, np.ndarray):
        return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
    if isinstance(image, Image.Image):
        return image
    return strip(image) if image.ndim == 4 else to_pil(image)


def strip(clip: Tensor) -> Image.Image:
    """The frames of a clip [C, T, H, W] in [-1, 1] side by side, RGB; small ones enlarged by a whole factor."""
    height, width = clip.shape[2:]
    scale = max(1, min(_TILE // max(height, width), _STRIP // (clip.shape[1] * width)))
    step = scale * width + _GUTTER // 6
    row = Image.new("RGB", (clip.shape[1] * step - _GUTTER // 6, scale * height), _PAPER)
    for i, frame in enumerate(clip.unbind(1)):
        row.paste(_opaque(ImageOps.scale(to_pil(frame), scale, Image.Resampling.NEAREST)), (i * step, 0))
    return row


def _opaque(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    y, x = np.indices((picture.height, picture.width)) // 8
    board = Image.fromarray(np.where((x + y) % 2, 204, 255).astype(np.uint8)).convert("RGBA")
    return Image.alpha_composite(board, picture.convert("RGBA")).convert("RGB")


# Captions: each character in the first font that has it ----------------------------------------------------


@cache
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    fonts = []
    for name in _FONTS:
        with suppress(OSError):
            fonts.append(ImageFont.truetype(name, size))
    last = ImageFont.load_default(size)
    return (*fonts, last) if isinstance(last, ImageFont.FreeTypeFont) else tuple(fonts)


@lru_cache(maxsize=4096)
def _font_of(character: str, size: int) -> ImageFont.FreeTypeFont | None:
    """The first font that has the character: draws it unlike a code point of no font."""
    for font in _fonts(size):
        if character == " " or bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff")):
            return font
    return None


def _clean(text: str) -> str:
    """One line of characters that some font here can draw."""
    drawn = []
    for c in " ".join(text[:_READ].split())[:300]:
        if _font_of(c, 16) is not None:
            drawn.append(c)
        elif unicodedata.category(c) not in ("Mn", "Me", "Cf", "Cc"):  # those show nothing by themselves
            drawn.append("\N{WHITE SQUARE}" if _font_of("\N{WHITE SQUARE}", 16) is not None else "?")
    return "".join(drawn)


def _runs(text: str, size: int) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    """Each longest stretch of text with the font that it is drawn in."""
    runs: list[tuple[ImageFont.FreeTypeFont, str]] = []
    for c in text:
        font = _font_of(c, size) or _fonts(size)[0]
        if runs and (c == " " or runs[-1][0] is font):
            runs[-1] = runs[-1][0], runs[-1][1] + c
        else:
            runs.append((font, c))
    return runs


def _length(text: str, size: int) -> float:
    return sum(font.getlength(words) for font, words in _runs(text, size))


def _wrap(text: str, size: int, width: int) -> list[str]:
    """Lines that fit the width, broken at spaces where there are any, cut off with an ellipsis."""

    def fitting(text: str, end: str = "") -> int:
        """How many characters fit, with ``end`` after them; at least one."""
        return (
            bisect_right(
                range(2, len(text) + 1), width, key=lambda n: math.ceil(_length(text[:n] + end, size))
            )
            + 1
        )

    lines: list[str] = []
    while text and len(lines) < _LINES:
        end = fitting(text)
        if end < len(text) and text[end] != " " and (space := text.rfind(" ", 1, end)) > 0:
            end = space
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    if text:
        last = lines[-1][: fitting(lines[-1], "…")]
        lines[-1] = last.rstrip() + "…"
    return lines
