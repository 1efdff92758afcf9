"""Where the tiles of a picture lie, and the random numbers that belong to its places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limner.core import Draws, mix

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
