"""Colours of another space -> sRGB: ICC profiles, and what PNG, AVIF and EXIF say instead of one.

Profiles are applied by Pillow's ImageCms (Little CMS), relative colorimetric with black point compensation: colours
inside sRGB stay what they are, and the black of a print becomes black. A profile that is broken, of another
kind than the image, or within two levels of sRGB counts as absent. Format: ICC.1:2022.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

MOST_BYTES = 2**23  # bytes of a profile; larger ones count as absent
_NEAR = 2  # of 255: a profile that changes no colour by more is sRGB
_KINDS = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # ICC's names of colour spaces -> Pillow's
_XYZ_TO_SRGB = np.array(  # from D50, as ICC profiles are
    [[3.1341359, -1.6173863, -0.4906619], [-0.9787955, 1.9162544, 0.0334427], [0.0719554, -0.2289768, 1.4053860]]
)  # fmt: skip
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])
_D65 = (0.3127, 0.3290)
Curve = Callable[[np.ndarray], np.ndarray]  # of values in [0, 1]


@dataclass(frozen=True, eq=False)
class Profile:
    """A colour profile that is not sRGB."""

    name: str  # as the profile describes itself
    mode: str  # Pillow's, of the images that it is for: RGB, L, CMYK or LAB
    data: bytes
    levels: bytes = b""  # of a grey profile: the sRGB value of each of 256 levels

    def convert(self, image: Image.Image) -> Image.Image:
        """An 8-bit image of this profile -> L, RGB or RGBA in sRGB. Raises ValueError for another kind of image."""
        if self.mode == "L":
            if not image.has_transparency_data:
                return image.convert("L").point(self.levels)
            grey, opacity = image.convert("LA").split()
            return Image.merge("LA", (grey.point(self.levels), opacity))
        alpha = self.mode == "RGB" and image.has_transparency_data
        if self.mode == "RGB":
            image = image.convert("RGBA" if alpha else "RGB")
        return _transform(self, image.mode, threading.get_ident()).apply(image)

    def convert_deep(self, pixels: np.ndarray) -> np.ndarray:
        """uint16 [H, W, 1 or 3] of this profile -> sRGB; through 8 bits where the profile is a table of colours."""
        rows = [self._deep_rows(pixels[y : y + 64]) for y in range(0, len(pixels), 64)]  # in little memory
        return np.concatenate(rows)

    def _deep_rows(self, pixels: np.ndarray) -> np.ndarray:
        if (shaper := _shaper(self.data)) is None:
            small = np.rint(pixels / 257).astype(np.uint8)
            image = self.convert(Image.fromarray(small[..., 0] if self.mode == "L" else small))
            return np.asarray(image).reshape(pixels.shape).astype(np.uint16) * np.uint16(257)
        curves, matrix = shaper
        linear = [curve(pixels[..., c] / np.float32(65535)) for c, curve in enumerate(curves)]
        if matrix is not None:
            linear = [sum(m * x for m, x in zip(row, linear, strict=True)) for row in matrix]
        return np.rint(65535 * _encode(np.stack(linear, -1))).astype(np.uint16)


def profile_of(image: Image.Image) -> Profile | None:
    """What says that an image is not sRGB: ``code_points`` in its info (primaries and transfer of H.273) go first."""
    info = image.info
    if (points := info.get("code_points")) and points[0] != 2:
        return _of_code_points(*points)
    if image.mode == "LAB" and "icc_profile" not in info:
        return _lab()
    if data := info.get("icc_profile"):
        found = (
            _examined(bytes(data))
            if isinstance(data, bytes | bytearray) and len(data) <= MOST_BYTES
            else None
        )
        return found if found is not None and found.mode == _kind(image) else None
    if "srgb" not in info and "gamma" in info and "chromaticity" in info:  # of a PNG
        return _of_chunks(info["gamma"], tuple(info["chromaticity"]))
    exif = info.get("exif") if image.format in ("JPEG", "MPO") else None
    if isinstance(exif, bytes) and b"R03\0" in exif and b"R98\0" not in exif:
        return _adobe_rgb()  # as DCF cameras say it, without a profile
    return None


def _kind(image: Image.Image) -> str:
    """The mode of profiles that are for the image."""
    if image.mode in ("1", "L", "LA", "I;16", "I;16B", "I;16L"):
        return "L"
    return image.mode if image.mode in ("CMYK", "LAB") else "RGB"


# ICC --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _examined(data: bytes) -> Profile | None:
    """The profile, or None if it is broken or sRGB."""
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(data))
        mode = _KINDS[opened.profile.xcolor_space.strip()]
        name = " ".join(ImageCms.getProfileDescription(opened).split())[:60] or f"unnamed {mode}"
        if mode == "L":
            ramp = np.arange(256, dtype=np.uint8)[None]
            levels = np.asarray(_transform_of(data, "L").apply(Image.fromarray(ramp)))[0, :, 1]
            near = np.abs(levels.astype(int) - ramp[0]).max() <= _NEAR
            return None if near else Profile(name, mode, data, levels.tobytes())
        if mode == "RGB":
            steps = np.linspace(0, 255, 9).round().astype(np.uint8)
            colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
            converted = np.asarray(_transform_of(data, "RGB").apply(Image.fromarray(colours)))
            if np.abs(converted.astype(int) - colours).max() <= _NEAR:
                return None
        else:
            _transform_of(data, mode)
        return Profile(name, mode, data)
    except Exception:  # Little CMS and Pillow raise nearly anything on a damaged profile
        return None


def _transform_of(data: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.ImageCmsTransform(
        ImageCms.ImageCmsProfile(BytesIO(data)),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        mode,
        "RGBA" if mode == "RGBA" else "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


@lru_cache(maxsize=64)
def _transform(profile: Profile, mode: str, thread: int) -> ImageCms.ImageCmsTransform:
    """One for each thread, as Little CMS keeps state in it."""
    return _transform_of(profile.data, mode)


@lru_cache(maxsize=16)
def _shaper(data: bytes) -> tuple[list[Curve], np.ndarray | None] | None:
    """The curves of a profile, and [3, 3] from them to linear sRGB; None for a grey or a table of colours."""
    try:
        (count,) = struct.unpack_from(">I", data, 128)
        rows = (struct.unpack_from(">4sII", data, 132 + 12 * i) for i in range(min(count, 100)))
        tags = {name: data[at : at + size] for name, at, size in rows}
        if b"kTRC" in tags and data[16:20] == b"GRAY":
            return [_curve(tags[b"kTRC"])], None
        if b"A2B0" in tags or b"A2B1" in tags:
            return None
        columns = [struct.unpack_from(">3i", tags[name], 8) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
        curves = [_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")]
    except (KeyError, ValueError, ArithmeticError, struct.error):
        return None
    return curves, (_XYZ_TO_SRGB @ np.array(columns).T / 65536).astype(np.float32)


def _curve(tag: bytes) -> Curve:
    """A tone curve of an ICC profile, to linear light. Raises ValueError for a kind that is not known."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        table = np.frombuffer(tag, ">u2", count, 12)
        if count == 1:
            return lambda x: x ** np.float32(table[0] / 256)
        at, values = np.linspace(0, 1, max(count, 2)), table / 65535 if count else np.array([0.0, 1.0])
        return lambda x: np.interp(x, at, values).astype(np.float32)
    (kind,) = struct.unpack_from(">H", tag, 8)
    if tag[:4] != b"para" or kind > 4:
        raise ValueError("an unknown kind of curve")
    given = [v / 65536 for v in struct.unpack_from(f">{(1, 3, 4, 5, 7)[kind]}i", tag, 12)]
    g, a, b, c, d, e, f = given + [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0][len(given) :]
    if kind in (1, 2):  # linear, or a constant, below the zero of a x + b
        c, d, e, f = 0.0, -b / a, c, c
    power: Curve = lambda x: np.maximum(a * x + b, 0) ** g + e  # noqa: E731
    return lambda x: np.where(x >= d, power(x), c * x + f).clip(0, 1).astype(np.float32)


