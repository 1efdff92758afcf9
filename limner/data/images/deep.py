"""Images of more than 8 bits a channel: colour of 16 bits, and numbers of any range.

Pillow opens colour of 16 bits as 8. Its decoders can be asked for the high and for the low byte of each value, so
the file is decoded twice (PNG with grey and alpha once, as four bytes). Floats, and integers beyond 16 bits, have no
range of their own: one `Scale` for all images of a request brings them to 0 to 65535.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from limner.data.images.profiles import Profile

_OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # the order of swapped bytes


@dataclass(frozen=True)
class Layout:
    """How colour of 16 bits lies in a file."""

    mode: str  # what the values are: L (with a transparent grey), LA, RGB, RGBA or RGBa (premultiplied)
    raw: tuple[str, ...]  # Pillow's name of the form in the file, for each of the tiles


def layout(image: Any) -> Layout | None:
    """That of an image of which only the header was read; None where Pillow's own pixels have all bits."""
    tiles = getattr(image, "tile", None)
    if not tiles or (image.format == "PNG" and image.n_frames > 1):
        return None
    if image.mode == "I;16" and "transparency" in image.info:
        return Layout("L", ())
    if image.mode not in ("RGB", "RGBA"):
        return None
    if image.format == "PPM":
        deep = tiles[0].codec_name == "ppm" and tiles[0].args[1:] == (65535,)
        return Layout("RGB", ("RGB;16B",)) if deep and image.mode == "RGB" else None
    if image.format not in ("PNG", "TIFF"):
        return None
    raw = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in tiles]
    if image.format == "TIFF" and raw[0] == "R" and image.tag_v2.get(258, (8,))[0] == 16:
        end = ";16B" if image.tag_v2.prefix == b"MM" else ";16L"
        raw = [name + end if len(name) == 1 else "" for name in raw]
        return Layout(image.mode, tuple(raw)) if all(raw) else None
    name, _, bits = raw[0].partition(";")
    if not bits.startswith("16") or name not in ("RGB", "RGBA", "RGBa", "RGBX", "LA") or len(set(raw)) > 1:
        return None
    if image.format == "TIFF" and image.tag_v2.get(284) == 2:
        return None  # channels apart and compressed: 8 bits are all that there is
    return Layout(name.replace("X", ""), tuple(raw))


def cut(image: Any) -> bool:
    """Whether colour of more than 8 bits is taken as 8, as Pillow decodes it."""
    if image.mode not in ("RGB", "RGBA", "CMYK", "LAB"):
        return False
    start = image.info.get("start", b"")
    if image.format == "JPEG2000":  # the bits of the first channel, in the codestream's first marker
        at = start.find(b"\xff\x4f\xff\x51")
        return at >= 0 and len(start) > at + 42 and start[at + 42] & 0x7F >= 8
    if image.format == "AVIF":
        at = start.find(b"av1C")
        return at >= 0 and len(start) > at + 6 and bool(start[at + 6] & 0x40)
    if image.format == "TIFF":
        return bool(max(image.tag_v2.get(258, (8,))) > 8)
    if image.format == "PPM":
        return b"65535" in start[:64]
    return image.format == "PNG" and start[24:25] == b"\x10"


def read(image: Any, again: Callable[[], Image.Image], found: Layout) -> np.ndarray:
    """uint16 [H, W, C] of a file with the layout, C as in its mode; ``again`` opens the file anew."""
    image = image if getattr(image, "tile", None) else again()
    if found.mode == "L":
        return np.asarray(image)[..., None]
    if found.mode == "LA":
        return _bytes(image, ["RGBA"] * len(found.raw)).view(">u2").astype(np.uint16)
    raw = [name.replace("a", "A") for name in found.raw]
    values = _bytes(image, raw).astype(np.uint16)
    values <<= 8
    values |= _bytes(again(), [name[:-1] + _OTHER[name[-1]] for name in raw])
    return values


def _bytes(image: Any, raw: list[str]) -> np.ndarray:
    """uint8 [H, W, C] of the image, decoded as other raw modes."""
    tiles = []
    for tile, name in zip(image.tile, raw, strict=True):
        if image.format == "PPM":
            tile = tile._replace(codec_name="raw", args=(name, 0, 1))
        else:
            tile = tile._replace(args=name if isinstance(tile.args, str) else (name, *tile.args[1:]))
        tiles.append(tile)
    image.tile = tiles
    return np.asarray(image)


