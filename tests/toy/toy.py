"""A family as small as can be, for tests of what stands on families; found by its file name like any other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from limner.core import ImageSpec, Model, Optimiser, Preset, Training


@dataclass(frozen=True)
class Stage:
    latent: int = 4  # channels of the code
    rate: float | None = None  # share that is dropped


@dataclass(frozen=True)
class Config:
    width: int = 8  # channels of the first layer
    kind: Literal["plain", "fancy", 3] = "plain"  # a choice
    rates: tuple[float, ...] = (0.1, 0.2)  # any number of them
    pair: tuple[int, str] = (1, "one")  # two of different types
    stage: Stage = field(default_factory=Stage)
    maybe: Stage | None = None
    several: dict[str, Stage] = field(default_factory=dict)
    deep: bool = False  # more layers


@dataclass(frozen=True)
class Sampling:
    steps: int = 10  # network calls
    guidance: float = 2.0  # strength of the condition


def _preset(width: int) -> Preset:
    optimisers = {"generator": Optimiser(lr=2e-4), "discriminator": Optimiser(lr=4e-4)}
    return Preset(Config(width), Training(batch=width, optimisers=optimisers))


class Toy(Model):
    Config = Config
    Sampling = Sampling
    presets = {"tiny": _preset(4), "small": _preset(8)}

    def __init__(self, config: Config, spec: ImageSpec):
        super().__init__(config, spec)
        self.generator = nn.Sequential(
            nn.Conv2d(spec.channels, config.width, 3), nn.BatchNorm2d(config.width)
        )
        self.discriminator = nn.Linear(config.width, 1)
