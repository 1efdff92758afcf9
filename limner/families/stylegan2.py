"""StyleGAN2: a mapping network turns the latent z into a style w that modulates every layer of the generator.

Karras 2020, "Analyzing and Improving the Image Quality of StyleGAN", with the adaptive augmentation and the
labels of Karras 2020b, "Training Generative Adversarial Networks with Limited Data".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, Model, Objective, Preset
from limner.families._conditioning import choose_classes
from limner.fields import Checked, ShareBelow1, Truncation
from limner.losses import adversarial
from limner.networks.convnets import base_size
from limner.networks.gans.styled import Discriminator, Mapping, Noise, SkipGenerator
from limner.networks.images.augment import Controller, augment
from limner.settings import LimnerError, Optimiser, Training

R1_EVERY, PATH_EVERY = 16, 4  # steps between updates by the lazy regularisers (Karras 2020, appendix B)
LARGEST_BASE = 128  # pixels: limit on height times width of the coarsest features


@dataclass(frozen=True)
class StyleGAN2Config:
    may_be_negative: ClassVar[tuple[str, ...]] = ("ada_target",)

    latent: int = 512  # dimension of the latent z
    style: int = 512  # dimension of the style w
    mapping: int = 8  # layers of the generator's mapping network
    discriminator_mapping: int = 8  # with labels: layers of the discriminator's, from the label alone
    channel_base: int = 16384  # feature maps at 2^n times the base size: this over 4 * 2^n
    channel_max: int = 512  # limit on the feature maps of a resolution
    residual: bool = True  # shortcuts in the discriminator; for CIFAR-10 there are none (Karras 2020b)
    group: int = 4  # images over which the minibatch standard deviation is taken
    bounded: bool = False  # tanh after the last layer: reaches pure black and white easily, as drawings need
    mixing: float = 0.9  # probability of style mixing
    mean_decay: ShareBelow1 = 0.995  # share of the mean style that a step keeps
    r1: float = 6.25e-6  # gamma of R1 for each pixel of an image (Karras 2020b: 0.0002 over the batch size)
    path: float = 2.0  # weight of the path length regularisation; 0: none
    augment: Literal["adaptive", "fixed", "none"] = "adaptive"  # of the discriminator's input; for small data
    augment_probability: float = 0.0  # of each augmentation; adaptive: at the start of training
    augment_limit: float = 0.8  # adaptive: limit; above about 0.8 augmentations leak into samples
    ada_target: float = 0.6  # adaptive: target for r_t, the mean sign of the logits of real images
    ada_images: float = 500_000.0  # adaptive: images over which the probability can go from 0 to 1
    mirror: bool = False  # augmentations include mirroring; not for digits and letters
    condition: Literal["auto", "none", "label"] = "auto"  # auto: label where the data has labels


@dataclass(frozen=True)
class StyleGAN2Sampling(Checked):
    # distance of styles from the mean style; below 1: higher quality, less diversity
    truncation: Truncation = 1.0
    noise: float = 1.0  # factor on the noise inputs of the layers, which draw fine detail; 0: none


def sizes(config: StyleGAN2Config, spec: ImageSpec) -> tuple[tuple[int, int], list[int]]:
    """(height, width) of the coarsest features, and the feature maps of each resolution, coarse to fine.

    Raises LimnerError for a size that is not a small base times a power of two.
    """
    base, doublings = base_size((spec.height, spec.width))
    if not doublings or base[0] * base[1] > LARGEST_BASE:
        raise LimnerError(
            f"stylegan2 cannot double a small base up to {spec.height}x{spec.width}: "
            "choose a --size such as 32, 64 or 48x64."
        )
    levels = range(doublings + 1)
    return base, [max(1, min(config.channel_base // (4 * 2**i), config.channel_max)) for i in levels]


class Generator(nn.Module):
    """A latent z, and a label if there are classes, to a style w; styles to an image."""

    mean: Tensor  # moving average of the styles [style], for truncation

    def __init__(self, config: StyleGAN2Config, spec: ImageSpec, classes: int):
        super().__init__()
        base, maps = sizes(config, spec)
        self.mapping = Mapping(config.latent, classes, config.style, config.mapping)
        self.synthesis = SkipGenerator(spec.channels, base, maps, config.style, config.bounded)
        self.mean_decay = config.mean_decay
        self.register_buffer("mean", torch.zeros(config.style))

    @torch.no_grad()
    def update_mean(self, w: Tensor) -> None:
        """Update the mean style by those of a batch, [B, style]."""
        self.mean.lerp_(w.float().mean(0), 1 - self.mean_decay)


class PathLength(nn.Module):
    """The path length regularisation (Karras 2020, eq. 4)."""

    mean: Tensor

    def __init__(self, decay: float = 0.01):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, image: Tensor, w: Tensor) -> Tensor:
        """(|J^T y| - a)^2, a scalar; a is the moving average of |J^T y|, ``image`` was drawn from w [B, L, style]."""
        y = torch.randn_like(image) / math.sqrt(image.shape[2] * image.shape[3])
        (gradient,) = torch.autograd.grad((image * y).sum(), w, create_graph=True)  # [B, L, style]
        length = gradient.square().sum(2).mean(1).sqrt()  # [B]
        mean = self.mean.lerp(length.mean().to(self.mean.dtype), self.decay)
        if self.training:
            self.mean.copy_(mean.detach())
        return (length - mean).square().mean()


class StyleGAN2(Model):
    Config = StyleGAN2Config
    Sampling = StyleGAN2Sampling
    reads = frozenset({"label"})
    averaged = ("generator",)
    paper = "Karras 2020, Analyzing and Improving the Image Quality of StyleGAN"
    about = "style-based GAN; adaptive augmentation for few images"

    def __init__(self, config: StyleGAN2Config, spec: ImageSpec):
        super().__init__(config, spec)
        base, maps = sizes(config, spec)
        classes = choose_classes(self)
        self.generator = Generator(config, spec, classes)
        c = config
        self.discriminator = Discriminator(
            spec.channels, base, maps, classes, c.discriminator_mapping, c.group, c.residual
        )
        self.path = PathLength()
        self.augment = Controller(c.augment_probability, c.ada_target, c.ada_images, c.augment_limit)

    def objectives(self) -> list[Objective]:
        discriminator = Objective("discriminator", self.discriminator_loss)
        r1 = [Objective("discriminator", self.r1_loss, every=R1_EVERY)] if self.config.r1 else []
        path = [Objective("generator", self.path_loss, every=PATH_EVERY)] if self.config.path else []
        return [discriminator, Objective("generator", self.generator_loss), *r1, *path]

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
        w = self.styles(len(batch.image), label, batch.image, update_mean=self.training)
        fake = self.generator.synthesis(w, noise_like(w))
        return {"adversarial": adversarial.non_saturating_g(self.score(fake, label))}

    def r1_loss(self, batch: Batch) -> dict[str, Tensor]:
        """R1 penalty on real images; scaled by R1_EVERY because it runs only every R1_EVERY steps."""
        gamma = self.config.r1 * self.spec.height * self.spec.width
        scores = partial(self.score, label=batch.condition.label)
        return {"r1": adversarial.r1_penalty(scores, batch.image, R1_EVERY * gamma)}

    def path_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Path length regularisation on half of the batch, as in the paper, to save memory."""
        half, label = max(len(batch.image) // 2, 1), batch.condition.label
        with torch.enable_grad(), torch.autocast(batch.image.device.type, enabled=False):
            w = self.styles(half, None if label is None else label[:half], batch.image)
            w = w if w.requires_grad else w.detach().requires_grad_()
            spread = self.path(self.generator.synthesis(w, noise_like(w)), w)
        return {"path": PATH_EVERY * self.config.path * spread}

    def score(self, image: Tensor, label: Tensor | None) -> Tensor:
        """Logits [B] of the images, which are augmented in training."""
        if self.training and self.config.augment != "none":
            image = augment(image, float(self.augment.chance), self.config.mirror)
        return self.discriminator(image, label)

    def styles(self, n: int, label: Tensor | None, like: Tensor, update_mean: bool = False) -> Tensor:
        """[n, layers, style], random styles for training; with style mixing, finer layers may have another style."""
        mapping, layers = self.generator.mapping, self.generator.synthesis.layers
        w = mapping(torch.randn(n, self.config.latent, device=like.device), label)  # [n, style]
        if update_mean:
            self.generator.update_mean(w)
        w = w[:, None].expand(-1, layers, -1)
        if self.config.mixing:
            other = mapping(torch.randn(n, self.config.latent, device=like.device), label)
            mixes = torch.rand(n, 1, device=like.device) < self.config.mixing
            other_from = torch.randint(
                1, layers, (n, 1), device=like.device
            )  # the first layer with that style
            mixes = mixes & (torch.arange(layers, device=like.device) >= other_from)  # [n, layers]
            w = torch.where(mixes[:, :, None], other[:, None], w)
        return w

    @property
    def layers(self) -> int:
        """How many styles an image takes, the coarsest first."""
        return self.generator.synthesis.layers

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """[B, style], one style an image; without labels, each image's own stream draws its label."""
        z = draws.normal(self.config.latent)  # [B, latent]
        return self.generator.mapping(z, self.with_labels(condition, draws).label).float()

    def draw(self, w: Tensor, noise: Noise | None) -> Tensor:
        """Styles [B, style], or one a layer [B, layers, style], to images [B, C, H, W] in [-1, 1]."""
        synthesis = self.generator.synthesis
        w = w[:, None].expand(-1, synthesis.layers, -1) if w.ndim == 2 else w
        return synthesis(w, noise).float().clamp(-1, 1)

    def paint(self, latent: Tensor, condition: Condition) -> Tensor:
        """[B, style] -> [B, C, H, W] in [-1, 1], differentiable and without noise; a style includes its label."""
        return self.draw(latent, None)

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: StyleGAN2Sampling, draws: Draws) -> Iterator[Canvas]:
        """One canvas; styles are truncated towards their mean (Karras 2019, section B)."""
        mean = self.generator.mean
        w = mean + sampling.truncation * (self.latent(condition, draws) - mean)
        picture = self.draw(w, lambda height, width: sampling.noise * draws.normal(1, height, width))
        yield Canvas(1, 1, lambda: picture)


