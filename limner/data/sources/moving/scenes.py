"""Clips of one or two things, each with a motion: what they show, and their captions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from limner.core import mix
from limner.data.sources.moving import scenes_zh
from limner.data.sources.scenes import COLOURS, Thing
from limner.settings import LimnerError, nearest

SIZES = {"small": 0.125, "large": 0.175}  # radius at the start, as a share of the picture's shorter side
# Steps across and down the picture; y points down.
DIRECTIONS = {
    "moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1),
    "moves up and left": (-1, -1), "moves up and right": (1, -1),
    "moves down and left": (-1, 1), "moves down and right": (1, 1),
}  # fmt: skip
STANDS, BOUNCES, GROWS, SHRINKS = "stands", "bounces off the edges", "grows", "shrinks"
BEHIND = "passes behind"  # the second thing, which stands
MOTIONS = (STANDS, *DIRECTIONS, BOUNCES, GROWS, SHRINKS)

_DIAGONAL = {name for name, step in DIRECTIONS.items() if all(step)}
_THING = r"an? (\w+) (\w+) (\w+)"
_MOTION = "|".join(sorted(MOTIONS, key=len, reverse=True))
_CAPTION = re.compile(rf"{_THING} ({_MOTION})(?: and {_THING} ({_MOTION}))?")
_BEHIND = re.compile(rf"{_THING} {BEHIND} {_THING}")


@dataclass(frozen=True)
class Actor:
    """A thing, by its size at the start, and how it moves."""

    thing: Thing
    motion: str  # of MOTIONS, or BEHIND for the first of two

    @property
    def identity(self) -> str:
        """What tells it from other actors, its size aside."""
        return f"{self.thing.shape} {self.thing.colour} {self.motion}"


@dataclass(frozen=True)
class Scene:
    """What a clip shows."""

    first: Actor
    second: Actor | None = None

    @property
    def actors(self) -> tuple[Actor, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def caption(self) -> str:
        things = [f"a {a.thing.size} {a.thing.colour} {a.thing.shape}" for a in self.actors]
        if self.first.motion == BEHIND:
            return f"{things[0]} {BEHIND} {things[1]}"
        return " and ".join(f"{thing} {a.motion}" for thing, a in zip(things, self.actors, strict=True))

    @property
    def chinese(self) -> str:
        """The caption in Chinese."""
        return scenes_zh.write([(a.thing.size, a.thing.colour, a.thing.shape, a.motion) for a in self.actors])

    @property
    def canonical(self) -> Scene:
        """The same clip with its two things in one order."""
        if self.second is None or self.first.motion == BEHIND:
            return self
        first, second = sorted((self.first, self.second), key=lambda actor: actor.identity)
        return Scene(first, second)

    @property
    def combination(self) -> str:
        """What the clip shows, sizes aside, in one order."""
        return " and ".join(actor.identity for actor in self.canonical.actors)

    @property
    def held_out(self) -> bool:
        """Whether this combination, sizes aside, is in no training set (about one in ten)."""
        return hashlib.blake2b(self.combination.encode(), digest_size=8).digest()[0] < 26


def parse(caption: str, shapes: Sequence[str]) -> Scene:
    """The scene that a caption describes, in English or Chinese. Raises LimnerError for any other text.

    ``shapes`` are the shapes that its things may have.
    """
    text = " ".join(caption.lower().split()).rstrip(".")
    if match := _BEHIND.fullmatch(text):
        words = [(*match.groups()[:3], BEHIND), (*match.groups()[3:], STANDS)]
    elif match := _CAPTION.fullmatch(text):
        words = [tuple(match.groups()[:4]), *([tuple(match.groups()[4:])] if match[5] else [])]
    elif not (words := scenes_zh.read(caption)):
        raise LimnerError(
            f"cannot read {caption!r} as a clip; write it like 'a small red {shapes[-1]} moves left and a large blue "
            f"{shapes[0]} stands' or '{scenes_zh.write([('small', 'red', shapes[-1], 'moves left')])}'"
        )
    actors = []
    for size, colour, shape, motion in words:
        known: tuple[tuple[str, Iterable[str]], ...] = ((size, SIZES), (colour, COLOURS), (shape, shapes))
        for word, names in known:
            if word not in names:
                hint = nearest(word, names)
                raise LimnerError(f"{word!r} in {caption!r} is not one of {', '.join(names)}.{hint}")
        actors.append(Actor(Thing(shape, colour, size), motion))
    return Scene(*actors)


def captions(scenes: Sequence[Scene], language: str = "en") -> list[str]:
    """The captions of scenes in the language of --data.language; of both, every second one is in Chinese."""
    chinese = [language == "zh" or (language == "both" and i % 2 == 1) for i in range(len(scenes))]
    return [scene.chinese if zh else scene.caption for scene, zh in zip(scenes, chinese, strict=True)]


def scenes(n: int, seed: int, shapes: Sequence[str], held_out: bool = False) -> list[Scene]:
    """n random scenes of one or two things; `held_out` ones show combinations that are in no training set."""
    rng, drawn = np.random.default_rng(mix("moving", seed)), list[Scene]()
    while len(drawn) < n:
        scene = _scene(rng, shapes)
        if scene.held_out == held_out:
            drawn.append(scene)
    return drawn


def unseen(
    n: int, seed: int, shapes: Sequence[str], known: Sequence[str] = (), language: str = "en"
) -> list[str]:
    """Captions of n random scenes whose combinations are in no training set, nor in the captions ``known``."""
    shown: set[str] = set()
    for caption in known:
        with suppress(LimnerError):  # a person's own caption may be of anything
            shown.add(parse(caption, shapes).combination)
    new = [scene for scene in scenes(2 * n, seed, shapes, held_out=True) if scene.combination not in shown]
    return captions(new[:n], language)


# Of three clips two show one thing, and few nothing that moves. Of the clips of two, one in eight passes behind.
_ONE, _STILL, _PASSES = 2 / 3, 0.25, 1 / 8


def _scene(rng: np.random.Generator, shapes: Sequence[str]) -> Scene:
    """A random scene."""

    def one_of(names: Iterable[str]) -> str:
        names = tuple(names)
        return names[int(rng.random() * len(names))]

    def actor(motion: str) -> Actor:
        size = {GROWS: "small", BEHIND: "small", SHRINKS: "large"}.get(motion) or one_of(SIZES)
        return Actor(Thing(one_of(shapes), one_of(COLOURS), size), motion)

    if rng.random() < _ONE:
        motion = one_of(MOTIONS)
        while motion == STANDS and rng.random() > _STILL:
            motion = one_of(MOTIONS)
        return Scene(actor(motion))
    behind = rng.random() < _PASSES
    while True:
        first, second = (
            (actor(BEHIND), actor(STANDS)) if behind else (actor(one_of(MOTIONS)), actor(one_of(MOTIONS)))
        )
        if _fit_together(first, second):
            return Scene(first, second)


def _fit_together(first: Actor, second: Actor) -> bool:
    """Whether the two can be told apart, and have room to move without touching."""
    one, two = first.thing, second.thing
    motions = {first.motion, second.motion}
    if first.motion == BEHIND:  # what is partly hidden is told by its colour
        return one.colour != two.colour
    if (one.shape, one.colour) == (two.shape, two.colour) or motions == {STANDS}:
        return False
    sweeping = motions & (_DIAGONAL | {BOUNCES})
    return not sweeping or (
        one.size == two.size == "small" and not (BOUNCES in motions and motions & _DIAGONAL)
    )
