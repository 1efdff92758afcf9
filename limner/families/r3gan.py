"""R3GAN, the modern GAN baseline: a regularised relativistic loss and residual networks without normalisation.

Huang, Gokaslan, Kuleshov and Tompkin 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, Model, Objective, Preset
from limner.families._conditioning import choose_classes
from limner.families._presets import gan_training
from limner.fields import Checked, Images, Truncation
from limner.losses.adversarial import relativistic_d, relativistic_g, squared_gradient_norm
from limner.networks.convnets import base_size, widths
from limner.networks.gans.convolve import Conv2d, conv2d, no_weight_gradients
from limner.networks.images.augment import augment
from limner.networks.images.resample import kernel
from limner.networks.layers import at_least_float32
from limner.settings import LimnerError

LONGEST = 16  # pixels: limit on the longer side of the base size
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
GAIN = math.sqrt(2 / (1 + 0.2**2))  # keeps the variance through a leaky ReLU of slope 0.2 (He 2015)


@dataclass(frozen=True)
class R3GANConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("group",)

    latent: int = 64  # latent dimension
    width: int = 384  # feature maps at full resolution; doubled at each halving
    widest: int = 768  # limit on the feature maps of a level
    blocks: int = 2  # residual blocks at each resolution
    expansion: int = 2  # width inside a block, relative to its input
    group: int = 16  # channels in a group of the 3x3 convolutions; 0: one group
    gamma: float = 2.0  # gamma of R1 and R2 at the start of training
    gamma_end: float = 0.2  # gamma of R1 and R2 after the burn-in
    lazy: int = 1  # steps between penalties, which are scaled by it (Karras 2020); paper: 1
    burn_in: Images = 20_000_000  # images seen over which gamma and augmentation reach their end, by a cosine
    bounded: bool = False  # tanh after the last layer: reaches pure black and white easily, as drawings need
    augment_probability: float = 0.0  # of each augmentation after the burn-in, rising from 0; for small data
    mirror: bool = False  # augmentations include mirroring; not for digits and letters
    condition: Literal["auto", "none", "label"] = "auto"  # auto: label where the data has labels


@dataclass(frozen=True)
class R3GANSampling(Checked):
    truncation: Truncation = 1.0  # standard deviation of the latent; below 1: higher quality, less diversity


def cosine_ramp(seen: int, start: float, end: float, images: int) -> float:
    """From ``start`` at 0 images seen to ``end`` at ``images``, along half a cosine, and then ``end``."""
    progress = min(seen / images, 1.0) if images else 1.0
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def init_he(layer: Layer, gain: float = 1.0) -> Layer:
    """The layer with weights N(0, gain^2 / fan_in) and zero biases (He 2015)."""
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Residual: 1x1 convolution to more maps, grouped 3x3, 1x1 back; no normalisation (Huang 2024, section 3.3).

    The last convolution starts at zero and the others are scaled down by the number of blocks (Zhang 2019, Fixup).
    The paper adds biases in the two activations, which is the same sum.
    """

    def __init__(self, maps: int, config: R3GANConfig, depth: int):
        super().__init__()
        inner = maps * config.expansion
        gain = GAIN * depth ** (-1 / (2 * 3 - 2))  # three layers in a block
        groups = inner // math.gcd(inner, config.group)
        self.expand = init_he(Conv2d(maps, inner, 1), gain)
        self.mix = init_he(Conv2d(inner, inner, 3, padding=1, groups=groups), gain)
        self.project = init_he(Conv2d(inner, maps, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.expand(x), 0.2)  # [B, inner, H, W]
        y = F.leaky_relu(self.mix(y), 0.2)  # [B, inner, H, W]
        return x + self.project(y)  # [B, maps, H, W]


def project(inputs: int, outputs: int) -> nn.Module:
    """A 1x1 convolution if the number of maps changes, else the identity."""
    return nn.Identity() if inputs == outputs else init_he(Conv2d(inputs, outputs, 1, bias=False))


def filter_taps(x: Tensor) -> Tensor:
    """[C, 1, 4, 4], the filter [1, 3, 3, 1] along both axes, for each map of x separately."""
    return kernel(like=x)[None, None].expand(x.shape[1], 1, -1, -1)


class Up(nn.Module):
    """Twice the resolution: ``resample.upsample2d`` as one convolution, which is faster."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.change = project(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(x)  # [B, outputs, H, W]
        taps = 4 * filter_taps(x)
        return F.conv_transpose2d(x, taps, stride=2, padding=1, groups=len(taps))  # [B, outputs, 2H, 2W]


class Down(nn.Module):
    """Half the resolution: ``resample.downsample2d`` as one convolution, which is twice differentiable."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.change = project(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = conv2d(x, filter_taps(x), stride=2, padding=1, groups=x.shape[1])  # [B, inputs, H/2, W/2]
        return self.change(x)  # [B, outputs, H/2, W/2]


class Generator(nn.Module):
    """A latent [B, latent], and a label [B] if there are classes, to an image of any range."""

    def __init__(self, config: R3GANConfig, spec: ImageSpec, classes: int):
        super().__init__()
        self.bounded = config.bounded
        base, doublings = base_size((spec.height, spec.width))
        maps = widths(config.width, config.widest, doublings + 1)[::-1]  # coarse to fine
        depth = config.blocks * len(maps)
        self.embed = nn.Embedding(classes, config.latent) if classes else None
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, 0.0, classes**-0.5)
        inputs = config.latent * (2 if classes else 1)
        self.basis = nn.Parameter(torch.randn(maps[0], *base))
        self.weigh = init_he(nn.Linear(inputs, maps[0], bias=False))
        self.layers = nn.Sequential(*(Block(maps[0], config, depth) for _ in range(config.blocks)))
        for i, o in pairwise(maps):
            self.layers.extend([Up(i, o), *(Block(o, config, depth) for _ in range(config.blocks))])
        self.layers.append(init_he(Conv2d(maps[-1], spec.channels, 1, bias=False)))

    def forward(self, latent: Tensor, label: Tensor | None) -> Tensor:
        if self.embed is not None:
            latent = torch.cat([latent, self.embed(label)], dim=1)  # [B, 2 latent]
        x = self.basis * self.weigh(latent)[:, :, None, None]  # [B, maps, h, w]
        x = at_least_float32(self.layers(x))  # [B, C, H, W]
        return x.tanh() if self.bounded else x