def finished(pixels: np.ndarray, found: Layout, clear: object, profile: Profile | None) -> np.ndarray:
    """uint16 [H, W, 3 or 4] in sRGB, premultiplied; ``clear`` is the colour that a PNG calls transparent, if any."""
    if found.mode in ("L", "RGB") and clear is not None:
        opaque = (pixels != np.array(clear, np.uint16)).any(-1, keepdims=True)
        pixels = np.concatenate([pixels, np.where(opaque, np.uint16(65535), np.uint16(0))], -1)
    colours = 1 if found.mode in ("L", "LA") else 3
    if profile is not None and found.mode != "RGBa":
        converted = profile.convert_deep(pixels[..., :colours])
        pixels = np.concatenate([converted, pixels[..., colours:]], -1)
    if colours == 1:
        pixels = pixels[..., [0, 0, 0, *range(1, pixels.shape[-1])]]
    if pixels.shape[-1] == 4 and found.mode != "RGBa":
        for rows in (pixels[y : y + 64] for y in range(0, len(pixels), 64)):  # in place, in little memory
            rows[..., :3] = np.rint(rows[..., :3] * (rows[..., 3:].astype(np.float32) / 65535))
    return pixels


# Numbers of any range ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """The numbers that become 0 and 65535, alike for all images of a request."""

    floats: tuple[float, float] = (0.0, 1.0)
    integers: tuple[float, float] = (0.0, 65535.0)

    def apply(self, image: Image.Image) -> Image.Image:
        """An image of mode I or F, or 16-bit grey -> F holding 0 to 65535; what is beyond is cut, NaN becomes black."""
        if image.mode.startswith("I;16"):
            return image.convert("F")
        low, high = self.floats if image.mode == "F" else self.integers
        scaled = Image.new("F", image.size)
        for y, strip in _strips(image):
            values = np.nan_to_num(np.asarray(strip.convert("F")), nan=low, posinf=high, neginf=low)
            if low == 0:
                values = values * np.float32(65535 / high)
            else:
                values = ((values.astype(np.float64) - low) * (65535 / (high - low))).astype(np.float32)
            scaled.paste(Image.fromarray(values.clip(0, 65535)), (0, y))
        return scaled


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The rows of an image, some at a time, so that copies of them take little memory."""
    step = max(1, 2**20 // image.width)
    for y in range(0, image.height, step):
        yield y, image.crop((0, y, image.width, min(y + step, image.height)))


def value_range(image: Image.Image) -> tuple[float, float] | None:
    """The least and the greatest number in an image of mode I or F; None if all are NaN."""
    finite = (v[np.isfinite(v)] for v in (np.asarray(strip) for _, strip in _strips(image)))
    ends = [(float(v.min()), float(v.max())) for v in finite if v.size]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None


def scale_of(ranges: Iterable[tuple[str, float, float]]) -> Scale:
    """The scale for images of these modes, least and greatest numbers: one for each mode, never one an image.

    Floats have the first range of 0 to 1, 255 or 65535 that holds nine of ten images, with a little room for filters
    that overshoot, and whose eighth one of these passes (but for 0 to 1); integers that of 16 bits if it holds all.
    Others are stretched from the least to the greatest number of all images.
    """
    ranges = list(ranges)
    floats = [r[1:] for r in ranges if r[0] == "F"]
    integers = [r[1:] for r in ranges if r[0] != "F"]
    return Scale(
        _range(floats, (1.0, 255.0, 65535.0), room=0.05, share=0.9), _range(integers, (65535.0,), 0.0, 1.0)
    )


def _range(
    spans: list[tuple[float, float]], tops: tuple[float, ...], room: float, share: float
) -> tuple[float, float]:
    if not spans:
        return 0.0, tops[0]
    for top in tops:
        held = [h for low, h in spans if h <= (1 + room) * top and low >= -room / 2 * min(h, top)]
        if len(held) >= share * len(spans) and (top == tops[0] or max(held) > top / 8):
            return 0.0, top
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    return (low, high) if low < high else (min(low, 0.0), max(high, 0.0))