def _encode(linear: np.ndarray) -> np.ndarray:
    """Linear light -> sRGB in [0, 1] (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)


# Spaces without a profile -----------------------------------------------------------------------------------

_PRIMARIES = {  # H.273: red, green, blue, white
    1: ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), _D65),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
}  # fmt: skip
_NAMES = {1: "BT.709", 5: "BT.601", 6: "BT.601", 9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}  # H.273; video's curves are shown as sRGB's is
HDR = (16, 18)  # PQ and HLG, which only a rendering could bring to sRGB
_SRGB = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # g, a, b, c, d of a curve of the third kind
_SRGB_CURVE = struct.pack(">4sIHH5i", b"para", 0, 3, 0, *(round(65536 * v) for v in _SRGB))


@lru_cache(maxsize=16)
def _of_code_points(primaries: int, transfer: int) -> Profile | None:
    """None for sRGB, for what H.273 does not define, and for high dynamic range."""
    if primaries not in _PRIMARIES or transfer in HDR:
        return None
    return _examined(_made(_NAMES[primaries], _PRIMARIES[primaries], _GAMMAS.get(transfer)))


@lru_cache(maxsize=16)
def _of_chunks(gamma: float, xy: tuple[float, ...]) -> Profile | None:
    """Of gAMA and cHRM of a PNG, which count where it has both."""
    if len(xy) != 8 or not 0.1 <= gamma <= 10 or not all(0 < v <= 1 for v in xy):
        return None
    white, red, green, blue = xy[:2], xy[2:4], xy[4:6], xy[6:]
    curve = None if abs(gamma - 0.45455) < 0.01 else 1 / gamma
    try:
        return _examined(_made("gAMA and cHRM", (red, green, blue, white), curve))
    except (np.linalg.LinAlgError, struct.error):
        return None


@lru_cache(maxsize=1)
def _lab() -> Profile | None:
    return _examined(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())


@lru_cache(maxsize=1)
def _adobe_rgb() -> Profile | None:
    primaries = (0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65
    return _examined(_made("Adobe RGB (by EXIF)", primaries, 563 / 256))


def _made(name: str, primaries: tuple[tuple[float, float], ...], gamma: float | None) -> bytes:
    """An ICC profile of red, green, blue and white (x, y); no gamma: the curve of sRGB."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    colours, white = np.stack([xyz(*xy) for xy in primaries[:3]], 1), xyz(*primaries[3])
    adapt = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / (_BRADFORD @ white)) @ _BRADFORD
    colours = adapt @ (colours * np.linalg.solve(colours, white))

    def numbers(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * float(v)) for v in values))

    curve = _SRGB_CURVE if gamma is None else struct.pack(">4sIHHi", b"para", 0, 0, 0, round(65536 * gamma))
    text = name.encode("ascii") + b"\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"wtpt": numbers(_D50),
        **{key: numbers(column) for key, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colours.T, strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for key, content in tags.items():
        table += key + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI12s12x4s", start + len(body), b"lcms", 0x04000000, b"mntrRGB XYZ ", b"acsp")
    return head + bytes(28) + numbers(_D50)[8:] + bytes(48) + table + body
