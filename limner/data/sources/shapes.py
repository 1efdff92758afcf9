"""Scenes of two objects with shape, colour, size and relation: their captions, their pictures, and an oracle.

`scenes` chooses scenes, `draw` draws them at any height and width, `read` reads them back from the pixels of either
style by analysis alone (nothing is trained), `score` says how well pictures follow their captions, and `compare` how
well they show what others show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from limner.data.sources.drawing import Style, coverage, draw, line_width, pixel_grid
from limner.data.sources.ink import PALETTE, connected, ink
from limner.data.sources.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    captions,
    parse,
    scenes,
    unseen,
)  # fmt: skip
from limner.settings import LimnerError

__all__ = [
    "COLOURS", "RELATIONS", "SHAPES", "SIZES", "Reading", "Scene", "Thing", "captions", "compare", "draw", "parse",
    "read", "recognise", "scenes", "score", "unseen",
]  # fmt: skip

_NEAR = 0.04  # of the shorter side: how far an object may be from where it should be


@dataclass(frozen=True)
class Reading:
    """What a picture shows."""

    scene: Scene  # canonical
    style: Style
    places: np.ndarray  # [2 objects, 2 axes (x, y)] their centroids, in units of the shorter side


def recognise(images: np.ndarray) -> list[Scene | None]:
    """The canonical scene of each picture (uint8 [N, H, W, 3]) in either style; None where `read` cannot read it."""
    return [None if shown is None else shown.scene for shown in read(images)]


def read(images: np.ndarray) -> list[Reading | None]:
    """What each picture (uint8 [N, H, W, 3]) shows; None where it is not two clean objects.

    Exactly two connected objects must stand out from the background, each of one palette colour throughout
    and each overlapping a drawing of a known shape; the picture may hold nothing else. On a light background they must
    be filled, on a dark one outlines around nothing.
    """
    return [
        shown for start in range(0, len(images), 256) for shown in _read_batch(images[start : start + 256])
    ]


@dataclass(frozen=True)
class _Marks:
    """What stands out from the background in one picture."""

    pixels: np.ndarray  # [H, W, 3], 0 to 255
    paper: np.ndarray  # [3] the background
    amount: np.ndarray  # [H, W] share of each pixel that is coloured
    colours: np.ndarray  # [H, W] index of that colour
    cover: np.ndarray  # [H, W] share of each pixel that objects cover, with the inside of outlines
    parts: np.ndarray  # [H, W] labels of connected parts, 0 outside
    style: Style


def _read_batch(images: np.ndarray) -> list[Reading | None]:
    pixels = images.astype(np.float32)
    paper, amount, best, _ = ink(pixels)
    dark = paper.mean(-1)[:, 0, 0] < 128  # [N]
    cover = np.where(dark[:, None, None], _filled(amount), amount)
    parts = connected(cover > 0.5)
    styles: list[Style] = ["outlined" if is_dark else "filled" for is_dark in dark]
    each = zip(pixels, paper[:, 0, 0], amount, best, cover, parts, styles, strict=True)
    return [_reading(_Marks(*one)) for one in each]


def _filled(amount: np.ndarray) -> np.ndarray:
    """Share of each pixel [N, H, W] that objects cover of whose outlines ``amount`` [N, H, W] is covered."""
    line = amount > 0.5
    outside = np.zeros_like(line)
    outside[:, [0, -1]] = outside[:, :, [0, -1]] = True
    outside &= ~line
    while True:  # not through corners, where alone the pixels of a thin line may touch
        grown = _along_rows(outside, line)
        grown = _along_rows(grown.swapaxes(1, 2), line.swapaxes(1, 2)).swapaxes(1, 2)
        if np.array_equal(grown, outside):
            break
        outside = grown
    padded = np.pad(outside, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    edge = padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1] | padded[:, 1:-1, :-2] | padded[:, 1:-1, 2:] | outside
    return np.where(edge, amount, 1).astype(np.float32)  # an outline's inner edge is covered by its object


def _along_rows(outside: np.ndarray, line: np.ndarray) -> np.ndarray:
    """All pixels [N, H, W] from which an outside one is reached along a row without crossing a line."""
    begins = line.copy()
    begins[:, :, 0] = True
    stretch = (
        begins.reshape(-1).cumsum().reshape(line.shape)
    )  # a line pixel and what follows it up to the next
    reached = np.zeros(stretch.max() + 1, bool)
    reached[stretch[outside]] = True
    return reached[stretch] & ~line


def _reading(marks: _Marks) -> Reading | None:
    height, width = marks.parts.shape
    labels, areas = np.unique(marks.parts[marks.parts > 0], return_counts=True)
    labels = labels[areas >= max(3, 0.003 * min(height, width) ** 2)]  # specks smaller than that do not count
    if len(labels) != 2 or (np.linalg.norm(PALETTE - marks.paper, axis=1) < 60).any():
        return None
    one, two = (_thing(marks, marks.parts == label) for label in labels)
    if one is None or two is None:
        return None
    (a, ax, ay), (b, bx, by) = one, two
    relation, in_order = ("left of", ax < bx) if abs(ax - bx) > abs(ay - by) else ("above", ay < by)
    if in_order:
        return Reading(Scene(a, relation, b), marks.style, np.array([[ax, ay], [bx, by]]))
    return Reading(Scene(b, relation, a), marks.style, np.array([[bx, by], [ax, ay]]))


def _thing(marks: _Marks, part: np.ndarray) -> tuple[Thing, float, float] | None:
    """The thing that a connected part [H, W] is, with its centroid; None if it is not a clean one."""
    height, width = part.shape
    colour = _colour(marks, part)
    if colour is None:
        return None
    near = F.max_pool2d(torch.from_numpy(part)[None, None].float(), 3, 1, 1)[0, 0].numpy()
    mask = marks.cover * near  # with the soft edge
    grid = pixel_grid(height, width)
    x, y = float((mask * grid[0]).sum() / mask.sum()), float((mask * grid[1]).sum() / mask.sum())
    shapes, radii, drawings = _templates(height, width, x, y)
    overlap = _overlap(drawings, mask)
    which = int(overlap.argmax())
    if overlap[which] < 0.85:
        return None
    if marks.style == "outlined":
        inner = _drawn(
            shapes[which], radii[which : which + 1], x, y, (height, width), line_width((height, width))
        )[0]
        of_line, of_whole = (
            _overlap(drawn, marks.amount * near) for drawn in (drawings[which] - inner, drawings[which])
        )
        if of_line < max(0.7, of_whole):
            return None
    size = min(SIZES, key=lambda name: abs(np.log(radii[which] / SIZES[name])))
    return Thing(shapes[which], list(COLOURS)[colour], size), x, y


def _overlap(drawings: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[...] the area that drawings [..., H, W] and a mask [H, W] share, as a share of what either covers."""
    return np.minimum(drawings, mask).sum((-2, -1)) / np.maximum(drawings, mask).sum((-2, -1))


