"""Scenes of two objects with shape, colour, size and relation, and their captions."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from limner.data.sources import scenes_zh
from limner.settings import LimnerError, nearest

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (222, 56, 52),
    "yellow": (247, 192, 30),
    "green": (46, 160, 84),
    "blue": (44, 104, 226),
    "purple": (164, 62, 178),
    "black": (46, 44, 56),
}
SIZES = {"small": 0.145, "large": 0.188}  # radius of the circle, as a share of the picture's shorter side
RELATIONS = ("above", "below", "left of", "right of")
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}

_CAPTION = re.compile(r"an? (\w+) (\w+) (\w+) (above|below|left of|right of) an? (\w+) (\w+) (\w+)")


@dataclass(frozen=True)
class Thing:
    shape: str  # of SHAPES
    colour: str  # of COLOURS
    size: str  # of SIZES


@dataclass(frozen=True)
class Scene:
    """Two things, the first of which is `relation` the second."""

    first: Thing
    relation: str  # of RELATIONS
    second: Thing

    @property
    def caption(self) -> str:
        one, two = (f"a {t.size} {t.colour} {t.shape}" for t in (self.first, self.second))
        return f"{one} {self.relation} {two}"

    @property
    def chinese(self) -> str:
        """The caption in Chinese."""
        one, two = ((t.size, t.colour, t.shape) for t in (self.first, self.second))
        return scenes_zh.write(one, self.relation, two)

    @property
    def canonical(self) -> Scene:
        """The same picture, described from its upper or left thing: 'a above b' for 'b below a'."""
        if self.relation in ("above", "left of"):
            return self
        return Scene(self.second, OPPOSITE[self.relation], self.first)

    @property
    def held_out(self) -> bool:
        """Whether this combination, sizes aside, is in no training set (about one in ten)."""
        return hashlib.blake2b(self.combination.encode(), digest_size=8).digest()[0] < 26

    @property
    def half(self) -> int:
        """0 or 1: of all combinations, sizes aside, about as many are in either half."""
        return hashlib.blake2b(self.combination.encode(), digest_size=8).digest()[1] % 2

    @property
    def combination(self) -> str:
        """What the scene shows, sizes aside; the same of 'b below a' and 'a above b'."""
        s = self.canonical
        return f"{s.first.shape} {s.first.colour} {s.relation} {s.second.shape} {s.second.colour}"


def parse(caption: str) -> Scene:
    """The scene that a caption describes, in English or Chinese. Raises LimnerError for any other text."""
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()).rstrip("."))
    words = match.groups() if match else scenes_zh.read(caption)
    if not words:
        raise LimnerError(
            f"cannot read {caption!r} as a scene; write it like 'a large red circle above a small blue square'"
            f" or '{scenes_zh.EXAMPLE}'"
        )
    known: tuple[Iterable[str], ...] = (SIZES, COLOURS, SHAPES, RELATIONS, SIZES, COLOURS, SHAPES)
    for word, names in zip(words, known, strict=True):
        if word not in names:
            hint = nearest(word, names)
            raise LimnerError(f"{word!r} in {caption!r} is not one of {', '.join(names)}.{hint}")
    first, second = (Thing(shape, colour, size) for size, colour, shape in (words[:3], words[4:]))
    return Scene(first, words[3], second)


def captions(scenes: Sequence[Scene], language: str = "en") -> list[str]:
    """The captions of scenes in the language of --data.language; of both, every second one is in Chinese."""
    chinese = [language == "zh" or (language == "both" and i % 2 == 1) for i in range(len(scenes))]
    return [scene.chinese if zh else scene.caption for scene, zh in zip(scenes, chinese, strict=True)]


@cache
def _every(held_out: bool) -> tuple[Scene, ...]:
    """All scenes on one side of the split; two things of one scene differ in shape or colour."""
    things = [Thing(shape, colour, size) for shape in SHAPES for colour in COLOURS for size in SIZES]
    pairs = [(a, b) for a in things for b in things if (a.shape, a.colour) != (b.shape, b.colour)]
    every = (Scene(a, relation, b) for a, b in pairs for relation in RELATIONS)
    return tuple(scene for scene in every if scene.held_out == held_out)


def scenes(n: int, seed: int, held_out: bool = False) -> list[Scene]:
    """n random scenes, without repetition up to all there are. `held_out` ones appear in no training set."""
    every, rng = _every(held_out), random.Random(seed)
    drawn: list[Scene] = []
    while len(drawn) < n:
        drawn += rng.sample(every, min(n - len(drawn), len(every)))
    return drawn


def unseen(n: int, seed: int, known: Sequence[str] = (), language: str = "en") -> list[str]:
    """Captions of up to n random scenes whose combinations are in no training set, nor in the captions ``known``.

    Those of ``scenes`` come first, which the demo draws; ``language`` as in ``captions``.
    """
    shown: set[str] = set()
    for caption in known:
        with suppress(LimnerError):  # a person's own caption may be of anything
            shown.add(parse(caption).combination)
    every = (*scenes(n, seed, held_out=True)[: len(_every(True))], *_every(True))
    new = dict.fromkeys(scene for scene in every if scene.combination not in shown)
    return captions(list(new)[:n], language)
