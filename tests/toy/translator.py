"""A family that makes its images from given pictures of another size and other channels, as small as can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, LimnerError, Model, Objective, Optimiser

from limner.core import Preset, Training  # isort: skip


@dataclass(frozen=True)
class Config:
    kernel: int = 3


class Translator(Model):
    Config = Config
    given_by = ("pairs", "domains")
    averaged = ("network",)
    paper, about = "none", "a convolution of the given picture"

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        if spec.given is None:
            raise LimnerError("translator needs given pictures: name two sources, the given pictures first.")
        self.network = nn.Conv2d(spec.given.channels, spec.channels, config.kernel, padding="same")

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def make(self, given: Tensor) -> Tensor:
        """[B, C', h, w] -> [B, C, H, W]"""
        return F.interpolate(self.network(given), (self.spec.height, self.spec.width))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.condition.image is not None
        made = self.make(batch.condition.image) + 0.01 * torch.randn_like(batch.image)
        return {"square": (made - batch.image).square().mean()}

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: object, draws: Draws) -> Iterator[Canvas]:
        assert condition.image is not None
        picture = self.make(condition.image)
        yield Canvas(1, 1, lambda: picture)


Translator.presets = {
    "tiny": Preset(
        Config(),
        Training(batch=8, optimisers={"network": Optimiser(lr=0.01)}, schedule="constant", average=64.0),
    )
}
