"""A generator driven by styles: noise is mapped to a style that scales every layer's features.

Karras 2020, "Analyzing and Improving the Image Quality of StyleGAN", with the adaptive augmentation and the
labels of Karras 2020b, "Training Generative Adversarial Networks with Limited Data".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

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
    Preset,
    Training,
)
from limner.families._conditioning import choose
from limner.losses import adversarial
from limner.networks.gans.convolve import by_images_only
from limner.networks.gans.styled import Mapping, Noise, ResidualDiscriminator, SkipGenerator
from limner.networks.images.augment import Controller, augment

R1_EVERY, PATH_EVERY = 16, 4  # steps between turns of the lazy regularisers (Karras 2020, appendix B)
LARGEST_BASE = 128  # pixels that the coarsest features may have


@dataclass(frozen=True)
class StyleGAN2Config:
    latent: int = 512  # numbers of noise an image (z)
    style: int = 512  # numbers of its style (w)
    mapping: int = 8  # layers from noise to style
    channel_base: int = 16384  # feature maps at 4, 8, 16, ... times the base: this by 4, 8, 16, ...
    channel_max: int = 512  # most feature maps
    group: int = 4  # images whose spread the discriminator sees together
    bounded: bool = False  # a tanh after the sum of all sizes: pure black and white are easy, for drawings
    mixing: float = 0.9  # share of the images that are drawn from two styles
    r1: float = 6.25e-6  # R1's gamma for each pixel of an image (Karras 2020b: 0.0002 by the batch)
    path: float = 2.0  # weight of the path length's spread; 0: not
    augment: Literal["adaptive", "fixed", "none"] = "adaptive"  # what both players see; for few images
    chance: float = 0.0  # of each augmentation: always (fixed), at first (adaptive)
    most: float = 0.8  # adaptive: largest chance; above about 0.8 they leak into what is drawn
    target: float = 0.6  # adaptive: wanted share of real images judged real, less that judged false
    period: float = 500_000.0  # adaptive: images in which the chance can go from 0 to 1
    mirror: bool = False  # augmentations mirror too: not for digits and letters
    condition: Literal["auto", "none", "label"] = "auto"  # auto: on labels where there are any


@dataclass(frozen=True)
class StyleGAN2Sampling:
    truncation: float = 1.0  # how far styles stray from the mean style; below 1: safer and more alike
    noise: float = 1.0  # strength of the small random details; 0: none


def sizes(config: StyleGAN2Config, spec: ImageSpec) -> tuple[tuple[int, int], list[int]]:
    """(height, width) of the coarsest features, and the feature maps of each size, coarse to fine.

    Raises LimnerError for a size that is not a small base times a power of two.
    """
    height, width = spec.height, spec.width
    doublings = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 6:
        height, width, doublings = height // 2, width // 2, doublings + 1
    if not doublings or height * width > LARGEST_BASE:
        raise LimnerError(
            f"stylegan2 doubles a small base to its image, which does not lead to {spec.height}x{spec.width}: "
            "choose a --size such as 32, 64 or 48x64."
        )
    maps = [min(config.channel_base // (4 * 2**i), config.channel_max) for i in range(doublings + 1)]
    return (height, width), [max(m, 1) for m in maps]


class Generator(nn.Module):
    """Noise, and a label where there are any, to a style; styles to an image."""

    mean: Tensor

    def __init__(self, config: StyleGAN2Config, spec: ImageSpec, classes: int):
        super().__init__()
        base, maps = sizes(config, spec)
        self.mapping = Mapping(config.latent, classes, config.style, config.mapping)
        self.synthesis = SkipGenerator(spec.channels, base, maps, config.style, config.bounded)
        self.register_buffer("mean", torch.zeros(config.style))  # of the styles, for truncation

    @torch.no_grad()
    def follow(self, w: Tensor) -> None:
        """The mean style takes a step towards those of a batch, [B, style]."""
        self.mean.lerp_(w.float().mean(0), 1 - 0.998)


class PathLength(nn.Module):
    """How evenly a step in style changes the image (Karras 2020, eq. 4)."""

    mean: Tensor

    def __init__(self, decay: float = 0.01):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, image: Tensor, w: Tensor) -> Tensor:
        """The mean squared distance of |J^T y| from its moving mean; ``image`` was drawn from w [B, L, style]."""
        y = torch.randn_like(image) / math.sqrt(image.shape[2] * image.shape[3])
        (slope,) = torch.autograd.grad((image * y).sum(), w, create_graph=True)
        length = slope.square().sum(2).mean(1).sqrt()  # [B]
        mean = self.mean.lerp(length.mean().to(self.mean.dtype), self.decay)
        if self.training:
            self.mean.copy_(mean.detach())
        return (length - mean).square().mean()


class StyleGAN2(Model):
    Config = StyleGAN2Config
    Sampling = StyleGAN2Sampling
    reads = frozenset({"label"})
    averaged: ClassVar[tuple[str, ...]] = ("generator",)
    paper: ClassVar[str] = "Karras 2020, Analyzing and Improving the Image Quality of StyleGAN"
    about: ClassVar[str] = "style-based GAN; adaptive augmentation for few images"

    def __init__(self, config: StyleGAN2Config, spec: ImageSpec):
        super().__init__(config, spec)
        base, maps = sizes(config, spec)
        self.classes = len(spec.classes) if choose(self, "label") == "label" else 0
        self.generator = Generator(config, spec, self.classes)
        self.discriminator = ResidualDiscriminator(
            spec.channels, base, maps, self.classes, config.mapping, config.group
        )
        self.path = PathLength()
        self.augment = Controller(config.chance, config.target, config.period, config.most)

    def objectives(self) -> list[Objective]:
        lazy = [Objective("discriminator", self.r1_loss, every=R1_EVERY)] if self.config.r1 else []
        if self.config.path:
            lazy.append(Objective("generator", self.path_loss, every=PATH_EVERY))
        main = [
            Objective("discriminator", self.discriminator_loss),
            Objective("generator", self.generator_loss),
        ]
        return main + lazy

    # ---- the losses

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        label = batch.condition.label
        with torch.no_grad():
            w = self.styles(len(batch.image), label, batch.image)
            fake = self.generator.synthesis(w, noise_like(w))
        real, fake = self.score(batch.image, label), self.score(fake, label)
        if self.training and self.config.augment == "adaptive":
            self.augment.follow(real)
        return {"adversarial": adversarial.non_saturating_d(real, fake)}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        label = batch.condition.label
        w = self.styles(len(batch.image), label, batch.image, follow=self.training)
        fake = self.generator.synthesis(w, noise_like(w))
        return {"adversarial": adversarial.non_saturating_g(self.score(fake, label))}

    def r1_loss(self, batch: Batch) -> dict[str, Tensor]:
        """gamma / 2 times the squared slope of the scores of real images, as often as it is not due."""
        gamma = self.config.r1 * self.spec.height * self.spec.width
        with torch.enable_grad(), torch.autocast(batch.image.device.type, enabled=False):
            image = batch.image.detach().requires_grad_()
            scores = self.score(image, batch.condition.label)
            with by_images_only():
                slope = adversarial.gradient_norm(scores, image)
        return {"r1": R1_EVERY * gamma / 2 * slope.mean()}

    def path_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Path length over half of the batch, as the paper has it to save memory."""
        half, label = max(len(batch.image) // 2, 1), batch.condition.label
        with torch.enable_grad(), torch.autocast(batch.image.device.type, enabled=False):
            w = self.styles(half, None if label is None else label[:half], batch.image)
            w = w if w.requires_grad else w.detach().requires_grad_()
            spread = self.path(self.generator.synthesis(w, noise_like(w)), w)
        return {"path": PATH_EVERY * self.config.path * spread}

    def score(self, image: Tensor, label: Tensor | None) -> Tensor:
        """The discriminator's scores [B] of images as it gets to see them."""
        if self.training and self.config.augment != "none":
            image = augment(image, float(self.augment.chance), self.config.mirror)
        return self.discriminator(image, label)

    def styles(self, n: int, label: Tensor | None, like: Tensor, follow: bool = False) -> Tensor:
        """[n, layers, style] for training: random styles, most images from two, one for the finer layers."""
        mapping, layers = self.generator.mapping, self.generator.synthesis.layers
        w = mapping(torch.randn(n, self.config.latent, device=like.device), label)  # [n, style]
        if follow:
            self.generator.follow(w)
        w = w[:, None].expand(-1, layers, -1)
        if self.config.mixing:
            other = mapping(torch.randn(n, self.config.latent, device=like.device), label)
            mixes = torch.rand(n, 1, device=like.device) < self.config.mixing
            first = torch.randint(1, layers, (n, 1), device=like.device)  # the first layer of the other style
            mixes = mixes & (torch.arange(layers, device=like.device) >= first)  # [n, layers]
            w = torch.where(mixes[:, :, None], other[:, None], w)
        return w

    # ---- drawing

    @property
    def layers(self) -> int:
        """Styles that an image may be given, the coarsest first."""
        return self.generator.synthesis.layers

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """[B, style]: one style an image; without labels, each image's own stream chooses its label."""
        z, label = draws.normal(self.config.latent), condition.label
        if self.classes and label is None:
            label = draws.integers(self.classes)
        return self.generator.mapping(z, label).float()

    def draw(self, w: Tensor, noise: Noise | None) -> Tensor:
        """Styles [B, style], or one a layer [B, layers, style], to images [B, C, H, W] in [-1, 1]."""
        synthesis = self.generator.synthesis
        w = w[:, None].expand(-1, synthesis.layers, -1) if w.ndim == 2 else w
        return synthesis(w, noise).float().clamp(-1, 1)

    def paint(self, latent: Tensor, condition: Condition) -> Tensor:
        """Styles to images, differentiable and without random details; a style knows its label."""
        return self.draw(latent, None)

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: StyleGAN2Sampling, draws: Draws) -> Iterator[Canvas]:
        """One canvas; styles are truncated towards their mean (Karras 2019, section B)."""
        mean = self.generator.mean
        w = mean + sampling.truncation * (self.latent(condition, draws) - mean)
        picture = self.draw(w, lambda height, width: sampling.noise * draws.normal(1, height, width))
        yield Canvas(1, 1, lambda: picture)


