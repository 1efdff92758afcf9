"""Which scripts texts are written in, by the Unicode names of their letters."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_IN_WORDS = {"CJK": "Chinese characters", "HANGUL": "Hangul", "HIRAGANA": "hiragana", "KATAKANA": "katakana"}


def scripts_of(texts: Iterable[str]) -> set[str]:
    """The scripts of the letters of some texts, as Unicode names them: LATIN, CJK, HANGUL, ..."""
    return {script for char in set().union(*texts) if (script := _script(char))}


def in_words(script: str) -> str:
    """A script for a message: 'Chinese characters', 'Cyrillic letters'."""
    return _IN_WORDS.get(script, f"{script.capitalize()} letters")


@lru_cache(maxsize=2**14)
def _script(char: str) -> str:
    """The first word of the letter's name; "" for what is no letter, and for marks that several scripts share."""
    char = unicodedata.normalize("NFKC", char)[0]  # full-width letters are letters
    is_letter = unicodedata.category(char) in ("Lu", "Ll", "Lt", "Lo")
    return unicodedata.name(char, "").split(" ")[0] if is_letter else ""