class Discriminator(nn.Module):
    """An image, and a label [B] if there are classes, to logits [B]: the generator mirrored.

    A label's embedding is multiplied with the last features (Miyato and Koyama 2018). The gamma of the penalties is a
    buffer, so that held-out losses use the value that training reached.
    """

    gamma: Tensor

    def __init__(self, config: R3GANConfig, spec: ImageSpec, classes: int):
        super().__init__()
        base, doublings = base_size((spec.height, spec.width))
        maps = widths(config.width, config.widest, doublings + 1)  # fine to coarse
        depth = config.blocks * len(maps)
        self.layers = nn.Sequential(init_he(Conv2d(spec.channels, maps[0], 1, bias=False)))
        for i, o in pairwise(maps):
            self.layers.extend([*(Block(i, config, depth) for _ in range(config.blocks)), Down(i, o)])
        self.layers.extend(Block(maps[-1], config, depth) for _ in range(config.blocks))
        self.basis = nn.Parameter(torch.randn(maps[-1], *base) / math.sqrt(math.prod(base)))
        features = maps[-1] if classes else 1
        self.head = init_he(nn.Linear(maps[-1], features, bias=False))
        self.embed = nn.Embedding(classes, features) if classes else None
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, 0.0, (classes * features) ** -0.5)
        self.register_buffer("gamma", torch.tensor(config.gamma))

    def forward(self, image: Tensor, label: Tensor | None) -> Tensor:
        x = self.layers(image)  # [B, maps, h, w]
        x = self.head((x * self.basis).sum((2, 3)))  # [B, maps] or [B, 1]
        if self.embed is not None:
            x = x * self.embed(label)  # [B, maps]
        return x.float().sum(1)  # [B]


_training = partial(gan_training, betas=(0.0, 0.99))  # the paper's second decay rate rises from 0.9