def noise_like(w: Tensor) -> Noise:
    """Fresh noise for every layer, from torch's global generator."""
    return lambda height, width: torch.randn(len(w), 1, height, width, device=w.device)


def lazy_adam(lr: float, every: int) -> Optimiser:
    """Adam (0, 0.99), slowed for a player whose regulariser takes an extra turn each ``every`` steps; 0: none.

    Karras 2020, appendix B: c = every / (every + 1), the learning rate times c and the betas to its power.
    """
    c = every / (every + 1) if every else 1.0
    return Optimiser("adam", lr=c * lr, betas=(0.0, 0.99**c))


def _training(lr: float, path: bool = True, **options: Any) -> Training:
    players = {
        "discriminator": lazy_adam(lr, R1_EVERY),
        "generator": lazy_adam(lr, PATH_EVERY if path else 0),
    }
    return Training(optimisers=players, **options)


StyleGAN2.presets = {
    "tiny": Preset(
        StyleGAN2Config(
            latent=16, style=16, mapping=2, channel_base=64, channel_max=16, r1=1e-4, period=2_000.0
        ),
        _training(0.003, batch=8, average=100.0),
    ),
    # Without mixing and path length, which gain nothing at 32x32 (Karras 2020b, appendix C: CIFAR-10). With R1 as
    # weak as there, so small a network draws one image a class: see docs/log.md.
    "small": Preset(
        StyleGAN2Config(
            latent=128, style=128, mapping=2, channel_base=1024, channel_max=128, mixing=0.0, path=0.0,
            bounded=True, r1=5e-4, period=30_000.0,
        ),
        _training(0.0025, path=False, batch=32, average=2_000.0, flat=0.5),
    ),
    "base": Preset(
        StyleGAN2Config(mapping=2, period=500_000.0), _training(0.0025, batch=32, schedule="constant")
    ),
    # Configuration F on FFHQ, whose data is mirrored: --data.flip;
    # with --model.channel_base 16384 --size 256 the smaller networks of Karras 2020b.
    "paper": Preset(
        StyleGAN2Config(channel_base=32768, r1=10 / 1024**2, augment="none", mirror=True),
        _training(0.002, batch=32, schedule="constant", average_rampup=0.0),
        size=(1024, 1024),
        channels=3,
        parameters={"generator": 30_370_060, "discriminator": 29_012_513, "path": 0, "augment": 0},
    ),
}  # fmt: skip