def _colour(marks: _Marks, part: np.ndarray) -> int | None:
    """The index of the one colour of a part [H, W]; None where it has several, or is not filled as its style is."""
    core = part & (marks.amount > (0.9 if marks.style == "filled" else 0.6))
    if not core.any():
        return None
    colour = int(np.bincount(marks.colours[core]).argmax())
    # Between the colour and the background, as far as the pixel is covered.
    share = np.where(marks.style == "filled", 1, marks.amount[core])[:, None]
    off = np.linalg.norm(marks.pixels[core] - (marks.paper + share * (PALETTE[colour] - marks.paper)), axis=1)
    if ((marks.colours[core] == colour) & (off < 70)).mean() < 0.85:
        return None
    return None if marks.style == "filled" and core.sum() < 0.4 * part.sum() else colour


def _templates(height: int, width: int, x: float, y: float) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Shapes, radii and drawings [n, H, W] of what could have its centroid at (x, y)."""
    small, large = SIZES.values()
    radii = np.geomspace(small * 0.85, large * 1.15, 12)
    drawings = np.concatenate([_drawn(shape, radii, x, y, (height, width)) for shape in SHAPES])
    return [shape for shape in SHAPES for _ in radii], np.tile(radii, len(SHAPES)), drawings


def _drawn(
    shape: str, radii: np.ndarray, x: float, y: float, size: tuple[int, int], inset: float = 0.0
) -> np.ndarray:
    """[n, H, W] filled objects of these radii with their centroid at (x, y), smaller by ``inset`` on all sides."""
    lower = 0.34 if shape == "triangle" else 0.0  # its centroid lies below its centre
    return coverage(shape, np.full_like(radii, x), y - lower * radii, radii, size, inset)


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
        right |= _alike(shown, wanted)
        counts["readable"] += 1
        counts["exact"] += right["shape"] and right["colour"] and right["relation"]
        counts["exact_with_size"] += all(right.values())
        for name, is_right in right.items():
            counts[name] += is_right
    return {name: count / max(len(captions), 1) for name, count in counts.items()}


def compare(images: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """How well pictures (uint8 [N, H, W, 3]) show what others show, each in either style, as shares of N.

    `exact`: style, both shapes, both colours and both places; `readable`: two clean objects can be read; `style`,
    `shape`, `colour`, `size`, `place`: that of both objects. Raises LimnerError for one of ``others`` that is no scene.
    """
    names = ("exact", "readable", "style", "shape", "colour", "size", "place")
    counts = dict.fromkeys(names, 0)
    for i, (shown, wanted) in enumerate(zip(read(images), read(others), strict=True)):
        if wanted is None:
            raise LimnerError(
                f"Picture {i} to compare with is not a scene of shapes: choose pictures of shapes."
            )
        if shown is None:
            continue
        distance = np.linalg.norm(shown.places - wanted.places, axis=1)
        right = {"style": shown.style == wanted.style, "place": bool((distance <= _NEAR).all())}
        right |= _alike(shown.scene, wanted.scene)
        counts["readable"] += 1
        counts["exact"] += all(is_right for name, is_right in right.items() if name != "size")
        for name, is_right in right.items():
            counts[name] += is_right
    return {name: count / max(len(images), 1) for name, count in counts.items()}


def _alike(shown: Scene, wanted: Scene) -> dict[str, bool]:
    """Whether both objects of two canonical scenes have the same shape, colour and size."""
    both = (shown.first, wanted.first), (shown.second, wanted.second)
    return {
        name: all(getattr(s, name) == getattr(w, name) for s, w in both)
        for name in ("shape", "colour", "size")
    }
