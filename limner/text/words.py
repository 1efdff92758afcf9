"""Texts -> words: the same word gives the same characters wherever it stands, in any language."""

from __future__ import annotations

import unicodedata
from enum import Enum
from functools import lru_cache

# Scripts written without spaces between words, and Hangul, whose particles are joined to their nouns.
_SINGLE = (
    (0x0E00, 0x0EDF), (0x0F00, 0x0FFF), (0x1000, 0x109F),  # Thai and Lao, Tibetan, Burmese
    (0x1100, 0x11FF), (0x1780, 0x17FF), (0x1950, 0x19FF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F),
    (0x2E80, 0x33FF),  # radicals, kana, bopomofo
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xA960, 0xA9DF), (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF), (0xAC00, 0xD7FF), (0xF900, 0xFAFF), (0xFF66, 0xFFDC), (0x1AFF0, 0x1B16F),
    (0x20000, 0x3FFFF),
)  # fmt: skip


class _Kind(Enum):
    SPACE = 0  # ends a word
    LETTER = 1  # of a word with others, as are digits
    MARK = 2  # belongs to the character before it
    SINGLE = 3  # a word of its own: punctuation, symbols, and characters of the scripts above


@lru_cache(maxsize=2**14)
def _kind(char: str) -> _Kind:
    if char.isspace() or char == "\u200b":
        return _Kind.SPACE
    category = unicodedata.category(char)
    if category[0] == "M" or category == "Cf":
        return _Kind.MARK
    letter = category[0] in "LN" and not any(low <= ord(char) <= high for low, high in _SINGLE)
    return _Kind.LETTER if letter else _Kind.SINGLE


@lru_cache(maxsize=2**14)
def words(text: str) -> tuple[tuple[int, int, bool], ...]:
    """(start, end, spelt) of each word of a text: spelt ones are runs of letters and digits.

    Each punctuation mark, symbol, and character of a script without spaces is a word of its own, with the marks that
    follow it.
    """
    found: list[tuple[int, int, bool]] = []
    for i, char in enumerate(text):
        kind = _kind(char)
        start, end, spelt = found[-1] if found else (0, -1, False)
        if end == i and (kind is _Kind.MARK or (kind is _Kind.LETTER and spelt)):
            found[-1] = start, i + 1, spelt
        elif kind is not _Kind.SPACE:
            found.append((i, i + 1, kind is _Kind.LETTER))
    return tuple(found)
