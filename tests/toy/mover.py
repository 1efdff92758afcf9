"""A family that draws clips, as small as can be: a bright square that moves right from a place of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limner.core import (
    Batch,
    Canvas,
    Condition,
    Draws,
    ImageSpec,
    Model,
    Objective,
    Optimiser,
    Preset,
    Training,
)
from limner.settings import NoSampling


@dataclass(frozen=True)
class Config:
    speed: int = 1  # pixels a frame


class Mover(Model):
    Config = Config
    reads = frozenset({"label", "text"})
    video = True
    averaged = ("network",)
    paper, about = "none", "a square that moves"

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        self.network = nn.Linear(1, 1)

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"square": (self.network(batch.image.flatten()[:1]) - 1).square().mean()}

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: NoSampling, draws: Draws) -> Iterator[Canvas]:
        shape = self.spec.shape  # (C, T, H, W)
        starts = draws.integers(shape[3], 1)[:, 0].tolist()
        clips = torch.full((len(starts), *shape), -1.0, device=draws.device)
        for clip, start in zip(clips, starts, strict=True):
            for t in range(shape[1]):
                across = (torch.arange(3) + start + self.config.speed * t) % shape[3]
                clip[:, t, 2:5, across] = 1.0
        yield Canvas(1, 2, lambda: clips / 2)
        yield Canvas(2, 2, lambda: clips)


Mover.presets = {"tiny": Preset(Config(), Training(batch=4, optimisers={"network": Optimiser(lr=0.01)}))}
