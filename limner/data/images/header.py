"""What an image file is, read without decoding it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO

from PIL import Image

from limner.data.images import deep
from limner.data.images.limits import UNDER_WAY, Unusable, cost
from limner.data.images.opening import Opened, reading


@dataclass(frozen=True)
class Header:
    """The properties of an image file, read without decoding it."""

    format: str
    mode: str  # Pillow's, and 'RGB;16' and the like for colour of 16 bits
    width: int  # as shown, after the EXIF orientation
    height: int
    bits: int  # 8 or 16 a channel
    channels: int  # 1, 3, or 4 where there may be transparency
    frames: int
    profile: str = ""  # the name of a colour profile that is not sRGB, from which the image is converted
    span: tuple[float, float] | None = None  # the least and greatest of floats, or integers, of any range
    cut: bool = False  # colour of more than 8 bits that is taken as 8

    @property
    def kind(self) -> str:
        return self.format or "drawn"

    @property
    def size(self) -> str:
        return f"{self.height}x{self.width}"


def read_header(source: IO[bytes] | Image.Image, half: str = "") -> Header:
    """The file's header, with the width of a `half` if that is named. Raises Unusable."""
    return reading(partial(examine, half=half), source)


def examine(opened: Opened, half: str = "") -> Header:
    image = opened.image
    width, height = image.size
    frames = getattr(image, "n_frames", 1)
    # Pillow decodes a whole PNG to look for EXIF after the pixels; only a small one's size matters.
    if (image.format != "PNG" or max(image.size) <= 64) and opened.orientation >= 5:
        width, height = height, width
    if half:
        width //= 2
    if width == 0:
        raise Unusable("it is too narrow to be cut in two")
    mode, span = image.mode, None
    if mode in ("I", "F"):
        with UNDER_WAY.hold(cost(image)):
            span = deep.value_range(image)
    if opened.deep:
        mode = f"{opened.deep.mode};16"
        channels = 3 if opened.deep.mode == "RGB" and "transparency" not in image.info else 4
    else:
        grey = mode in ("1", "L") or mode.startswith(("I", "F"))
        clear = image.has_transparency_data and not mode.startswith(("I", "F"))
        channels = 4 if clear else 1 if grey else 3
    bits = 16 if opened.deep or mode.startswith(("I", "F")) else 8
    name = opened.profile.name if opened.profile else ""
    cut = bits == 8 and deep.cut(image)
    return Header(image.format or "", mode, width, height, bits, channels, frames, name, span, cut)


def colour_notes(headers: Iterable[Header] | Mapping[Header, int]) -> list[str]:
    """Sentences on how colours and numbers of these images (or so many of each) are read, for the person."""
    counts, said, profiles, cut = Counter(headers), [], Counter[str](), Counter[str]()
    of_all = f"of {counts.total():,} images"
    for header, count in counts.items():
        if header.profile:
            profiles[header.profile] += count
        if header.cut:
            cut[header.format] += count
    if total := profiles.total():
        names = ", ".join([name for name, _ in profiles.most_common(3)] + ["..."] * (len(profiles) > 3))
        have = f"{total:,} {of_all} have another colour profile than sRGB"
        said.append(f"{have} ({names}): they are converted to sRGB.")
    if total := cut.total():
        forms = ", ".join(f"{count:,} {form}" for form, count in cut.items())
        said.append(f"{total:,} {of_all} are colour of more than 8 bits that is taken as 8 ({forms}).")
    return said + _number_notes(counts)


def _number_notes(counts: Counter[Header]) -> list[str]:
    """Which numbers of floats and integers of any range become black and white, and what that range does not suit."""
    said, of_all = [], f"of {counts.total():,} images"
    scale = deep.scale_of((h.mode, *h.span) for h in counts.elements() if h.span)
    for mode, what, (low, high) in (("F", "floats", scale.floats), ("I", "integers", scale.integers)):
        spans = [h.span for h in counts.elements() if h.mode == mode and h.span]
        if not spans:
            continue
        said.append(
            f"{len(spans):,} {of_all} are of {what}: {low:g} becomes black and {high:g} white in all."
        )
        least, greatest = min(span[0] for span in spans), max(span[1] for span in spans)
        if beyond := sum(span[0] < low or span[1] > high for span in spans):
            said.append(
                f"{beyond:,} of them go beyond that, {least:g} to {greatest:g} in all, and are cut there."
            )
        if dark := mode == "F" and high > 1 and sum(0 < span[1] <= 1 for span in spans):
            said.append(
                f"{dark:,} of them hold 0 to 1 alone and become dark: bring all floats to one range first."
            )
    return said
