"""Scenes of two objects with shape, colour, size and relation: their captions, their pictures, and an oracle.

`scenes` chooses scenes, `draw` draws them at any height and width, `recognise` reads them back from the
pixels by analysis alone (nothing is trained), and `score` says how well pictures follow their captions.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

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

_REACH = 1.17  # no object reaches further from its centre than this many radii
_PALETTE = np.array(list(COLOURS.values()), np.float32)
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


# Drawing ----------------------------------------------------------------------------------------------------


def _outline(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance, negative inside, of a shape of radius 1 at the origin; y points down."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    x = np.abs(x)
    if shape == "square":
        return np.maximum(x, np.abs(y)) - np.float32(0.88)
    if shape == "triangle":
        y = y - np.float32(0.34)
        return np.maximum(y, x * np.float32(0.75**0.5) - y / 2) - np.float32(0.675)
    # A star is one edge, from a tip to a notch, in each of ten mirrored sectors.
    sector = np.float32(np.pi / 5)
    angle = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    radius = np.hypot(x, y)
    tip, notch = np.float32(1.17), 0.6 * np.exp(1j * sector)
    normal = (notch - tip) / abs(notch - tip) * -1j
    return (radius * np.cos(angle) - tip) * normal.real + radius * np.sin(angle) * normal.imag


def _coverage(
    shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, side: int, grid: tuple
) -> np.ndarray:
    """[n, H, W] share of each pixel that n objects of one shape cover; units of the shorter side."""
    x, y, radius = (np.asarray(v, np.float32)[:, None, None] for v in (x, y, radius))
    across, down = grid
    distance = _outline(shape, (across - x) / radius, (down - y) / radius) * radius
    return np.clip(0.5 - distance * side, 0, 1)


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres across [1, W] and down [H, 1], in units of the shorter side."""
    side = np.float32(min(height, width))
    return (np.arange(width, dtype=np.float32)[None] + 0.5) / side, (
        np.arange(height, dtype=np.float32)[:, None] + 0.5
    ) / side


