"""The sheets that a training draws of models that are given pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limner.core import Batch, Condition, Draws, ImageSpec, Model
from limner.inference.sheets import sample_grid


@dataclass(frozen=True)
class Sampling:
    shift: float = 0.5


@dataclass(frozen=True)
class BothWays(Sampling):
    direction: str = "forward"


class Brighter(Model):
    """Enlarges twice and brightens by half; notes the seeds that it is given."""

    Config, Sampling = object, Sampling
    given_by = ("degraded",)
    scale, factor = 2, 4

    def __init__(self, spec: ImageSpec):
        super().__init__(object(), spec)
        self.seeds: list[Any] = []
        self.weight = nn.Parameter(torch.zeros(()))

    def margin(self, sampling: Any) -> int | None:
        return 0

    def degrade(self, image: Tensor, draws: Draws) -> Tensor:
        self.seeds += draws.seeds
        return image[..., ::2, ::2]

    def translate(self, image: Tensor, condition: Condition, sampling: Any, draws: Draws) -> Tensor:
        assert image.shape[-1] % self.factor == image.shape[-2] % self.factor == 0
        sign = -1 if getattr(sampling, "direction", "") == "backward" else 1
        enlarged = image.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)
        return enlarged + sign * sampling.shift


def data_of(image: Tensor, given: Tensor | None, paired: bool = True) -> Any:
    """As much of ``Data`` as a sheet asks for."""

    def batch(rows: np.ndarray) -> Batch:
        picture = None if given is None else given[rows]
        return Batch(image[rows], Condition(len(rows), image=picture))

    return SimpleNamespace(order=lambda seen, n, seed: np.arange(n), batch=batch, paired=paired)


def columns(sheet: Any, count: int) -> list[int]:
    """The red of the middle of each column in the first row of a sheet."""
    pixels = np.asarray(sheet)
    return [int(pixels[12 + 64, 12 + i * 132 + 64, 0]) for i in range(count)]


def grey(level: float, height: int, width: int, n: int = 2) -> Tensor:
    return torch.full((n, 3, height, width), level)


def test_given_drawn_and_wanted_stand_side_by_side() -> None:
    model = Brighter(ImageSpec(3, 20, 20)).train()
    sheet = sample_grid(model, data_of(grey(0.0, 20, 20), None), 2)
    assert sheet is not None and model.seeds == [0, 1] and model.training
    assert columns(sheet, 3) == [128, 191, 128], "given, drawn, wanted"
    assert sample_grid(model, data_of(grey(0.0, 20, 20), None), 0) is None


def test_domains_are_shown_both_ways_where_a_model_goes_both(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Brighter(replace(ImageSpec(3, 16, 16), given=ImageSpec(3, 16, 16)))
    monkeypatch.setattr(model, "scale", 1)
    data = data_of(grey(0.2, 16, 16), grey(-0.6, 16, 16), paired=False)
    one_way = sample_grid(model, data, 2)
    monkeypatch.setattr(Brighter, "Sampling", BothWays)
    both = sample_grid(model, data, 2)
    assert one_way is not None and both is not None
    assert columns(one_way, 2) == [51, 115] and columns(both, 4) == [51, 115, 153, 89]
    assert both.width - one_way.width == 2 * 132 or both.width > one_way.width
