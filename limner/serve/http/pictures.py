"""Pictures that a person sends, known by their first bytes and measured by their headers: nothing is decoded here."""

from __future__ import annotations

import binascii
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from limner.serve.http.errors import ApiError
from limner.serve.http.values import bad, unsupported
from limner.serve.messages import Format

PIXELS = 16_000_000
SIDE = 16_384
TEXT = 2**21  # bytes of all texts of a PNG and its colour profile, once they are inflated
CHUNKS = 20_000  # of a PNG or a WebP

# Of what is refused by its name.
OTHERS = (
    (b"GIF8", "a GIF"), (b"%PDF", "a PDF"), (b"%!PS", "an EPS"), (b"\xc5\xd0\xd3\xc6", "an EPS"), (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"), (b"MM\0*", "a TIFF"), (b"\0\0\1\0", "an icon"), (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"), (b"\0\0\0\x0cjP  ", "a JPEG 2000"), (b"PK\3\4", "an archive"),
    (b"8BPS", "a Photoshop file"),
)  # fmt: skip
BRANDS = {b"avif": "an AVIF", b"avis": "an AVIF", b"heic": "a HEIC", b"heix": "a HEIC", b"mif1": "a HEIC"}


@dataclass(frozen=True)
class Picture:
    """What the header says. Height and width are those of the picture as it is seen, turned as EXIF says."""

    data: bytes
    format: Format
    height: int
    width: int
    alpha: bool
    orientation: int = 1  # of EXIF

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width before it is turned."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def _wrong(message: str, param: str | None) -> ApiError:
    return bad(message, param, "invalid_image")


def look(data: bytes, param: str) -> Picture:
    """A picture of a request. Raises ApiError 400 for what is none, is damaged, too large or moves."""
    if not data:
        raise _wrong(f"{param} is empty: send the bytes of a picture.", param)
    reader = (
        _png if data.startswith(b"\x89PNG\r\n\x1a\n")
        else _jpeg if data.startswith(b"\xff\xd8\xff")
        else _webp if data[:4] == b"RIFF" and data[8:12] == b"WEBP"
        else None
    )  # fmt: skip
    if reader is None:
        raise _wrong(f"{param} is {_name(data)}: send a PNG, a JPEG or a WebP.", param)
    try:
        return reader(data, param)
    except (struct.error, IndexError):
        raise _cut(param) from None


def _name(data: bytes) -> str:
    for first, name in OTHERS:
        if data.startswith(first):
            return name
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], "a film")
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        return "an SVG"
    return "no picture that is known here"


def _cut(param: str) -> ApiError:
    return _wrong(f"{param} is damaged or was cut short: send the whole picture.", param)


def _check_size(width: int, height: int, param: str) -> None:
    if width < 1 or height < 1:
        raise _wrong(f"{param} has no pixels: send a picture of at least 1x1.", param)
    if max(width, height) > SIDE:
        raise _wrong(
            f"{param} is {width}x{height}, and {SIDE:,} pixels a side are the most: shrink it.", param
        )
    if width * height > PIXELS:
        raise _wrong(f"{param} is {width}x{height}, and {PIXELS:,} pixels are the most: shrink it.", param)


def _upright(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Height and width after EXIF has turned it."""
    return (width, height) if orientation >= 5 else (height, width)


# ---- PNG


def _png(data: bytes, param: str) -> Picture:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if data[8:16] != b"\0\0\0\rIHDR" or depth not in (1, 2, 4, 8, 16) or colour not in (0, 2, 3, 4, 6):
        raise _cut(param)
    _check_size(width, height, param)
    alpha, orientation, drawn, texts = colour in (4, 6), 1, False, 0
    for kind, start, end in _png_chunks(data, param):
        if kind == b"acTL":
            raise _wrong(f"{param} is an animated PNG: send a single picture.", param)
        drawn = drawn or kind == b"IDAT"
        alpha = alpha or kind == b"tRNS"
        if kind == b"eXIf":
            orientation = _orientation(data[start:end])
        elif kind in (b"zTXt", b"iTXt", b"iCCP", b"tEXt"):
            texts += _text_size(kind, data[start:end], TEXT)
            if texts > TEXT:
                raise _wrong(f"{param} holds too much text beside the picture: save it anew without.", param)
    if not drawn:
        raise _cut(param)
    return Picture(data, "png", *_upright(width, height, orientation), alpha, orientation)


def _png_chunks(data: bytes, param: str) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk up to IEND."""
    place = 8
    for _ in range(CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, place)
        start, end = place + 8, place + 8 + length
        if end + 4 > len(data):
            raise _cut(param)
        yield kind, start, end
        if kind == b"IEND":
            return
        place = end + 4
    raise _wrong(f"{param} is cut into too many pieces: save it anew as PNG.", param)


def _text_size(kind: bytes, content: bytes, most: int) -> int:
    """Bytes of a text or a colour profile once it is inflated, or more than ``most``."""
    packed = b""
    if kind in (b"zTXt", b"iCCP"):
        packed = content[content.find(b"\0") + 2 :]
    elif kind == b"iTXt" and (name := content.find(b"\0")) >= 0 and content[name + 1 : name + 2] == b"\1":
        language = content.find(b"\0", name + 3)
        packed = content[content.find(b"\0", language + 1) + 1 :]
    if not packed:
        return len(content)
    try:
        return len(content) + len(zlib.decompressobj().decompress(packed, most + 1))
    except zlib.error:
        return len(content)  # of no use to whoever draws, and not read there


# ---- JPEG


def _jpeg(data: bytes, param: str) -> Picture:
    place, orientation, sides = 2, 1, None
    while True:
        if data[place] != 0xFF:
            raise _cut(param)
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == 0xD9:
            raise _cut(param)
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            place += 2
            continue
        (length,) = struct.unpack_from(">H", data, place + 2)
        end = place + 2 + length
        if length < 2 or end > len(data):
            raise _cut(param)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, place + 5)
            _check_size(width, height, param)
            sides = width, height
        elif marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            orientation = _orientation(data[place + 10 : end])
        elif marker == 0xDA:
            break
        place = end
    if sides is None or data.find(b"\xff\xd9", place) < 0:
        raise _cut(param)
    return Picture(data, "jpeg", *_upright(*sides, orientation), False, orientation)


