"""Names of members of archives, made on any system, as they were meant: their encoding and their separators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from limner.data.annotations.encoding import detect
from limner.data.items import printable

_ALONE = re.compile(r"[A-Za-z][^\x00-\x7f](?![^\x00-\x7f])|(?<![^\x00-\x7f])[^\x00-\x7f][A-Za-z]")
_CODECS = {
    "gb18030": "GBK", "cp932": "Shift-JIS", "big5hkscs": "Big5", "cp949": "EUC-KR", "euc_jp": "EUC-JP",
    "cp437": "code page 437 (DOS)",
}  # fmt: skip


def decoded(raw: Sequence[bytes], otherwise: str) -> tuple[list[str], list[str]]:
    """Names in one encoding, which none of them states, and a note on it where it is not UTF-8.

    UTF-8 if all are; else the encoding of Chinese, Japanese or Korean that `encoding.detect` finds, or, as names
    are short: GBK if all are, and at least half of the characters beyond ASCII are among the 3,755 that are frequent
    in Chinese (level 1 of GB 2312); else Shift-JIS if all are, with half of them kana or frequent kanji (level 1 of
    JIS X 0208) and none alone at an ASCII letter, as in Müller; else ``otherwise``.
    """
    codec = _codec([name for name in raw if not name.isascii()]) or otherwise
    names = [name.decode(codec, "surrogateescape") for name in raw]
    beyond = [name for name in names if not name.isascii()]
    if not beyond or codec not in _CODECS:
        return names, []
    count = "1 name is" if len(beyond) == 1 else f"{len(beyond):,} names are"
    return names, [f"{count} not UTF-8 and read as {_CODECS[codec]}, such as {printable(beyond[0])!r}."]


def _codec(raw: Sequence[bytes]) -> str | None:
    if _texts(raw, "utf-8") is not None:
        return "utf-8"
    if (codec := detect(b"\n".join(raw[:10_000]))) in _CODECS:
        return codec
    return "gb18030" if _is_gbk(raw) else "cp932" if _is_shift_jis(raw) else None


def _texts(raw: Sequence[bytes], codec: str) -> str | None:
    try:
        return "\n".join(name.decode(codec) for name in raw)
    except UnicodeDecodeError:
        return None


def _is_gbk(raw: Sequence[bytes]) -> bool:
    beyond = [c for c in _texts(raw, "gb18030") or "" if not c.isascii()]
    return 2 * sum(_lead(c, "gb2312") in range(0xB0, 0xD8) for c in beyond) >= len(beyond) > 0


def _is_shift_jis(raw: Sequence[bytes]) -> bool:
    text = _texts(raw, "cp932") or ""
    beyond = [c for c in text if not c.isascii()]
    frequent = sum("\u3041" <= c <= "\u30fc" or _lead(c, "cp932") in range(0x88, 0x98) for c in beyond)
    return 2 * frequent >= len(beyond) > 0 and not _ALONE.search(text)


def _lead(c: str, codec: str) -> int:
    """The first byte of a character of two bytes; 0 for others."""
    data = c.encode(codec, "ignore")
    return data[0] if len(data) == 2 else 0


def with_slashes(names: Sequence[str], always: bool) -> list[str]:
    """Names with '/' between folders where they have a backslash: ``always``, or if no name has a '/'."""
    if always or not any("/" in name.rstrip("/") for name in names):
        return [name.replace("\\", "/") for name in names]
    return list(names)


def plain(name: str) -> str:
    """'./a//b' is 'a/b'."""
    return str(PurePosixPath(name))
