"""A family that draws step by step, with settings of every kind, as small as can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, Model, Objective, Optimiser

from limner.core import Preset, Training  # isort: skip
from limner.fields import Bounds, Checked, PositiveShare


@dataclass(frozen=True)
class Config:
    width: int = 1


@dataclass(frozen=True)
class Sampling(Checked):
    steps: int = 3  # strokes
    # how much of what is there
    # each stroke leaves
    left: PositiveShare = 0.5
    tone: Literal["plain", "bright"] = "plain"  # of the result
    edge: Annotated[float, Bounds(0, 1, below=True)] | None = None  # share that is black; default: none
    mirror: bool = False  # the other way round
    order: tuple[int, ...] = (1, 2)  # of the strokes
    other: str = field(default="", metadata={"run": True})  # run to mix with
    picture: str = field(default="", metadata={"picture": True})


class Painter(Model):
    Config = Config
    Sampling = Sampling
    reads = frozenset({"label", "image"})
    averaged = ("network",)
    paper, about = "none", "strokes of one colour each"

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        self.network = nn.Linear(1, 1)

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"square": (self.network(batch.image.flatten()[:1]) - 1).square().mean()}

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: Sampling, draws: Draws) -> Iterator[Canvas]:
        condition = self.with_labels(condition, draws)
        picture = draws.normal(*self.spec.shape).clamp(-1, 1)
        if condition.image is not None:
            picture = 0.5 * (picture + condition.image)
        for i in range(sampling.steps):
            stroke = draws.uniform(self.spec.channels, 1, 1) * 2 - 1
            if condition.label is not None:
                stroke = stroke * (condition.label[:, None, None, None] + 1) / len(self.spec.classes)
            picture = sampling.left * picture + (1 - sampling.left) * stroke
            shown = picture.flip(-1) if sampling.mirror else picture
            yield Canvas(i + 1, sampling.steps, lambda shown=shown: shown)


Painter.presets = {"tiny": Preset(Config(), Training(batch=4, optimisers={"network": Optimiser(lr=0.01)}))}
