"""Who sees whom in a stream of text positions and then an image, row by row (Ramesh 2021, appendix B.1 and figure 11).

Every mask is [text + h w] square and True where a position (row) sees another (column). A position sees itself and text
before it; an image position sees all text, and of the image what its pattern says.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Pattern = Literal["full", "row", "column", "conv"]


def published_patterns(depth: int) -> list[Pattern]:
    """The pattern of each layer: the last one conv; else, counted from 1, column where (i - 2) mod 4 = 0, else row."""
    patterns: list[Pattern] = ["column" if i % 4 == 1 else "row" for i in range(depth)]
    return [*patterns[:-1], "conv"]


def sees(pattern: Pattern, distance: Tensor, width: int, kernel: int) -> Tensor:
    """Whether an image position sees the one that lies ``distance`` >= 0 before it in raster order, over row ends."""
    if pattern == "full":
        return torch.ones_like(distance, dtype=torch.bool)
    if pattern == "row":  # itself and as many as a row has; the last is the one above
        return distance <= width
    if pattern == "column":
        return distance % width == 0
    half = kernel // 2  # of each of the rows above, the positions at most so far from the one above
    return torch.stack([(distance - row * width).abs() <= half for row in range(half + 1)]).any(0)


@lru_cache(maxsize=64)
def stream_mask(
    pattern: Pattern, text: int, grid: tuple[int, int], kernel: int = 11, device: torch.device | None = None
) -> Tensor:
    """[text + h w, text + h w]; ``kernel`` is the side of conv's window."""
    height, width = grid
    position = torch.arange(text + height * width, device=device)
    query, key = position[:, None], position[None]
    image = (query >= text) & (key >= text)
    distance = (query - key).clamp(min=0)
    return (query >= key) & (~image | sees(pattern, distance, width, kernel))


@lru_cache(maxsize=64)
def visible_keys(
    pattern: Pattern, text: int, grid: tuple[int, int], kernel: int = 11, device: torch.device | None = None
) -> list[Tensor]:
    """For each position of ``stream_mask`` the indices of those that it sees, in order."""
    return [row.nonzero()[:, 0] for row in stream_mask(pattern, text, grid, kernel, device)]