def _place(
    scenes: Sequence[Scene], height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Centres [N, 2 objects, 2 axes (x, y)] and radii [N, 2]: each object moves freely in its own half."""
    side = min(height, width)
    extent = np.array([width / side, height / side])
    radius = np.array([[SIZES[s.first.size], SIZES[s.second.size]] for s in scenes])
    reach = _REACH * radius
    halves = np.array([s.relation in ("below", "right of") for s in scenes])[:, None] ^ np.array(
        [[False, True]]
    )
    axis = np.array([s.relation in ("above", "below") for s in scenes]).astype(int)  # 1: they differ along y
    length = extent[axis][:, None]
    low, high = reach + 0.012, length / 2 - 0.01 - reach
    along = low + rng.random(radius.shape) * (high - low)
    along = np.where(halves, length - along, along)
    across = extent[1 - axis][:, None] / 2 + rng.uniform(-0.06, 0.06, radius.shape)
    centre = np.stack(
        [np.where(axis[:, None] == 0, along, across), np.where(axis[:, None] == 1, along, across)], -1
    )
    return centre, radius


def draw(scenes: Sequence[Scene], height: int, width: int, seed: int) -> np.ndarray:
    """The scenes as pictures, uint8 [N, H, W, 3], from 24 pixels a side; the seed decides their places."""
    if min(height, width) < 24:
        raise LimnerError(f"shapes cannot be distinguished at {height}x{width}: choose 24x24 or larger")
    rng = np.random.default_rng(seed)
    grid, side = _grid(height, width), min(height, width)
    pictures = np.empty((len(scenes), height, width, 3), np.uint8)
    chunk = max(1, 2**20 // (height * width))
    for start in range(0, len(scenes), chunk):
        some = scenes[start : start + chunk]
        centre, radius = _place(some, height, width, rng)
        canvas = _background(len(some), height, width, rng)
        for k in (0, 1):
            things = [s.second if k else s.first for s in some]
            for shape in SHAPES:
                rows = np.array([i for i, t in enumerate(things) if t.shape == shape], int)
                x, y, r = centre[rows, k, 0], centre[rows, k, 1], radius[rows, k]
                cover = _coverage(shape, x, y, r, side, grid)[..., None]
                colour = np.array([COLOURS[things[i].colour] for i in rows], np.float32).reshape(-1, 1, 1, 3)
                canvas[rows] += cover * (colour - canvas[rows])
        pictures[start : start + chunk] = np.clip(canvas + 0.5, 0, 255)
    return pictures


def _background(n: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """[n, H, W, 3] soft paper: a pale tint that fades a little from top to bottom."""
    tint = rng.uniform(226, 246, (n, 1, 1, 3)).astype(np.float32)
    fade = rng.uniform(-5, 5, (n, 1, 1, 1)).astype(np.float32)
    ramp = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    return np.broadcast_to(tint + fade * ramp, (n, height, width, 3)).copy()


# Recognising ----------------------------------------------------------------------------------------------------


def recognise(images: np.ndarray) -> list[Scene | None]:
    """The canonical scene of each picture (uint8 [N, H, W, 3]); None where it is not two clean objects.

    Exactly two connected objects must stand out from the background, each of one palette colour throughout
    and each overlapping a drawing of a known shape; the picture may hold nothing else.
    """
    return [
        scene
        for start in range(0, len(images), 256)
        for scene in _recognise_batch(images[start : start + 256])
    ]


def _recognise_batch(images: np.ndarray) -> list[Scene | None]:
    pixels = images.astype(np.float32)
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], 1)
    paper = np.median(border, 1)[:, None, None]  # [N, 1, 1, 3]
    ink = _PALETTE - paper[:, :, :, None]  # [N, 1, 1, colours, 3]
    stain = pixels - paper  # [N, H, W, 3]
    # How much of each colour would explain each pixel, and how badly it would.
    amount = np.einsum("nhwd,nabcd->nhwc", stain, ink) / (ink**2).sum(-1)  # [N, H, W, colours]
    amount = np.clip(amount, 0, 1)
    error = np.stack(
        [np.square(stain - amount[..., c, None] * ink[:, :, :, c]).sum(-1) for c in range(len(COLOURS))], -1
    )
    best = error.argmin(-1)  # [N, H, W]
    cover = np.take_along_axis(amount, best[..., None], -1)[..., 0]
    parts = _connected(cover > 0.5)
    return [_read(*each) for each in zip(pixels, paper[:, 0, 0], cover, best, parts, strict=True)]


def _connected(mask: np.ndarray) -> np.ndarray:
    """Labels [N, H, W] of the connected parts (8 neighbours) of each mask; 0 is outside."""
    inside = torch.from_numpy(mask)[:, None].float()
    count = mask[0].size
    label = torch.arange(1, count + 1).reshape(1, 1, *mask.shape[1:]) * inside
    while True:  # the largest label floods its part
        flooded = F.max_pool2d(label, 3, 1, 1) * inside
        if torch.equal(flooded, label):
            return label[:, 0].numpy().astype(np.int64)
        label = flooded


def _read(
    pixels: np.ndarray, paper: np.ndarray, cover: np.ndarray, colours: np.ndarray, parts: np.ndarray
) -> Scene | None:
    """One picture's scene from its pixels [H, W, 3], their share and index of colour, and its parts."""
    height, width = parts.shape
    labels, areas = np.unique(parts[parts > 0], return_counts=True)
    labels = labels[areas >= max(3, 0.003 * min(height, width) ** 2)]  # specks smaller than that do not count
    if len(labels) != 2 or (np.linalg.norm(_PALETTE - paper, axis=1) < 60).any():
        return None
    one, two = (_thing(pixels, cover, colours, parts == label) for label in labels)
    if one is None or two is None:
        return None
    (a, ax, ay), (b, bx, by) = one, two
    if abs(ax - bx) > abs(ay - by):
        return Scene(a, "left of", b) if ax < bx else Scene(b, "left of", a)
    return Scene(a, "above", b) if ay < by else Scene(b, "above", a)


def _thing(
    pixels: np.ndarray, cover: np.ndarray, colours: np.ndarray, part: np.ndarray
) -> tuple[Thing, float, float] | None:
    """The thing that a connected part [H, W] is, with its centroid; None if it is not a clean one."""
    height, width = part.shape
    core = part & (cover > 0.9)
    if not core.any():
        return None
    colour = int(np.bincount(colours[core]).argmax())
    faithful = (colours[core] == colour) & (np.linalg.norm(pixels[core] - _PALETTE[colour], axis=1) < 70)
    if faithful.mean() < 0.85 or core.sum() < 0.4 * part.sum():
        return None

    near = F.max_pool2d(torch.from_numpy(part)[None, None].float(), 3, 1, 1)[0, 0].numpy()
    mask = cover * near  # with the soft edge
    grid = _grid(height, width)
    x, y = float((mask * grid[0]).sum() / mask.sum()), float((mask * grid[1]).sum() / mask.sum())
    shapes, radii, drawings = _templates(height, width, x, y)
    overlap = np.minimum(drawings, mask).sum((1, 2)) / np.maximum(drawings, mask).sum((1, 2))
    which = int(overlap.argmax())
    if overlap[which] < 0.85:
        return None
    size = min(SIZES, key=lambda name: abs(np.log(radii[which] / SIZES[name])))
    return Thing(shapes[which], list(COLOURS)[colour], size), x, y


def _templates(height: int, width: int, x: float, y: float) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Shapes, radii and drawings [n, H, W] of what could have its centroid at (x, y)."""
    small, large = SIZES.values()
    radii = np.geomspace(small * 0.85, large * 1.15, 12)
    shapes, drawings = [], []
    for shape in SHAPES:
        lower = 0.34 if shape == "triangle" else 0.0  # its centroid lies below its centre
        grid = _grid(height, width)
        cover = _coverage(shape, np.full_like(radii, x), y - lower * radii, radii, min(height, width), grid)
        shapes += [shape] * len(radii)
        drawings.append(cover)
    return shapes, np.tile(radii, len(SHAPES)), np.concatenate(drawings)


def score(images: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """How well pictures (uint8 [N, H, W, 3]) show the scenes of their captions, as shares of N.

    `exact`: both shapes, both colours and the relation; `exact_with_size`: the sizes too; `readable`: two
    clean objects can be read; `shape`, `colour`, `size`, `relation`: that attribute of both. Raises
    LimnerError for a caption that is not of a scene.
    """
    names = ("exact", "exact_with_size", "readable", "shape", "colour", "size", "relation")
    counts = dict.fromkeys(names, 0)
    for shown, caption in zip(recognise(images), captions, strict=True):
        if shown is None:
            continue
        wanted = parse(caption).canonical
        right = {"relation": shown.relation == wanted.relation}
        for name in ("shape", "colour", "size"):
            right[name] = all(
                getattr(s, name) == getattr(w, name)
                for s, w in ((shown.first, wanted.first), (shown.second, wanted.second))
            )
        counts["readable"] += 1
        counts["exact"] += right["shape"] and right["colour"] and right["relation"]
        counts["exact_with_size"] += all(right.values())
        for name, is_right in right.items():
            counts[name] += is_right
    return {name: count / max(len(captions), 1) for name, count in counts.items()}