class R3GAN(Model):
    Config = R3GANConfig
    Sampling = R3GANSampling
    reads = frozenset({"label"})
    averaged = ("generator",)
    paper = "Huang, Gokaslan, Kuleshov and Tompkin 2024, The GAN is dead; long live the GAN!"
    about = "the modern GAN baseline: stable without tricks"

    presets = {
        "tiny": Preset(
            R3GANConfig(8, width=8, widest=8, blocks=1, group=4, gamma=0.1, gamma_end=0.01, burn_in=100),
            _training(2e-3, batch=8, average=100.0),
        ),
        "small": Preset(
            R3GANConfig(width=24, widest=128, blocks=1, gamma=1.0, burn_in=50_000, bounded=True),
            _training(1e-3, batch=32, average=2_000.0),
        ),
        "base": Preset(
            R3GANConfig(width=192, widest=384, gamma=1.0, gamma_end=0.1, burn_in=2_000_000),
            _training(2e-4, batch=256, average=50_000.0),
        ),
        "paper": Preset(  # FFHQ-64
            R3GANConfig(), _training(2e-4, batch=256, schedule="cosine", average=500_000.0), size=(64, 64), channels=3,
            parameters={"generator": 22_429_824, "discriminator": 22_381_440},  # brownvc/R3GAN
        ),
    }  # fmt: skip

    def __init__(self, config: R3GANConfig, spec: ImageSpec):
        super().__init__(config, spec)
        base, doublings = base_size((spec.height, spec.width))
        if not doublings or max(base) > LONGEST:
            raise LimnerError(
                f"r3gan cannot double a small base up to {spec.height}x{spec.width}: choose a --size such as 24x40."
            )
        classes = choose_classes(self)
        self.augment_probability = 0.0
        self.generator = Generator(config, spec, classes)
        self.discriminator = Discriminator(config, spec, classes)

    def objectives(self) -> list[Objective]:
        every = self.config.lazy
        lazy = [Objective("discriminator", self.penalty_loss, every=every)] if every > 1 else []
        discriminator = Objective("discriminator", self.discriminator_loss)
        return [discriminator, Objective("generator", self.generator_loss), *lazy]

    def advance(self, seen: int) -> None:
        c = self.config
        self.discriminator.gamma.fill_(cosine_ramp(seen, c.gamma, c.gamma_end, c.burn_in))
        self.augment_probability = cosine_ramp(seen, 0.0, c.augment_probability, c.burn_in)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Each real image against its own fake (eq. 2); with the penalties unless they are lazy."""
        images, label = self.real_and_fake(batch)
        lazy = self.config.lazy > 1
        scores, penalties = (self.discriminator(images, label), {}) if lazy else self.penalties(images, label)
        return {"adversarial": relativistic_d(*scores.chunk(2)), **penalties}

    def penalty_loss(self, batch: Batch) -> dict[str, Tensor]:
        """R1 and R2, scaled by ``lazy`` because they run only every ``lazy`` steps."""
        _, penalties = self.penalties(*self.real_and_fake(batch))
        return {name: self.config.lazy * penalty for name, penalty in penalties.items()}

    def real_and_fake(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Real images and fakes, augmented, [2B, C, H, W], and their labels [2B]."""
        with torch.no_grad():
            fake = self.generate_fakes(batch)
        label = batch.condition.label
        return self.augmented(torch.cat([batch.image, fake])), None if label is None else label.repeat(2)

    def penalties(self, images: Tensor, label: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [2B], and R1 and R2 with their weight gamma / 2, in float32 (eq. 4)."""
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            scores = self.discriminator(images.requires_grad_(), label)  # [2B]
            with no_weight_gradients():
                norms = squared_gradient_norm(scores, images)  # [2B]
        if not torch.is_grad_enabled():  # held-out losses, which need gradients by the images too
            scores, norms = scores.detach(), norms.detach()
        r1, r2 = (0.5 * self.discriminator.gamma * part.mean() for part in norms.chunk(2))
        return scores, {"r1": r1, "r2": r2}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        label = batch.condition.label
        with torch.no_grad():
            real = self.discriminator(self.augmented(batch.image), label)  # [B]
        fake = self.discriminator(self.augmented(self.generate_fakes(batch)), label)  # [B]
        return {"adversarial": relativistic_g(real, fake)}

    def augmented(self, images: Tensor) -> Tensor:
        """What the discriminator sees: images augmented in training (Karras 2020b)."""
        probability = self.augment_probability if self.training else 0.0
        return augment(images, probability, self.config.mirror) if probability else images

    def generate_fakes(self, batch: Batch) -> Tensor:
        """Images with the labels of the batch, of any range unless bounded: [B, C, H, W]."""
        latent = torch.randn(len(batch.image), self.config.latent, device=batch.image.device)
        return self.generator(latent, batch.condition.label)

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """[B, latent], standard normal."""
        return draws.normal(self.config.latent)

    def paint(self, latent: Tensor, condition: Condition) -> Tensor:
        """[B, latent] -> [B, C, H, W] in [-1, 1]."""
        return self.generator(latent, condition.label).clamp(-1, 1)

    def directions(self) -> Tensor:
        """[K, latent]: eigenvectors of A^T A, A the first layer's weights (Shen and Zhou 2021, eq. 4)."""
        weight = self.generator.weigh.weight[:, : self.config.latent].float()  # [maps, latent]
        return torch.linalg.svd(weight, full_matrices=False).Vh

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: R3GANSampling, draws: Draws) -> Iterator[Canvas]:
        """One canvas; without labels, each image's own stream draws its label."""
        latent = sampling.truncation * self.latent(condition, draws)  # [B, latent]
        picture = self.paint(latent, self.with_labels(condition, draws))
        yield Canvas(1, 1, lambda: picture)
