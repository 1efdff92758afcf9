"""Data that needs no download: drawn shapes, handwritten digits, and the emoji of a colour font on this machine."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import zlib
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from limner.data.items import Item, Listing, Source
from limner.data.sources import emoji_zh
from limner.data.sources import shapes as scenes
from limner.data.sources.drawing import Style
from limner.settings import LimnerError, need

SHAPES = 20_000  # images in the built-in `shapes`
_BLOCK = 1_000  # drawn at a time
_STRIKE = 109  # the one size that the font's bitmaps have
_FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",  # Debian, Ubuntu
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",  # Arch
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",  # Fedora
    "/usr/share/fonts/noto-emoji/NotoColorEmoji.ttf",  # Alpine
    "~/.local/share/fonts/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
)
_NAMES = ("/usr/share/unicode/emoji/emoji-test.txt", "/usr/share/unicode/emoji-test.txt")
_LINE = re.compile(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (.+)")


def shapes(
    language: str = "en", name: str = "shapes", style: Style = "filled", half: int | None = None
) -> Source:
    """20,000 drawn scenes with captions; the class is the first object's shape. ``language``: see ``DataOptions``.

    ``half``: 0 or 1, only that half of the scenes (`Scene.half`). Numbers and places are the same in all styles.
    """
    lock = threading.Lock()

    def listing() -> Listing:
        every = scenes.scenes(SHAPES, seed=0)

        @lru_cache(maxsize=2)
        def block(number: int, height: int, width: int) -> np.ndarray:
            some = every[number * _BLOCK : (number + 1) * _BLOCK]
            return scenes.draw(some, height, width, seed=number, style=style)

        def picture(i: int, height: int, width: int) -> Image.Image:
            with lock:
                return Image.fromarray(block(i // _BLOCK, height, width)[i % _BLOCK])

        captioned = enumerate(zip(every, scenes.captions(every, language), strict=True))
        return Listing(
            [
                Item(f"shapes/{i:05d}", partial(picture, i), s.first.shape, text)
                for i, (s, text) in captioned
                if half in (None, s.half)
            ]
        )

    # Another drawing must not find the old pictures in the cache.
    files = [
        Path(__file__).with_name(file).read_bytes() for file in ("scenes.py", "drawing.py", "scenes_zh.py")
    ]
    version = hashlib.sha256(b"".join(files)).hexdigest()[:16]
    key = ["shapes", version, SHAPES, language]
    if style != "filled" or half is not None:
        key += [style, half]
    return Source(name, key, listing, drawn=True, channels=3, oracle=scenes)


def two_of_shapes(text: str, language: str = "en") -> tuple[Source, Source]:
    """The given and the wanted pictures of a name of ``BUILT_IN_TWO``: filled ones, and outlined ones."""
    halves = (0, 1) if text.startswith("domains:") else (None, None)
    return shapes(language, text, "filled", halves[0]), shapes(language, text, "outlined", halves[1])


def digits() -> Source:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries; classes 0 to 9, grey."""

    def listing() -> Listing:
        loaded = need("sklearn.datasets", "The digits are a part of scikit-learn", "metrics").load_digits()
        pixels = np.rint(loaded.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], 0 to 16 in the original

        def picture(i: int, height: int, width: int) -> Image.Image:
            return Image.fromarray(pixels[i])

        labels = enumerate(map(str, loaded.target))
        return Listing([Item(f"digits/{i:04d}", partial(picture, i), label) for i, label in labels])

    return Source("digits", ["digits", 1], listing, drawn=True, channels=1)


def emoji(language: str = "en") -> Source:
    """The emoji, over the background unless the options say 4 channels; captions are names, classes are groups.

    ``language``: see ``DataOptions``.
    """
    chosen = os.environ.get("LIMNER_EMOJI_FONT")
    font = next((p for f in ([chosen] if chosen else _FONTS) if (p := Path(f).expanduser()).is_file()), None)
    names = next((p for f in _NAMES if (p := Path(f)).is_file()), None)
    if chosen and font is None:
        where = f"LIMNER_EMOJI_FONT names {chosen!r}"
        raise LimnerError(f"{where}, which is not a file: set it to NotoColorEmoji.ttf.")
    if font is None or names is None:
        missing = "colour emoji font" if font is None else "list of emoji names"
        raise LimnerError(
            f"This machine has no {missing}. On Debian or Ubuntu: apt install fonts-noto-color-emoji unicode-data"
            " (LIMNER_EMOJI_FONT names a font elsewhere)."
        )
    status = font.stat()
    key = ["emoji", 1, status.st_size, status.st_mtime_ns, names.stat().st_size]
    chinese: list[Path] = []
    if language != "en":
        chinese = emoji_zh.files()
        key += [language, *(path.stat().st_size for path in chinese)]
    listing = partial(_emoji_listing, font, names, chinese, language)
    return Source("emoji", key, listing, drawn=True, channels=3)


def _emoji_listing(font_file: Path, names_file: Path, chinese: list[Path], language: str) -> Listing:
    try:
        font = ImageFont.truetype(str(font_file), _STRIKE)
    except OSError as error:
        raise LimnerError(
            f"{font_file} cannot draw at {_STRIKE} pixels ({error}): NotoColorEmoji.ttf with bitmaps is needed."
        ) from None
    lock = threading.Lock()  # a font is not to be used from two threads at once
    width = font.getlength("\N{GRINNING FACE}")

    def picture(text: str, *_: int) -> Image.Image:
        with lock:
            left, top, right, bottom = (int(v) for v in font.getbbox(text))
            side = max(right - left, bottom - top)
            image = Image.new("RGBA", (side, side))
            at = (side - right + left) // 2 - left, (side - bottom + top) // 2 - top
            ImageDraw.Draw(image).text(at, text, font=font, embedded_color=True)
            return image

    def drawable(text: str) -> bool:
        """One glyph wide, so that a sequence is joined, and not blank."""
        left, top, right, bottom = font.getbbox(text)
        return bottom > top and 0 < right - left <= 1.1 * width

    translated = emoji_zh.names(chinese)
    items = []
    for text, group, name in _named_emoji(names_file.read_text("utf-8")):
        if drawable(text):
            code = "-".join(f"{ord(c):x}" for c in text)
            in_chinese = language == "zh" or (language == "both" and zlib.crc32(code.encode()) % 2)
            caption = (
                translated.get(emoji_zh.plain(text), "" if language == "zh" else name) if in_chinese else name
            )
            items.append(Item(f"emoji/{code}", partial(picture, text), group, caption))
    return Listing(items)


def _named_emoji(lines: str) -> Iterator[tuple[str, str, str]]:
    """(characters, group, name) of the fully qualified emoji, skin tones left out."""
    group = ""
    for line in lines.split("\n"):
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif (match := _LINE.match(line)) and "skin tone" not in line:
            yield "".join(chr(int(code, 16)) for code in match[1].split()), group, match[2].strip()
