"""Captions of scenes in Chinese: '一个小的红色圆形在一个大的蓝色方块的左边'."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# For each English word how it is written, and how else it may be read.
SIZES = {"small": ("小的", "小"), "large": ("大的", "大")}
COLOURS = {
    "red": ("红色", "红"), "yellow": ("黄色", "黄"), "green": ("绿色", "绿"), "blue": ("蓝色", "蓝"),
    "purple": ("紫色", "紫"), "black": ("黑色", "黑"),
}  # fmt: skip
SHAPES = {
    "circle": ("圆形", "圆圈", "圆"), "square": ("方块", "正方形", "方形"), "triangle": ("三角形", "三角"),
    "star": ("五角星", "星形", "星星", "星"),
}  # fmt: skip
_RELATIONS = {
    "above": ("上面", "上方", "上边"), "below": ("下面", "下方", "下边"), "left of": ("左边", "左侧", "左面", "左方"),
    "right of": ("右边", "右侧", "右面", "右方"),
}  # fmt: skip

Forms = Mapping[str, Sequence[str]]


def any_of(forms: Forms) -> str:
    """A group of a regular expression: any form of any word."""
    return f"({'|'.join(form for all_forms in forms.values() for form in all_forms)})"


_THING = rf"一?[个颗]?{any_of(SIZES)}{any_of(COLOURS)}的?{any_of(SHAPES)}"
_CAPTION = re.compile(rf"{_THING}在{_THING}的?{any_of(_RELATIONS)}")
_ORDER: tuple[Forms, ...] = (SIZES, COLOURS, SHAPES, SIZES, COLOURS, SHAPES, _RELATIONS)

EXAMPLE = "一个大的红色圆形在一个小的蓝色方块的上面"


def write(first: Sequence[str], relation: str, second: Sequence[str]) -> str:
    """A caption from the English (size, colour, shape) of two things and the relation of the first to the second."""
    one, two = (
        f"一个{SIZES[size][0]}{COLOURS[colour][0]}{SHAPES[shape][0]}"
        for size, colour, shape in (first, second)
    )
    return f"{one}在{two}的{_RELATIONS[relation][0]}"


def read(caption: str) -> tuple[str, ...] | None:
    """The English words of a caption in the order of an English one: size, colour, shape, relation, size, ..."""
    match = _CAPTION.fullmatch("".join(caption.split()).rstrip("。."))
    if not match:
        return None
    known = [{form: word for word, all_forms in forms.items() for form in all_forms} for forms in _ORDER]
    words = [table[form] for table, form in zip(known, match.groups(), strict=True)]
    return *words[:3], words[6], *words[3:6]
