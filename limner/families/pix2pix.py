"""pix2pix: a generator that a discriminator of patches judges beside the given picture.

Isola, Zhu, Zhou and Efros 2017, "Image-to-Image Translation with Conditional Adversarial Networks".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, Model, Objective, Preset, given_pictures
from limner.families._given import SMALLEST, enlarge, given_spec, whole_scale
from limner.families._presets import gan_training
from limner.losses import adversarial
from limner.networks.gans.patchgan import PatchGAN, PixelGAN, fit_layers
from limner.networks.gans.skip_unet import SkipUNet
from limner.networks.gans.translator import ResNetTranslator
from limner.networks.images.channels import within
from limner.settings import LimnerError, Optimiser, Training

LOSSES = {  # name -> (the discriminator's, its weight, the generator's)
    "bce": (adversarial.non_saturating_d, 0.5, adversarial.non_saturating_g),
    "mse": (adversarial.least_squares_d, 1.0, adversarial.least_squares_g),  # halved in itself
}


@dataclass(frozen=True)
class Pix2PixConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("blocks",)

    # resnet: pictures of any size by tiles; unet: as published, with dropout and statistics of its own when it draws
    generator: Literal["resnet", "unet"] = "resnet"
    width: int = 64  # of the generator: feature maps at the full size (resnet) or at half of it (unet)
    blocks: int = 6  # resnet: residual blocks at a quarter of the size
    halvings: int = 8  # unet: of the sides, which are padded until they halve so often
    dropout: float = 0.5  # unet: in the levels below the fourth
    discriminator: Literal["patch", "pixel"] = "patch"  # what a score judges
    discriminator_width: int = 64  # feature maps of the first layer
    discriminator_layers: int = 3  # patch: halvings; 3 see 70x70 pixels
    pixels: float = 100.0  # weight of the mean absolute error
    loss: Literal["bce", "mse"] = "bce"  # of the discriminator; mse: least squares


class Pix2Pix(Model):
    Config = Pix2PixConfig
    given_by = ("pairs",)
    averaged = ("generator",)
    paper = "Isola 2017, Image-to-Image Translation with Conditional Adversarial Networks (pix2pix)"
    about = "translation by pairs with a discriminator of patches"

    def __init__(self, config: Pix2PixConfig, spec: ImageSpec):
        super().__init__(config, spec)
        c, given, size = config, given_spec(self), (spec.height, spec.width)
        self.scale = whole_scale(self)
        if min(size) < SMALLEST:
            raise LimnerError(
                f"pix2pix needs images of at least {SMALLEST}x{SMALLEST} pixels, not {spec.height}x{spec.width}: "
                "choose a larger --size."
            )
        channels = given.channels, spec.channels
        self.generator: SkipUNet | ResNetTranslator = (
            SkipUNet(*channels, c.width, c.halvings, c.dropout)
            if c.generator == "unet"
            else ResNetTranslator(*channels, c.width, c.blocks)
        )
        layers = fit_layers(c.discriminator_layers, size)
        self.discriminator: nn.Module = (
            PixelGAN(sum(channels), c.discriminator_width)
            if c.discriminator == "pixel"
            else PatchGAN(sum(channels), c.discriminator_width, layers)
        )
        self.factor = self.generator.factor // math.gcd(self.generator.factor, self.scale)
        self.least = self.generator.least

    def objectives(self) -> list[Objective]:
        discriminator = Objective("discriminator", self.discriminator_loss)
        return [discriminator, Objective("generator", self.generator_loss)]

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Half of Isola 2017, eq. 1, so that the discriminator learns more slowly (3.3)."""
        given = enlarge(given_pictures(self, batch), self.scale)
        with torch.no_grad():
            fake = self.generator(given)
        real, drawn = (self.discriminator(torch.cat([given, x], dim=1)) for x in (batch.image, fake))
        loss, weight, _ = LOSSES[self.config.loss]
        return {"adversarial": weight * loss(real, drawn)}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Isola 2017, eq. 4."""
        given = enlarge(given_pictures(self, batch), self.scale)
        fake = self.generator(given)
        score = self.discriminator(torch.cat([given, fake], dim=1))
        pixels = self.config.pixels * (fake - batch.image).abs().mean()
        *_, loss = LOSSES[self.config.loss]
        return {"adversarial": loss(score), "pixels": pixels}

    def margin(self, sampling: Any) -> int | None:
        """Pixels of the given picture, beside the norms' statistics; the unet sees the whole picture."""
        if isinstance(self.generator, SkipUNet):
            return None
        return -(-self.generator.margin // self.scale) + 2 * (self.scale > 1)

    def translate(self, image: Tensor, condition: Condition, sampling: Any, draws: Draws) -> Tensor:
        """[B, C', h, w] in [-1, 1] -> [B, C, scale h, scale w] in [-1, 1]."""
        given = enlarge(image, self.scale)
        if isinstance(self.generator, SkipUNet):
            return within(self.generator(given, draws.uniform))
        return within(self.generator(given))

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: Any, draws: Draws) -> Iterator[Canvas]:
        assert condition.image is not None, "it draws from a given picture"
        picture = self.translate(condition.image, condition, sampling, draws)
        yield Canvas(1, 1, lambda: picture)


TINY = Pix2PixConfig(width=4, blocks=1, discriminator_width=4, discriminator_layers=1)
SMALL = Pix2PixConfig(width=32, blocks=4, discriminator_width=32, discriminator_layers=2)
MUON, ADAM = Optimiser("muon", lr=2e-3, matrix_lr=0.01), Optimiser("adam", lr=5e-4, betas=(0.5, 0.999))
Pix2Pix.presets = {
    "tiny": Preset(TINY, gan_training(2e-3, (0.5, 0.999), batch=8, average=100.0)),
    "small": Preset(
        SMALL, Training(batch=4, optimisers={"generator": MUON, "discriminator": ADAM}, samples=16, average=2_000.0)
    ),
    "base": Preset(Pix2PixConfig(blocks=9), gan_training(2e-4, (0.5, 0.999), batch=8, samples=16, flat=0.5)),
    "paper": Preset(
        Pix2PixConfig(generator="unet"),
        gan_training(2e-4, (0.5, 0.999), batch=1, samples=16, flat=0.5, average=0.0),
        size=(256, 256), channels=3,
        parameters={"generator": 54_413_955, "discriminator": 2_768_705},  # junyanz/pytorch-CycleGAN-and-pix2pix
    ),
}  # fmt: skip
