"""Captions of clips in Chinese: '一个小的红色五角星向左移动，一个大的蓝色圆形静止不动'."""

from __future__ import annotations

import re
from collections.abc import Sequence

from limner.data.sources.scenes_zh import COLOURS, SHAPES, SIZES, any_of

# For each English phrase how it is written, and how else it may be read.
_MOTIONS = {
    "stands": ("静止不动", "静止", "不动"),
    "moves left": ("向左移动",), "moves right": ("向右移动",),
    "moves up": ("向上移动",), "moves down": ("向下移动",),
    "moves up and left": ("向左上方移动", "向左上移动"), "moves up and right": ("向右上方移动", "向右上移动"),
    "moves down and left": ("向左下方移动", "向左下移动"), "moves down and right": ("向右下方移动", "向右下移动"),
    "bounces off the edges": ("碰到边缘反弹", "在边缘反弹", "碰到边缘弹回"),
    "grows": ("变大", "逐渐变大", "慢慢变大"), "shrinks": ("变小", "逐渐变小", "慢慢变小"),
}  # fmt: skip
_DIGIT = "数字"
_SHAPE = rf"(?:{_DIGIT}(\d)|{any_of(SHAPES)})"
_THING = rf"一?[个颗]?{any_of(SIZES)}{any_of(COLOURS)}的?{_SHAPE}"
_ACTOR = re.compile(rf"{_THING}{any_of(_MOTIONS)}")
_BEHIND = re.compile(rf"{_THING}从{_THING}的?(?:后面|背后|后方)(?:经过|穿过|通过)")
_ENGLISH = {
    form: word for forms in (SIZES, COLOURS, SHAPES, _MOTIONS) for word in forms for form in forms[word]
}


def write(actors: Sequence[tuple[str, str, str, str]]) -> str:
    """A caption from the English (size, colour, shape, motion) of one or two things."""
    things = [
        f"一个{SIZES[size][0]}{COLOURS[colour][0]}{SHAPES[shape][0] if shape in SHAPES else _DIGIT + shape}"
        for size, colour, shape, _ in actors
    ]
    if actors[0][3] not in _MOTIONS:
        return f"{things[0]}从{things[1]}的后面经过"
    return "，".join(f"{thing}{_MOTIONS[actor[3]][0]}" for thing, actor in zip(things, actors, strict=True))


def read(caption: str) -> list[tuple[str, ...]]:
    """The English (size, colour, shape, motion) of each thing of a caption; [] for another text."""
    text = "".join(caption.split()).rstrip("。.")
    if match := _BEHIND.fullmatch(text):
        one, two = _english(match.groups()[:4]), _english(match.groups()[4:])
        return [(*one, "passes behind"), (*two, "stands")]
    matches = [_ACTOR.fullmatch(part) for part in re.split("[，,、]", text)]
    if len(matches) > 2 or not all(matches):
        return []
    return [_english(match.groups()) for match in matches if match]


def _english(forms: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(_ENGLISH.get(form, form) for form in forms if form)
