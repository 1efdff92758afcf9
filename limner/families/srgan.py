"""Super-resolution with detail that looks real: a network that was trained on pixels learns on against a discriminator.

Ledig 2017, "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network". Beside the
adversarial loss stands the distance in the features of a fixed network. The first stage is a run of ``span``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from limner.core import Batch, ImageSpec, Objective, Parent, Preset
from limner.families._presets import gan_training
from limner.families._upscaling import Upscaler, UpscalerConfig, Upscaling
from limner.fields import Bounds
from limner.losses.adversarial import (
    mean_score_penalty,
    non_saturating_d,
    non_saturating_g,
    relativistic_d,
    relativistic_g,
)
from limner.losses.perceptual import (
    check_network,
    default_network,
    feature_error,
    feature_maps,
    is_vgg,
    network_title,
    perceptual_distance,
)
from limner.networks.gans.patchgan import PatchGAN, fit_layers
from limner.networks.restoration.srgan import Discriminator
from limner.settings import Optimiser, Training

VGG_SCALE = 1 / 12.75  # of VGG's features, so that their error is about as large as that of pixels
SRRESNET = UpscalerConfig(network="srresnet", error="squared")


@dataclass(frozen=True)
class SRGANConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("scale",)

    pixels: str = ""  # run of span whose network is trained on; empty: one is trained first
    upscaler: UpscalerConfig = SRRESNET  # of that run
    generator: Literal["", "span", "srresnet", "fsrcnn"] = ""  # its network; empty: as upscaler says
    scale: Annotated[int, Bounds(0, 8)] = 0  # output pixels a side for each given one; 0: as upscaler says
    crop: int = 96  # side in pixels of the crops that the discriminator sees
    # imagenet (limner[imagenet]), random, or a safetensors file of VGG-19 or VGG-16 in torchvision's names;
    # default: imagenet where it is installed
    perceptual_network: str = field(default_factory=default_network)
    perceptual_layers: tuple[str, ...] = ("relu5_4",)  # of VGG; conv5_4 is the same before the ReLU
    perceptual: float = 1.0  # weight of the distance in those features
    pixel: float = 0.0  # weight of the mean absolute error of pixels
    adversarial: float = 1e-3  # weight of the adversarial loss
    # each drawn picture is judged beside the true one (Jolicoeur-Martineau 2019), as Wang 2018, ESRGAN, has it
    relativistic: bool = False
    penalty: float = 0.0  # weight of the squared gradients of the mean scores (R1 and R2, Mescheder 2018)
    # dense: as published, a score a crop; patch: scores of patches (Isola 2017), without norms
    discriminator_kind: Literal["dense", "patch"] = "dense"
    discriminator_width: int = 64  # feature maps of its first layers
    discriminator_dense: int = 1024  # dense: width of its dense layer

    def __post_init__(self) -> None:
        pixels = self.upscaler
        pixels = replace(pixels, network=self.generator or pixels.network, scale=self.scale or pixels.scale)
        object.__setattr__(self, "upscaler", pixels)


class SRGAN(Upscaling):
    Config = SRGANConfig
    averaged = ("generator",)
    parents: ClassVar[dict[str, Parent]] = {
        "pixels": Parent(Upscaler, "a network that enlarges pictures", "upscaler", "generator", source="network",
                         family="span", frozen=False, share=0.5)
    }  # fmt: skip
    paper = "Ledig 2017, Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network"
    about = "enlarges pictures with detail that looks real; first by pixels"

    def __init__(self, config: SRGANConfig, spec: ImageSpec):
        super().__init__(config, spec, replace(config.upscaler, crop=config.crop))
        self.generator = self.make_upscaler().merged()
        c, width = config, config.discriminator_width
        self.discriminator: Discriminator | PatchGAN = (
            PatchGAN(spec.channels, width, fit_layers(3, self.crop_size), norm="none")
            if c.discriminator_kind == "patch"
            else Discriminator(spec.channels, self.crop_size, width, c.discriminator_dense)
        )

    @property
    def upscaler(self) -> Upscaler:
        return self.generator

    def objectives(self) -> list[Objective]:
        if self.config.perceptual:
            check_network(self.config.perceptual_network, self.config.perceptual_layers)
        return [
            Objective("discriminator", self.discriminator_loss),
            Objective("generator", self.generator_loss),
        ]

    def remarks(self) -> list[str]:
        if not self.config.perceptual:
            return []
        return [
            f"Its perceptual loss compared pictures in {network_title(self.config.perceptual_network)} features."
        ]

    def seen_pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Given and wanted crops of the size that the discriminator takes; out of training from the middle."""
        given, wanted = self.training_pair(batch)
        top, left = (
            (side - crop) // 2 // self.scale
            for side, crop in zip(wanted.shape[-2:], self.crop_size, strict=True)
        )
        height, width = self.crop_size
        s = self.scale
        return (
            given[..., top : top + height // s, left : left + width // s],
            wanted[..., s * top : s * top + height, s * left : s * left + width],
        )

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Ledig 2017, eq. 2."""
        c = self.config
        given, wanted = self.seen_pair(batch)
        with torch.no_grad():
            drawn = self.generator(given)
        loss = relativistic_d if c.relativistic else non_saturating_d
        terms = {"adversarial": loss(self.discriminator(wanted), self.discriminator(drawn))}
        if c.penalty:
            terms["penalty"] = mean_score_penalty(self.discriminator, wanted, drawn, c.penalty)
        return terms

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Ledig 2017, eq. 3, 5 and 6. Features other than VGG's are compared by their angles."""
        c = self.config
        given, wanted = self.seen_pair(batch)
        drawn = self.generator(given)  # [B, C, H, W]
        scores = self.discriminator(drawn)
        if c.relativistic:
            with torch.no_grad():
                real = self.discriminator(wanted)
            terms = {"adversarial": c.adversarial * relativistic_g(real, scores)}
        else:
            terms = {"adversarial": c.adversarial * non_saturating_g(scores)}
        if c.pixel:
            terms["pixels"] = c.pixel * (drawn - wanted).abs().mean()
        if c.perceptual:
            one, other = (feature_maps(c.perceptual_network, x, c.perceptual_layers) for x in (drawn, wanted))
            vgg = is_vgg(c.perceptual_network)
            error = feature_error(one, other, VGG_SCALE) if vgg else perceptual_distance(one, other).mean()
            terms["perceptual"] = c.perceptual * error
        return terms


TINY = UpscalerConfig(scale=2, width=8, blocks=1, crop=16)
ADAM, FASTER = Optimiser("adam", lr=2e-4, betas=(0.9, 0.99)), Optimiser("adam", lr=5e-4, betas=(0.5, 0.99))

SRGAN.presets = {
    "tiny": Preset(
        SRGANConfig(
            upscaler=TINY, crop=16, perceptual_network="random", discriminator_width=4, discriminator_dense=16
        ),
        gan_training(2e-3, (0.9, 0.99), batch=8, average=100.0),
    ),
    # A relativistic discriminator of patches with a penalty; without features (docs/log.md).
    "small": Preset(
        SRGANConfig(
            upscaler=UpscalerConfig(base="bicubic"), crop=64, perceptual=0.0, pixel=1.0, adversarial=0.1,
            relativistic=True, penalty=1.0, discriminator_kind="patch", discriminator_width=32,
        ),
        Training(batch=16, optimisers={"generator": ADAM, "discriminator": FASTER}, samples=16, average=2_000.0),
    ),
    "base": Preset(
        SRGANConfig(upscaler=UpscalerConfig(width=48, base="bicubic"), crop=128, pixel=1.0, adversarial=0.1),
        gan_training(1e-4, (0.9, 0.99), batch=32, average=50_000.0),
    ),
    # 100,000 steps at 1e-4 and as many at a tenth of it, which the linear fall stands for. Its pixel stage is
    # --preset srresnet of span for a million steps.
    "paper": Preset(
        SRGANConfig(),
        gan_training(1e-4, (0.9, 0.999), batch=16, flat=0.5, average=0.0),
        size=(96, 96), channels=3,
        parameters={"generator": 1_549_462, "discriminator": 23_565_505},
    ),
}  # fmt: skip