# ---- WebP


def _webp(data: bytes, param: str) -> Picture:
    (length,) = struct.unpack_from("<I", data, 4)
    end = 8 + length
    if end > len(data):
        raise _cut(param)
    place, orientation, alpha = 12, 1, False
    canvas: tuple[int, int] | None = None
    image: tuple[int, int] | None = None
    for _ in range(CHUNKS):
        if place + 8 > end:
            break
        kind, (size,) = data[place : place + 4], struct.unpack_from("<I", data, place + 4)
        start = place + 8
        if start + size > end:
            raise _cut(param)
        if kind in (b"ANIM", b"ANMF") or (kind == b"VP8X" and data[start] & 2):
            raise _wrong(f"{param} is an animated WebP: send a single picture.", param)
        if kind == b"VP8X":
            alpha = bool(data[start] & 16)
            canvas = 1 + _int24(data, start + 4), 1 + _int24(data, start + 7)
            _check_size(*canvas, param)
        elif kind in (b"VP8 ", b"VP8L") and image is None:
            image, seen = _webp_image(kind, data, start, param)
            alpha = alpha or seen
        elif kind == b"ALPH":
            alpha = True
        elif kind == b"EXIF":
            orientation = _orientation(data[start : start + size].removeprefix(b"Exif\0\0"))
        place = start + size + size % 2
    if image is None or (canvas is not None and canvas != image):
        raise _cut(param)
    return Picture(data, "webp", *_upright(*image, orientation), alpha, orientation)


def _webp_image(kind: bytes, data: bytes, start: int, param: str) -> tuple[tuple[int, int], bool]:
    """Width and height, and whether there is alpha."""
    alpha = False
    if kind == b"VP8 ":
        if data[start + 3 : start + 6] != b"\x9d\x01\x2a":
            raise _cut(param)
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
    else:
        if data[start] != 0x2F:
            raise _cut(param)
        (bits,) = struct.unpack_from("<I", data, start + 1)
        width, height, alpha = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    _check_size(width, height, param)
    return (width, height), alpha


def _int24(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 3], "little")


# ---- EXIF


def _orientation(exif: bytes) -> int:
    """1 to 8; 1 where it says nothing that can be read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (place,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, place)
        for entry in range(min(count, 512)):
            tag, kind = struct.unpack_from(f"{order}HH", exif, place + 2 + 12 * entry)
            if tag == 0x0112 and kind == 3:
                (value,) = struct.unpack_from(f"{order}H", exif, place + 2 + 12 * entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


# ---- in JSON


def from_data_url(text: str, param: str, limit: int) -> bytes:
    """The bytes of ``data:image/...;base64,...``. Raises ApiError 400, or 413 past ``limit`` bytes."""
    head, comma, encoded = text[:64].partition(",")
    if not text.startswith("data:"):
        raise unsupported(
            f"{param} must hold the picture itself, as data:image/png;base64 and its bytes: nothing is fetched here.",
            param,
        )
    kind, _, coding = head.removeprefix("data:").partition(";")
    if not comma or coding != "base64" or not kind.startswith("image/"):
        raise _wrong(f"{param} must begin with data:image/png;base64, (or jpeg, or webp).", param)
    encoded = text[len(head) + 1 :]
    if len(encoded) > (limit + 2) // 3 * 4:
        raise ApiError(
            413, f"{param} is too large: {limit:,} bytes are the most.", "request_too_large", param
        )
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, ValueError):
        raise _wrong(
            f"{param} is not base64, or was cut short: encode all bytes, without spaces.", param
        ) from None
