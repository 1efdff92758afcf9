"""A family that translates pictures of any size, as small as can be: larger, with norms over the picture, by names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, LimnerError, Model, Objective, Optimiser

from limner.core import Preset, Training  # isort: skip
from limner.fields import Checked
from limner.networks.images.padding import pad_reflected
from limner.networks.instance import InstanceNorm


@dataclass(frozen=True)
class Config:
    scale: int = 2
    norm: bool = False
    noise: float = 0.0
    width: int = 8
    restores: bool = True


@dataclass(frozen=True)
class Sampling(Checked):
    direction: Literal["forward", "backward"] = "forward"
    style: str = ""

    def fit(self, model: Model) -> Sampling:
        if self.style and self.style not in ("waves", "mosaic"):
            raise LimnerError(f"There is no style {self.style!r} in this run: it has waves and mosaic.")
        return self


class Network(nn.Module):
    """Half the size, two convolutions, and back: sees 2 + 2 (1 + 1) + 2 (1 + 1) = 10 pixels at most."""

    def __init__(self, channels: int, out: int, config: Config):
        super().__init__()
        width = config.width
        self.down = nn.Conv2d(channels, width, 3, 2, 1)
        self.first = InstanceNorm(width) if config.norm else nn.Identity()
        self.middle = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect")
        self.second = InstanceNorm(width, affine=True) if config.norm else nn.Identity()
        self.up = nn.Conv2d(width, 4 * config.scale**2 * out, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2 * config.scale)
        self.scale = config.scale

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(self.down(x)))  # [B, D, H/2, W/2]
        h = F.relu(self.second(self.middle(h)))
        return self.shuffle(self.up(h))  # [B, C, scale H, scale W]


class Restorer(Model):
    Config = Config
    Sampling = Sampling
    given_by = ("degraded", "pairs")
    averaged = ("network",)
    factor = 2
    paper, about = "none", "two convolutions at half the size"

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        self.scale, self.restores = config.scale, config.restores
        self.network = Network((spec.given or spec).channels, spec.channels, config)

    def margin(self, sampling: Sampling) -> int:
        return 10

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def degrade(self, image: Tensor, draws: Draws) -> Tensor:
        return F.avg_pool2d(image, self.scale)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        given = batch.condition.image
        if given is None:
            given = self.degrade(batch.image, Draws.of_step(len(batch.image)))
        return {"square": (self.network(given) - batch.image).square().mean()}

    def translate(self, image: Tensor, condition: Condition, sampling: Sampling, draws: Draws) -> Tensor:
        result = self.network(image)
        if self.config.noise:
            result = result + self.config.noise * draws.normal(*result.shape[1:])
        return (-result if sampling.direction == "backward" else result).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: Sampling, draws: Draws) -> Iterator[Canvas]:
        assert condition.image is not None
        given = condition.image
        picture = self.translate(pad_reflected(given, self.factor), condition, sampling, draws)
        picture = picture[..., : self.scale * given.shape[2], : self.scale * given.shape[3]]
        yield Canvas(1, 1, lambda: picture)


Restorer.presets = {
    "tiny": Preset(
        Config(),
        Training(batch=8, optimisers={"network": Optimiser(lr=0.01)}, schedule="constant", average=64.0),
    )
}