def noise_like(w: Tensor) -> Noise:
    """Independent noise for every layer, from the global generator."""
    return lambda height, width: torch.randn(len(w), 1, height, width, device=w.device)


def lazy_adam(lr: float, every: int) -> Optimiser:
    """Adam with betas (0, 0.99), corrected for a lazy regulariser that runs every ``every`` steps; 0: none.

    Karras 2020, appendix B: c = every / (every + 1); the learning rate is multiplied by c, the betas are raised to c.
    """
    c = every / (every + 1) if every else 1.0
    return Optimiser("adam", lr=c * lr, betas=(0.0, 0.99**c))


def _training(lr: float, path: bool = True, **options: Any) -> Training:
    generator = lazy_adam(lr, PATH_EVERY if path else 0)
    return Training(optimisers={"discriminator": lazy_adam(lr, R1_EVERY), "generator": generator}, **options)


StyleGAN2.presets = {
    "tiny": Preset(
        StyleGAN2Config(
            latent=16, style=16, mapping=2, discriminator_mapping=2, channel_base=64, channel_max=16, r1=1e-4,
            ada_images=2_000.0,
        ),
        _training(0.003, batch=8, average=100.0),
    ),
    # No mixing and no path length, which gain nothing at 32x32 (Karras 2020b, appendix C: CIFAR-10). With R1 as weak
    # as there, a network this small draws one image a class: see docs/log.md.
    "small": Preset(
        StyleGAN2Config(
            latent=128, style=128, mapping=2, discriminator_mapping=2, channel_base=1024, channel_max=128, mixing=0.0,
            path=0.0, bounded=True, r1=5e-4, ada_images=30_000.0,
        ),
        _training(0.0025, path=False, batch=32, average=2_000.0, flat=0.5),
    ),
    "base": Preset(StyleGAN2Config(mapping=2), _training(0.0025, batch=32, schedule="constant")),
    # Configuration F on FFHQ, whose data is mirrored: --data.flip;
    # with --model.channel_base 16384 --size 256 the smaller networks of Karras 2020b.
    "paper": Preset(
        StyleGAN2Config(channel_base=32768, r1=10 / 1024**2, augment="none", mirror=True),
        _training(0.002, batch=32, schedule="constant", average_rampup=0.0),
        size=(1024, 1024), channels=3,
        parameters={"generator": 30_370_060, "discriminator": 29_012_513, "path": 0, "augment": 0},
    ),
    # CIFAR-10 by class (Karras 2020b, appendix C). The optimiser is corrected for a path length that is not used.
    "cifar": Preset(
        StyleGAN2Config(
            mapping=2, channel_base=32768, mixing=0.0, path=0.0, r1=0.01 / 32**2, residual=False, group=32, mirror=True,
        ),
        _training(0.0025, batch=64, schedule="constant", average=500_000.0),
        size=(32, 32), channels=3, classes=10,
        parameters={"generator": 20_215_315, "discriminator": 23_089_664, "path": 0, "augment": 0},
    ),
}  # fmt: skip
