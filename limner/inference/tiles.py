"""A picture of any size through a network that Translates: whole where its memory is enough, else in tiles.

A tile overlaps its neighbours by as much as the network sees, so tiles equal the untiled result. Norms over the
picture (networks/instance.py) are given the statistics of the whole picture: no overlap would do. Where the whole
picture does not fit the memory, these are the statistics of the largest thumbnail that does (Chen 2022, URST), or by
request those of all tiles, one call of a norm after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.core import Condition, LimnerError, Model, Translates
from limner.data.images.whole import resized
from limner.device import return_freed_memory
from limner.inference.footprint import Footprint, footprint, in_use
from limner.inference.statistics import Enough, Pooled, Recorded, pool
from limner.inference.threads import THREADS
from limner.inference.tile_plan import PictureDraws, Tile, plan, whole
from limner.networks.images.padding import pad_reflected, padded_side, reflected
from limner.networks.instance import Moments, moments, picture_norms, statistics_from
from limner.progress import Watch, ignore

KEPT = 0.9  # of the memory that tiles may fill: what is freed between them is not all returned


@dataclass
class Translator:
    """One model with its settings, which translates pictures of any size within a bound on memory."""

    model: Model
    sampling: Any
    memory: int  # bytes that the process may have
    seed: int = 0
    exact: bool = False  # statistics of the whole picture also where it does not fit the memory
    fixed: list[Moments] | None = None  # of norms: the same for all pictures, such as the frames of a clip
    taken: Footprint | None = field(default=None, init=False)  # of the network, once measured

    def __post_init__(self) -> None:
        assert isinstance(self.model, Translates)
        self.network: Translates = self.model
        self.channels = self.network.channels_taken(self.sampling)

    def __call__(self, pixels: np.ndarray, watch: Watch = ignore, fixed: bool = True) -> np.ndarray:
        """uint8 or uint16 [H, W, C] -> the same of [scale H, scale W, C']; not ``fixed``: by its own statistics.

        Raises LimnerError where the memory is too little, and for a result that holds NaN.
        """
        factor, least = self.network.factor, self.network.least
        height, width = (padded_side(side, factor, least) for side in pixels.shape[:2])
        tiles = self._plan(pixels, height, width)
        if fixed and self.fixed:
            source: Any = statistics_from(self.model, Recorded(self.fixed))
        else:
            source = nullcontext() if len(tiles) == 1 else self._statistics(pixels, tiles)
        with source, THREADS.at_work(self.model.device):
            return self.in_tiles(pixels, tiles, watch)

    def _plan(self, pixels: np.ndarray, height: int, width: int) -> list[Tile]:
        """The tiles of a picture padded to (height, width)."""
        scale, margin = self.network.scale, self.network.margin(self.sampling)
        taken = self.footprint  # measured first, since libraries keep memory once they have run
        result = pixels.itemsize * self.model.spec.channels * scale**2 * pixels.shape[0] * pixels.shape[1]
        if taken.of(height * width) > self.memory / 4:
            return_freed_memory()
        memory = KEPT * self.memory - in_use(self.model.device) - result
        tiles = plan(height, width, self.network.factor, margin or 0, taken.most(memory))
        if tiles and (len(tiles) == 1 or margin is not None):
            return tiles
        side = self.network.least * self.network.factor + 2 * (margin or 0)
        least = (taken.of(height * width if margin is None else side**2) + KEPT * self.memory - memory) / KEPT
        whole = "has to see the picture as a whole, which" if margin is None else "in its smallest tiles"
        raise LimnerError(
            f"{pixels.shape[1]}x{pixels.shape[0]} pixels do not fit --memory {self.memory / 1e9:.2g}GB: this network "
            f"{whole} takes {least / 1e9:.2g}GB; allow that, or scale the picture down."
        )

    @property
    def footprint(self) -> Footprint:
        if self.taken is None:
            self.taken = footprint(self._run_zeros, self.network.factor, self.network.least)
        return self.taken

    def _run_zeros(self, height: int, width: int) -> None:
        self._run(torch.zeros(1, self.channels, height, width), whole(height, width))

    @torch.inference_mode()
    def _run(self, given: Tensor, tile: Tile) -> Tensor:
        """[1, C, h, w] -> [1, C', scale h, scale w]"""
        given = given.to(self.model.device, memory_format=torch.channels_last)
        draws = PictureDraws(self.seed, tile, self.model.device)
        with THREADS.unit(("apply", self.model.family, *given.shape)):
            return self.network.translate(given, Condition(1, image=given), self.sampling, draws)

    def in_tiles(self, pixels: np.ndarray, tiles: list[Tile], watch: Watch = ignore) -> np.ndarray:
        """As ``__call__``, in these tiles."""
        scale, (height, width) = self.network.scale, pixels.shape[:2]
        out: np.ndarray | None = None
        for done, tile in enumerate(tiles):
            down, across = tile
            part = self._core(pixels, tile)
            if out is None:
                out = np.empty((scale * height, scale * width, part.shape[2]), pixels.dtype)
            place = (
                slice(scale * down.start, scale * down.stop),
                slice(scale * across.start, scale * across.stop),
            )
            out[place] = part
            if len(tiles) > 1:
                return_freed_memory()
            watch((done + 1) / len(tiles))
        assert out is not None
        return out

    def _core(self, pixels: np.ndarray, tile: Tile) -> np.ndarray:
        """What a tile is for, of the result, without what the picture was padded by."""
        scale = self.network.scale
        index = [
            reflected(side, span.seen_stop)[span.seen_start :]
            for side, span in zip(pixels.shape[:2], tile, strict=True)
        ]
        result = self._run(as_tensor(pixels[np.ix_(*(places.numpy() for places in index))]), tile)
        down, across = (
            slice(scale * (span.start - span.seen_start), scale * (min(span.stop, side) - span.seen_start))
            for side, span in zip(pixels.shape[:2], tile, strict=True)
        )
        return as_pixels(result[0, :, down, across], pixels.dtype)

    def _statistics(self, pixels: np.ndarray, tiles: list[Tile]) -> Any:
        """The context in which norms have the statistics of the picture, or of a thumbnail that fits the memory."""
        if not picture_norms(self.model):
            return nullcontext()
        if self.exact:
            return statistics_from(self.model, Recorded(self.exact_statistics(pixels, tiles)))
        most = self.footprint.most(KEPT * self.memory - in_use(self.model.device))
        return self.statistics_of(thumbnail(pixels, most, self.network.factor))

    def statistics_of(self, pixels: np.ndarray) -> Any:
        """The context in which norms have the statistics that they have in this picture."""
        return statistics_from(self.model, Recorded(self.record(pixels)))

    def fix_statistics(self, frames: Iterable[np.ndarray]) -> None:
        """Give norms the same statistics in every picture from now on: those of these frames together."""
        known = []
        for pixels in frames if picture_norms(self.model) else ():
            factor, least = self.network.factor, self.network.least
            area = math.prod(padded_side(side, factor, least) for side in pixels.shape[:2])
            most = self.footprint.most(KEPT * self.memory - in_use(self.model.device))
            known.append(self.record(pixels if area <= most else thumbnail(pixels, most, factor)))
        self.fixed = [pool([(1, *each) for each in calls]) for calls in zip(*known, strict=True)]

    def record(self, pixels: np.ndarray) -> list[Moments]:
        """The statistics of each call of a norm in this picture."""
        known: list[Moments] = []

        def record(x: Tensor, groups: int) -> Moments:
            known.append(moments(x, groups))
            return known[-1]

        given = pad_reflected(as_tensor(pixels), self.network.factor, self.network.least)
        with statistics_from(self.model, record), THREADS.at_work(self.model.device):
            self._run(given, whole(*given.shape[2:]))
        return_freed_memory()
        return known

    def exact_statistics(self, pixels: np.ndarray, tiles: list[Tile]) -> list[Moments]:
        """Those of each norm's call over the whole picture: one pass over the tiles for each, up to that call."""
        known: list[Moments] = []
        for ratio in self._ratios():
            pooled = Pooled(known, ratio)
            for tile in tiles:
                pooled.tile = tile
                with (
                    statistics_from(self.model, pooled),
                    suppress(Enough),
                    THREADS.at_work(self.model.device),
                ):
                    self._core(pixels, tile)
                return_freed_memory()
            known.append(pooled.moments())
        return known

    def _ratios(self) -> list[Fraction]:
        """Pixels a side of each norm's input for one of the given picture; 0: not of the picture, but of a style."""
        sides: list[list[int]] = []
        for side in (8 * self.network.factor, 12 * self.network.factor):
            sides.append([])

            def note(x: Tensor, groups: int, found: list[int] = sides[-1]) -> Moments:
                found.append(x.shape[2])
                return moments(x, groups)

            with statistics_from(self.model, note):
                self._run_zeros(side, side)
        return [Fraction(b - a, 4 * self.network.factor) for a, b in zip(*sides, strict=True)]


def thumbnail(pixels: np.ndarray, most: float, factor: int) -> np.ndarray:
    """[H, W, C] scaled down to at most ``most`` pixels once it is padded."""
    height, width = pixels.shape[:2]
    share = min(1.0, (most / (height * width)) ** 0.5)
    across, down = (max(1, int(share * side) // factor * factor) for side in (width, height))
    return resized(pixels, (across, down), Image.Resampling.BICUBIC)


def as_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 or uint16 [H, W, C] -> [1, C, H, W] in [-1, 1]"""
    values = torch.from_numpy(pixels.astype(np.float32)).mul_(2 / np.iinfo(pixels.dtype).max).sub_(1)
    return values.permute(2, 0, 1)[None]


@torch.inference_mode()
def as_pixels(image: Tensor, dtype: np.dtype) -> np.ndarray:
    """[C, H, W] in [-1, 1], which is changed in place -> uint8 or uint16 [H, W, C]. Raises LimnerError for NaN."""
    if bool(image.isnan().any()):
        raise LimnerError(
            "The result holds NaN, so the training of this run has gone wrong: use an earlier checkpoint, or train "
            "again with a lower learning rate."
        )
    values = image.float().clamp_(-1, 1).add_(1).mul_(np.iinfo(dtype).max / 2).round_()
    return values.permute(1, 2, 0).cpu().numpy().astype(dtype)
