"""The second: its integers are the nearest entries to the codes of a frozen autoencoder, which may be any."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from limner.core import Autoencodes, Batch, ImageSpec, Model, Objective, Optimiser, Parent, Preset, Training
from limner.families import toy_autoencoder  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Config:
    autoencoder: str = ""  # run of an autoencoder
    codec: toy_autoencoder.Config = field(default_factory=toy_autoencoder.Config)  # its settings
    codes: int = 8  # entries of the codebook


class ToyTokeniser(Model):
    Config = Config
    averaged = ("entries",)
    parents = {
        "autoencoder": Parent(
            Autoencodes, "an autoencoder", config="codec", weights="autoencoder", family="toy_autoencoder"
        )
    }

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        self.codes = config.codes
        self.autoencoder = toy_autoencoder.ToyAutoencoder(config.codec, spec)
        self.entries = nn.Embedding(config.codes, config.codec.width)

    def codebook(self) -> Tensor:
        return self.entries.weight

    def tokenise(self, image: Tensor) -> Tensor:
        code = self.autoencoder.encode(image).movedim(1, -1)  # [B, h, w, D]
        return torch.cdist(code.flatten(0, 2), self.codebook()).argmin(1).view(code.shape[:3])

    def detokenise(self, tokens: Tensor) -> Tensor:
        return self.autoencoder.decode(self.entries(tokens).movedim(-1, 1))

    def objectives(self) -> list[Objective]:
        return [Objective("entries", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        code = self.autoencoder.encode(batch.image).movedim(1, -1)
        return {"distance": (self.entries(self.tokenise(batch.image)) - code).square().mean()}


ToyTokeniser.presets = {
    "tiny": Preset(Config(), Training(batch=8, optimisers={"entries": Optimiser(lr=1e-2)}))
}
