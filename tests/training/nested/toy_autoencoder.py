"""The first of three families that build on one another, as small as can be: an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from limner.core import Batch, ImageSpec, Model, Objective, Optimiser, Preset, Training


@dataclass(frozen=True)
class Config:
    width: int = 4  # channels of a code


class ToyAutoencoder(Model):
    Config = Config

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        self.network = nn.ModuleList(
            [
                nn.Conv2d(spec.channels, config.width, 2, stride=2),
                nn.ConvTranspose2d(config.width, spec.channels, 2, stride=2),
            ]
        )

    def encode(self, image: Tensor) -> Tensor:
        return self.network[0](image)  # [B, width, H / 2, W / 2]

    def decode(self, code: Tensor) -> Tensor:
        return self.network[1](code)  # [B, C, H, W]

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"square": (self.decode(self.encode(batch.image)) - batch.image).square().mean()}


ToyAutoencoder.presets = {
    "tiny": Preset(Config(), Training(batch=8, optimisers={"network": Optimiser(lr=1e-2)}))
}
