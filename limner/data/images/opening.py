"""An image file opened: its header, and what it says of colours and of the way up.

What lies beside the pixels (EXIF, text, profiles) is absent where it is damaged: it never makes an image unusable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, TypeVar

from PIL import Image

from limner.data.images import deep, formats, png, tiff
from limner.data.images.limits import TOO_MANY, Unusable, check_icon, check_opened
from limner.data.images.profiles import Profile, profile_of

# Not EPS, PDF and the like, which run programs or read other files.
_FORMATS = "PNG JPEG MPO GIF WEBP AVIF BMP DIB TIFF PPM TGA ICO JPEG2000 DDS PCX QOI".split()
_ORIENTATION = 0x0112
TURNS = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
R = TypeVar("R")


@dataclass(frozen=True)
class Opened:
    """An image of which only the header was read."""

    image: Image.Image
    source: IO[bytes] | None  # None: drawn
    deep: deep.Layout | None  # where it is colour of 16 bits
    profile: Profile | None  # where it is not sRGB
    frame: int = 0  # the one that `image` is at

    @property
    def orientation(self) -> int:
        """The EXIF orientation still to be applied, 1 to 8; Pillow applies that of a TIFF itself."""
        if self.image.format == "TIFF":
            return 1
        if self.image.format == "PNG" and "exif" not in self.image.info:
            self.image.load()  # EXIF may follow the pixels; damage of these is not damage of EXIF
        try:
            found = self.image.getexif().get(_ORIENTATION, 1)
        except Exception:  # on damaged EXIF Pillow raises nearly anything
            return 1
        return found if isinstance(found, int) and found in TURNS else 1


def open_image(source: IO[bytes] | Image.Image) -> Opened:
    """The image with only its header read. Raises Unusable, and on damaged files nearly anything."""
    if isinstance(source, Image.Image):
        return Opened(source, None, None, None)
    start = source.read(4096)
    source.seek(0)
    if not start:
        raise Unusable("the file is empty")
    Image.init()
    if start[:4] == b"\0\0\1\0":
        check_icon(source)
        source.seek(0)
    try:
        image = Image.open(source, formats=[name for name in _FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError:
        raise Unusable(TOO_MANY) from None
    except (Image.UnidentifiedImageError, KeyError):
        raise Unusable(formats.not_read(source)) from None
    found = deep.layout(image)
    check_opened(image, found, source, start)
    if image.format == "PNG":
        image.info["code_points"] = png.code_points(start)
    elif image.format == "AVIF" and "icc_profile" not in image.info:
        image.info["code_points"] = formats.avif_code_points(start)
    image.info["start"] = start
    return Opened(image, source, found, profile_of(image))


def reading(act: Callable[[Opened], R], source: IO[bytes] | Image.Image) -> R:
    """act(the opened image); a PNG or TIFF for which it fails is tried without what lies beside its pixels."""
    try:
        opened = open_image(source)
        with opened.image:
            return act(opened)
    except Exception:
        if isinstance(source, Image.Image):
            raise
        clean, profile = png.essential(source) or (tiff.essential(source), None)
        if clean is None:
            raise
    opened = open_image(clean)
    with opened.image:
        if profile:
            opened.image.info["icc_profile"] = profile
            opened = replace(opened, profile=profile_of(opened.image))
        return act(opened)
