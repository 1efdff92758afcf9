"""A picture of any size through a network that Translates: whole where its memory is enough, else in tiles.

A tile overlaps its neighbours by as much as the network sees, so tiles equal the untiled result. Norms over the
picture (networks/instance.py) are given the statistics of the whole picture: no overlap would do. Where the whole
picture does not fit the memory, these are the statistics of the largest thumbnail that does (Chen 2022, URST).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.core import Condition, Draws, LimnerError, Model, Translates, mix
from limner.data.images.whole import resized
from limner.inference.footprint import Footprint, footprint, in_use
from limner.inference.threads import THREADS
from limner.networks.images.padding import pad_reflected, reflected
from limner.networks.instance import Moments, moments, picture_norms, statistics_from
from limner.progress import Watch, ignore

KEPT = 0.9  # of the memory that tiles may fill: what is freed between them is not all returned
BLOCK = 64  # pixels a side of the blocks that the noise of a picture is drawn in


@dataclass(frozen=True)
class Span:
    """One side of a tile, in pixels of the given picture, padded."""

    start: int  # what the tile is for
    stop: int
    seen_start: int  # what its network is given
    seen_stop: int


Tile = tuple[Span, Span]  # down, across


def cut(length: int, count: int, factor: int, margin: int) -> list[Span]:
    """A padded side in at most ``count`` parts, all borders at multiples of ``factor``."""
    part = -(-length // (count * factor)) * factor
    margin = -(-margin // factor) * factor
    return [
        Span(at, min(at + part, length), max(0, at - margin), min(at + part + margin, length))
        for at in range(0, length, part)
    ]


def whole(height: int, width: int) -> Tile:
    """A picture in one tile."""
    return Span(0, height, 0, height), Span(0, width, 0, width)


def plan(height: int, width: int, factor: int, margin: int, most: float) -> list[Tile]:
    """The tiles of a padded picture whose networks see the fewest pixels in all, each at most ``most``.

    None where even the smallest tile has more.
    """
    if height * width <= most:
        return [whole(height, width)]
    best: tuple[int, list[Tile]] = (0, [])
    margin = -(-margin // factor) * factor
    for rows in range(1, height // factor + 1):
        downs = cut(height, rows, factor, margin)
        tall = max(span.seen_stop - span.seen_start for span in downs)
        core = int(most / tall) // factor * factor
        core = core if core >= width else core - 2 * margin
        if core < factor:
            continue
        across = cut(width, -(-width // core), factor, margin)
        area = sum(d.seen_stop - d.seen_start for d in downs) * sum(
            a.seen_stop - a.seen_start for a in across
        )
        if not best[1] or area < best[0]:
            best = area, [(d, a) for d in downs for a in across]
        elif area > 2 * best[0]:
            break
    return best[1]


class PictureDraws(Draws):
    """The random numbers of a tile: a map's by their places in the whole picture, so that tiles fit together."""

    def __init__(self, seed: int, tile: Tile, device: torch.device):
        super().__init__([seed], device)
        self.seed, self.tile, self.calls = seed, tile, 0

    def normal(self, *shape: int) -> Tensor:
        """[1, *shape]; [C, k h, k w] for a tile of h x w pixels is a part of the picture's noise."""
        down, across = self.tile
        height, width = down.seen_stop - down.seen_start, across.seen_stop - across.seen_start
        if len(shape) != 3 or shape[1] % height or shape[1] // height * width != shape[2]:
            return super().normal(*shape)
        k, self.calls = shape[1] // height, self.calls + 1
        top, left = k * down.seen_start, k * across.seen_start
        noise = torch.empty(shape)
        for y in range(top // BLOCK * BLOCK, top + shape[1], BLOCK):
            for x in range(left // BLOCK * BLOCK, left + shape[2], BLOCK):
                seeded = torch.Generator().manual_seed(mix(self.seed, self.calls, y // BLOCK, x // BLOCK))
                block = torch.randn((shape[0], BLOCK, BLOCK), generator=seeded)
                block = block[:, max(0, top - y) : top + shape[1] - y, max(0, left - x) : left + shape[2] - x]
                at_y, at_x = max(y - top, 0), max(x - left, 0)
                noise[:, at_y : at_y + block.shape[1], at_x : at_x + block.shape[2]] = block
        return noise[None].to(self.device)  # [1, C, k h, k w]


@dataclass
class Translator:
    """One model with its settings, which translates pictures of any size within a bound on memory."""

    model: Model
    sampling: Any
    memory: int  # bytes that the process may have
    seed: int = 0
    taken: Footprint | None = field(default=None, init=False)  # of the network, once measured

    def __post_init__(self) -> None:
        assert isinstance(self.model, Translates)
        self.network: Translates = self.model
        self.channels = (self.model.spec.given or self.model.spec).channels

    def __call__(self, pixels: np.ndarray, watch: Watch = ignore) -> np.ndarray:
        """uint8 or uint16 [H, W, C] -> the same of [scale H, scale W, C'].

        Raises LimnerError where the memory is too little, and for a result that holds NaN.
        """
        height, width = (
            max(2, -(-side // self.network.factor)) * self.network.factor for side in pixels.shape[:2]
        )
        tiles = self._plan(pixels, height, width)
        source = nullcontext() if len(tiles) == 1 else self._statistics(pixels, watch)
        with source, THREADS.at_work(self.model.device):
            return self.in_tiles(pixels, tiles, watch)

    def _plan(self, pixels: np.ndarray, height: int, width: int) -> list[Tile]:
        """The tiles of a picture padded to (height, width)."""
        scale, margin = self.network.scale, self.network.margin(self.sampling)
        taken = self.footprint  # measured first, since libraries keep memory once they have run
        result = pixels.itemsize * self.model.spec.channels * scale**2 * pixels.shape[0] * pixels.shape[1]
        memory = KEPT * self.memory - in_use(self.model.device) - result
        tiles = plan(height, width, self.network.factor, margin or 0, taken.most(memory))
        if tiles and (len(tiles) == 1 or margin is not None):
            return tiles
        side = 2 * self.network.factor + 2 * (margin or 0)
        least = (taken.of(height * width if margin is None else side**2) + KEPT * self.memory - memory) / KEPT
        whole = "has to see the picture as a whole, which" if margin is None else "in its smallest tiles"
        raise LimnerError(
            f"{pixels.shape[1]}x{pixels.shape[0]} pixels do not fit --memory {self.memory / 1e9:.2g}GB: this network "
            f"{whole} takes {least / 1e9:.2g}GB; allow that, or scale the picture down."
        )

    @property
    def footprint(self) -> Footprint:
        if self.taken is None:
            self.taken = footprint(self._run_zeros, self.network.factor)
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

    def _statistics(self, pixels: np.ndarray, watch: Watch) -> Any:
        """The context in which norms have the statistics of the largest thumbnail that fits the memory."""
        if not picture_norms(self.model):
            return nullcontext()
        most = self.footprint.most(KEPT * self.memory - in_use(self.model.device))
        return self.statistics_of(thumbnail(pixels, most, self.network.factor))

    def statistics_of(self, pixels: np.ndarray) -> Any:
        """The context in which norms have the statistics that they have in this picture."""
        known: list[Moments] = []

        def record(x: Tensor, groups: int) -> Moments:
            known.append(moments(x, groups))
            return known[-1]

        given = pad_reflected(as_tensor(pixels), self.network.factor)
        with statistics_from(self.model, record), THREADS.at_work(self.model.device):
            self._run(given, whole(*given.shape[2:]))
        return statistics_from(self.model, _Again(known))


class _Again:
    """Gives what was recorded, in the same order for each tile."""

    def __init__(self, known: list[Moments]):
        self.known, self.at = known, 0

    def __call__(self, x: Tensor, groups: int) -> Moments:
        found = self.known[self.at % len(self.known)]
        self.at += 1
        return found


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
