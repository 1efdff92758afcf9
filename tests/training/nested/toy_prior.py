"""The third: it draws from how often each token occurs, at half the image's size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import (
    Batch,
    Canvas,
    Condition,
    Draws,
    ImageSpec,
    LimnerError,
    Model,
    Objective,
    Optimiser,
    Parent,
    Preset,
    Tokenises,
    Training,
)
from limner.families import toy_tokeniser  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Config:
    tokeniser: str = ""  # run that turns images into integers
    tokens: toy_tokeniser.Config = field(default_factory=toy_tokeniser.Config)  # its settings
    factor: int = 2  # the image's side over that of the tokeniser's images


def smaller(config: Config, spec: ImageSpec) -> tuple[int, int]:
    return spec.height // config.factor, spec.width // config.factor


class ToyPrior(Model):
    Config = Config
    averaged = ("prior",)
    parents = {
        "tokeniser": Parent(
            Tokenises,
            "a tokeniser",
            config="tokens",
            weights="tokeniser",
            family="toy_tokeniser",
            size=smaller,
        )
    }

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        height, width = smaller(config, spec)
        if spec.height % config.factor or spec.width % config.factor:
            raise LimnerError(f"toy_prior needs sides that {config.factor} divides: set --model.factor.")
        self.tokeniser = toy_tokeniser.ToyTokeniser(config.tokens, ImageSpec(spec.channels, height, width))
        self.prior = nn.Linear(1, config.tokens.codes)

    def logits(self) -> Tensor:
        return self.prior(torch.ones(1, 1))[0]

    def objectives(self) -> list[Objective]:
        return [Objective("prior", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        height, width = smaller(self.config, self.spec)
        tokens = self.tokeniser.tokenise(F.interpolate(batch.image, (height, width), mode="area"))
        return {"nats": F.cross_entropy(self.logits().expand(tokens.numel(), -1), tokens.flatten())}

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: Any, draws: Draws) -> Iterator[Canvas]:
        height, width = (side // 2 for side in smaller(self.config, self.spec))
        rows = self.logits().softmax(0).expand(condition.size, -1)
        tokens = torch.stack([draws.choose(rows) for _ in range(height * width)], 1).view(-1, height, width)
        picture = F.interpolate(self.tokeniser.detokenise(tokens), scale_factor=float(self.config.factor))
        yield Canvas(1, 1, lambda: picture.clamp(-1, 1))


ToyPrior.presets = {"tiny": Preset(Config(), Training(batch=8, optimisers={"prior": Optimiser(lr=1e-2)}))}
