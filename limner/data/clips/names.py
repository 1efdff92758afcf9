"""The names of clips: that of their film, and the frame of it at which they start."""

from __future__ import annotations

import re

_START = re.compile(r"@\d+$")


def clip_name(film: str, start: int) -> str:
    """'a/b.mp4' -> 'a/b.mp4@48'"""
    return f"{film}@{start}"


def film_of(name: str) -> str:
    """The name of the film that a clip is of."""
    return _START.sub("", name)
