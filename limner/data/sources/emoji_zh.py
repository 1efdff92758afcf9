"""The Chinese names of emoji, from Unicode's Common Locale Data Repository (CLDR) on this machine."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from limner.settings import LimnerError

FOLDERS = ("/usr/share/unicode/cldr/common", "/usr/share/cldr/common")
# The names of characters; those of sequences, such as flags and families, which are derived from them.
FILES = "annotations/zh.xml", "annotationsDerived/zh.xml"


def files() -> list[Path]:
    """The files that hold the names. Raises LimnerError where there are none."""
    for folder in FOLDERS:
        if all((Path(folder) / name).is_file() for name in FILES):
            return [Path(folder) / name for name in FILES]
    raise LimnerError(
        "This machine has no Chinese names of emoji. On Debian or Ubuntu: apt install unicode-cldr-core (or take the "
        "English names with --data.language en)."
    )


def names(paths: list[Path]) -> dict[str, str]:
    """The short name of each emoji by its characters, without variation selectors (``plain``)."""
    found: dict[str, str] = {}
    for path in paths:
        for entry in ElementTree.parse(path).iter("annotation"):
            if entry.get("type") == "tts" and entry.text:
                found[plain(entry.get("cp", ""))] = " ".join(entry.text.split())
    return found


def plain(emoji: str) -> str:
    """An emoji without U+FE0F, which the files leave out."""
    return emoji.replace("\ufe0f", "")
