"""Clips of scenes, at any size, rate and length: filled things on paper, as pictures of `shapes` have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from limner.core import mix
from limner.data.sources.drawing import coverage, paper
from limner.data.sources.moving.paths import paths, times
from limner.data.sources.moving.scenes import Scene
from limner.data.sources.scenes import COLOURS
from limner.settings import LimnerError

LEAST = 24  # pixels of the shorter side
# (shape, x [n], y [n], radius [n], size (height, width), which one of several of that shape, in [0, 1)) -> [n, H, W]
Cover = Callable[[str, np.ndarray, np.ndarray, np.ndarray, tuple[int, int], float], np.ndarray]


def shape_cover(
    shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, size: tuple[int, int], which: float
) -> np.ndarray:
    """[n, H, W] share of each pixel that n objects of one shape cover."""
    return coverage(shape, x, y, radius, size)


@dataclass(frozen=True)
class Clip:
    """What a clip is drawn from: the same one at another size, rate or length shows the same motion."""

    scene: Scene
    seed: int
    cover: Cover = shape_cover

    def draw(self, height: int, width: int, frames: int = 16, rate: float | None = None) -> np.ndarray:
        """uint8 [T, H, W, 3] at so many frames a second. Raises LimnerError for pictures that are too small."""
        if min(height, width) < LEAST:
            raise LimnerError(
                f"things that move cannot be distinguished at {height}x{width}: choose {LEAST}x{LEAST} or larger"
            )
        rng = np.random.default_rng(mix("clip", self.seed))
        canvas = np.repeat(paper(1, height, width, rng), frames, 0)  # [T, H, W, 3]
        which = rng.random(2)
        moving = paths(self.scene, (height, width), rng)
        for actor, path, own in zip(self.scene.actors, moving, which, strict=False):
            (places,), (radii,) = path.at(times(frames, rate))  # [T, 2], [T]
            x, y = places.T
            cover = self.cover(actor.thing.shape, x, y, radii, (height, width), float(own))
            canvas += cover[..., None] * (np.array(COLOURS[actor.thing.colour], np.float32) - canvas)
        return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
