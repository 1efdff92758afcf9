"""Pictures that are drawn rather than read, to learn a style from: a mosaic and waves, always the same."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

CELLS, BANDS = 90, 14  # cells of a mosaic; colours of the waves


def _mosaic(side: int, generator: Generator) -> Tensor:
    """The cells of random points, most of them in warm colours, with dark joints."""
    places = torch.rand(CELLS, 2, generator=generator)
    hues = torch.rand(CELLS, 3, generator=generator)
    hues = torch.where(
        hues[:, :1] < 0.6, hues * torch.tensor([0.3, 0.4, 0.0]) + torch.tensor([0.7, 0.3, 0.1]), hues
    )
    near, which = torch.cdist(_grid(side), places).topk(2, largest=False)  # [side^2, 2]
    joint = (near[:, 1] - near[:, 0]).mul(60).clamp(0, 1)[:, None]
    return 2 * hues[which[:, 0]] * joint - 1  # [side^2, 3]


def _waves(side: int, generator: Generator) -> Tensor:
    """Bands of blue, white and gold along bent lines."""
    x, y = _grid(side).unbind(1)
    bend = sum(
        a * torch.sin(6.3 * (f * x + g * y) + p)
        for a, f, g, p in (
            torch.rand(6, 4, generator=generator) * torch.tensor([0.12, 3.0, 3.0, 6.3])
        ).tolist()
    )
    hues = torch.rand(BANDS, 1, generator=generator) * torch.tensor([0.9, 0.8, 0.3])
    hues = hues + torch.tensor([0.0, 0.1, 0.5]) * torch.rand(BANDS, 1, generator=generator)
    band = 40 * (y + bend)
    edge = (band - band.floor()).mul(torch.pi).sin()[:, None]
    return 2 * (hues[band.floor().long() % BANDS] * (0.4 + 0.6 * edge)).clamp(0, 1) - 1  # [side^2, 3]


def _grid(side: int) -> Tensor:
    """[side^2, 2], the places of pixels in [0, 1]."""
    line = (torch.arange(side) + 0.5) / side
    return torch.cartesian_prod(line, line).flip(1)


PATTERNS: dict[str, Callable[[int, Generator], Tensor]] = {"mosaic": _mosaic, "waves": _waves}


def draw_pattern(name: str, side: int) -> Tensor:
    """[3, side, side] in [-1, 1], one of PATTERNS."""
    with torch.device("cpu"):
        pixels = PATTERNS[name](side, torch.Generator().manual_seed(3))
    return pixels.T.unflatten(1, (side, side))
