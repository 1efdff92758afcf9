"""The style of any picture, chosen when it is applied, by a network of half a million parameters.

Wang 2023, "MicroAST: Towards Super-Fast Ultra-Resolution Arbitrary Style Transfer". Trained on two folders that have
nothing in pairs: photographs, and paintings whose styles it learns to take.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from limner.core import Batch, Condition, Draws, ImageSpec, Model, Objective, Preset, given_pictures
from limner.families._presets import training
from limner.families._restyle import (
    LEAST,
    FeatureOptions,
    check_features,
    check_size,
    colours,
    maps_of,
    painted,
    to_bytes,
)
from limner.fields import Checked, Share
from limner.losses.style import content_loss, contrastive_loss, statistics_loss
from limner.networks.images.bicubic import bicubic_to
from limner.networks.images.channels import with_channels
from limner.networks.microast import MicroAST, Signals
from limner.settings import LimnerError, Optimiser

LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")  # of a VGG
LARGEST = 512  # pixels of the shorter side to which a larger style picture is scaled
KEPT = 8  # paintings that a run keeps, to paint with where none is named
FADING = 0.25  # strength below which the result fades into the given picture, which features alone do not give back


@dataclass(frozen=True)
class MicroASTConfig(FeatureOptions):
    content_map: int = 2  # which of its maps holds the content, from 0: the finest
    style: float = 3.0  # weight of the style loss
    contrast: float = 3.0  # weight of the contrastive loss of style signals
    width: int = 16  # feature maps at full size; four times as many at a quarter of the side


@dataclass(frozen=True)
class MicroASTSampling(Checked):
    # file of a style picture; default: one of the paintings that the run was trained on
    style: str = field(default="", metadata={"picture": True})
    strength: Share = 1.0  # share of the style in the statistics of features; 0: the given picture


class Microast(Model):
    """``condition.image`` is the content, ``image`` any painting. Networks and losses see both over white."""

    Config = MicroASTConfig
    Sampling = MicroASTSampling
    given_by = ("domains",)
    averaged = ("network",)
    paper = "Wang 2023, MicroAST: Towards Super-Fast Ultra-Resolution Arbitrary Style Transfer"
    about = "paints a picture in the style of any other, in one call"

    scale: ClassVar[int] = 1
    factor: ClassVar[int] = 4
    paintings: Tensor  # uint8 [KEPT, C, H, W], the last ones that it was trained on

    def __init__(self, config: MicroASTConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if spec.given is None:
            raise LimnerError(
                "microast learns from photographs and paintings: name two sources, the paintings second."
            )
        check_size("microast", spec)
        self.network = MicroAST(colours(spec.given), config.width)
        shape = (KEPT, colours(spec.given), spec.height, spec.width)
        self.register_buffer("paintings", torch.zeros(shape, dtype=torch.uint8))

    def objectives(self) -> list[Objective]:
        check_features(self.config, LAYERS)
        return [Objective("network", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Wang 2023, eq. 8: content, style, and style signals that tell the batch's paintings apart."""
        c, features = self.config, partial(maps_of, self.config, layers=LAYERS)
        content, style = (self.seen(x) for x in (given_pictures(self, batch), batch.image))
        if self.training:
            self.paintings.copy_(torch.cat([to_bytes(style), self.paintings])[:KEPT])
        signals = self.network.signals(style)
        made = self.network(content, signals)  # [B, C, H, W]
        maps = features(made)
        with torch.no_grad():
            wanted, of_style = features(content)[c.content_map], features(style)
        contrast = contrastive_loss(self.network.signals(made).all, signals.all)
        return {
            "content": c.content * content_loss(maps[c.content_map], wanted, c.relative),
            "style": c.style * statistics_loss(maps, of_style, c.relative),
            "contrast": c.contrast * contrast / len(made),
        }

    def seen(self, picture: Tensor) -> Tensor:
        """[B, C, H, W], of the data or of a style picture, in the channels of the network."""
        return with_channels(picture, self.paintings.shape[1])

    def margin(self, sampling: MicroASTSampling) -> int:
        return self.network.margin

    @torch.no_grad()
    def translate(
        self, image: Tensor, condition: Condition, sampling: MicroASTSampling, draws: Draws
    ) -> Tensor:
        signals = self.signals_of(sampling.style, draws)
        made = painted(
            image, lambda x: self.network(x, signals, sampling.strength), min(1.0, sampling.strength / FADING)
        )
        return made  # [B, C, H, W]

    def signals_of(self, style: Any, draws: Draws) -> Signals:
        """Of a style picture [1, C, h, w], or of a painting of the training for each image. Raises LimnerError."""
        if isinstance(style, Tensor):
            return self.network.signals(self.seen(fit(style))).expand(len(draws))
        chosen = self.paintings[draws.integers(KEPT)] / 127.5 - 1  # [B, C, H, W]
        return self.network.signals(chosen)


def fit(style: Tensor) -> Tensor:
    """A style picture with a shorter side of at most LARGEST. Raises LimnerError for one that shows nothing."""
    height, width = style.shape[-2:]
    if min(height, width) < LEAST:
        raise LimnerError(
            f"The style picture has {height}x{width} pixels, too few to show a style: name one of at least "
            f"{LEAST}x{LEAST} with --style."
        )
    shrink = min(1.0, LARGEST / min(height, width))
    return bicubic_to(style, (round(shrink * height), round(shrink * width))) if shrink < 1 else style


MUON = Optimiser("muon", lr=2e-3, matrix_lr=0.02)
Microast.presets = {
    "tiny": Preset(
        MicroASTConfig(perceptual_network="random", width=8),
        training(Optimiser("adam", lr=2e-3), "network", batch=4, average=100.0),
    ),
    "small": Preset(MicroASTConfig(), training(MUON, "network", batch=4, average=1_000.0)),
    "base": Preset(MicroASTConfig(), training(MUON, "network", batch=8, average=10_000.0), size=(256, 256)),
    # Its features are VGG-19's with reflected edges, scaled to mean activations of 1; torchvision's differ in both.
    "paper": Preset(
        MicroASTConfig(perceptual_network="vgg19.safetensors", content_map=3, relative=False),
        training(Optimiser("adam", lr=1e-4), "network", batch=8, schedule="constant", average=0.0),
        size=(256, 256), channels=3, parameters={"network": 471_987},
    ),
}  # fmt: skip
