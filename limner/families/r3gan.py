"""The modern baseline among GANs: a loss that needs no tricks, and plain residual networks without any norm.

Huang, Gokaslan, Kuleshov and Tompkin 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeVar

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
    Preset,
    Training,
)
from limner.families._conditioning import choose
from limner.losses.adversarial import gradient_norm, relativistic_d, relativistic_g
from limner.networks.convnets import widths
from limner.networks.gans.convolve import Conv2d, by_images_only, conv2d
from limner.networks.images.augment import augment
from limner.networks.images.resample import kernel

SMALLEST, LARGEST = 3, 16  # pixels: the base's shorter side is no smaller, its longer side no larger
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
GAIN = math.sqrt(2 / (1 + 0.2**2))  # what keeps the variance through a leaky relu of slope 0.2 (He 2015)


@dataclass(frozen=True)
class R3GANConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("group", "burn_in")

    latent: int = 64  # numbers of noise an image
    width: int = 384  # feature maps at the full size; doubled at each halving
    widest: int = 768  # most feature maps
    blocks: int = 2  # residual blocks at each size
    expansion: int = 2  # a block widens its feature maps by this
    group: int = 16  # channels in a group of the 3x3 convolutions; 0: all in one
    gamma: float = 2.0  # weight of both gradient penalties at the start
    gamma_end: float = 0.2  # and when the burn-in is over
    lazy: int = (
        1  # steps from one penalty to the next, which weighs as much more (Karras 2020); 1: all, as the paper
    )
    burn_in: int = 20_000_000  # images over which the weight falls, along a cosine
    bounded: bool = False  # a tanh at the end of the generator: pure black and white are easy, for drawings
    augment: float = 0.0  # chance of each augmentation when the burn-in is over, from 0; for few images
    mirror: bool = False  # augmentations mirror too: not for digits and letters
    condition: Literal["auto", "none", "label"] = "auto"  # auto: on labels where there are any


@dataclass(frozen=True)
class R3GANSampling:
    truncation: float = 1.0  # spread of the noise; below 1: safer and more alike


def base_of(height: int, width: int) -> tuple[tuple[int, int], int] | None:
    """((base height, base width), doublings) of an image's size; None where its base is unwieldy.

    As many doublings as leave the base's shorter side at least SMALLEST pixels; there must be one.
    """
    doublings = 0
    while height % 2 == width % 2 == 0 and min(height, width) // 2 >= SMALLEST:
        height, width, doublings = height // 2, width // 2, doublings + 1
    return ((height, width), doublings) if doublings and max(height, width) <= LARGEST else None


def falling(seen: int, start: float, end: float, images: int) -> float:
    """From ``start`` to ``end`` along half a cosine over so many images, and then ``end``."""
    share = min(seen / images, 1.0) if images else 1.0
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def scaled(layer: Layer, gain: float = 1.0) -> Layer:
    """With weights N(0, gain^2 / fan in) and without offsets (He 2015)."""
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """1x1 convolution to more maps, grouped 3x3, 1x1 back, and around; no norm (Huang 2024, section 3.3).

    The last convolution starts at zero and the others are toned down by the number of blocks that add up
    (Zhang 2019, Fixup). The paper's offsets belong to the two activations, which is the same sum.
    """

    def __init__(self, maps: int, config: R3GANConfig, depth: int):
        super().__init__()
        inner = maps * config.expansion
        gain = GAIN * depth ** (-1 / (2 * 3 - 2))  # three layers in a block
        groups = inner // math.gcd(inner, config.group)
        self.expand = scaled(Conv2d(maps, inner, 1), gain)
        self.mix = scaled(Conv2d(inner, inner, 3, padding=1, groups=groups), gain)
        self.project = scaled(Conv2d(inner, maps, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.expand(x), 0.2)  # [B, inner, H, W]
        y = F.leaky_relu(self.mix(y), 0.2)  # [B, inner, H, W]
        return x + self.project(y)  # [B, maps, H, W]


def change(inputs: int, outputs: int) -> nn.Module:
    """A 1x1 convolution where the number of maps changes."""
    return nn.Identity() if inputs == outputs else scaled(Conv2d(inputs, outputs, 1, bias=False))


def taps(x: Tensor) -> Tensor:
    """[C, 1, 4, 4], the filter [1, 3, 3, 1] both ways, for each map of x on its own."""
    return kernel(like=x)[None, None].expand(x.shape[1], 1, -1, -1)


class Up(nn.Module):
    """Twice the size, interpolated: ``resample.upsample2d`` as one convolution, which is quicker."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.change = change(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(x)  # [B, outputs, H, W]
        return F.conv_transpose2d(
            x, 4 * taps(x), stride=2, padding=1, groups=x.shape[1]
        )  # [B, outputs, 2H, 2W]


class Down(nn.Module):
    """Half the size, filtered: ``resample.downsample2d`` as one convolution, which can be derived twice."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.change = change(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = conv2d(x, taps(x), stride=2, padding=1, groups=x.shape[1])  # [B, inputs, H/2, W/2]
        return self.change(x)  # [B, outputs, H/2, W/2]


class Generator(nn.Module):
    """Noise, and a label where there are any, to an image of any range."""

    def __init__(
        self, config: R3GANConfig, channels: int, base: tuple[int, int], doublings: int, classes: int
    ):
        super().__init__()
        self.bounded = config.bounded
        maps = widths(config.width, config.widest, doublings + 1)[::-1]  # coarse to fine
        depth = config.blocks * len(maps)
        self.embed = nn.Embedding(classes, config.latent) if classes else None
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, 0.0, classes**-0.5)
        inputs = config.latent * (2 if classes else 1)
        self.basis = nn.Parameter(torch.randn(maps[0], *base))
        self.weigh = scaled(nn.Linear(inputs, maps[0], bias=False))
        layers: list[nn.Module] = [Block(maps[0], config, depth) for _ in range(config.blocks)]
        for i, o in pairwise(maps):
            layers += [Up(i, o), *(Block(o, config, depth) for _ in range(config.blocks))]
        self.layers = nn.Sequential(*layers, scaled(Conv2d(maps[-1], channels, 1, bias=False)))

    def forward(self, noise: Tensor, label: Tensor | None) -> Tensor:
        if self.embed is not None:
            noise = torch.cat([noise, self.embed(label)], dim=1)  # [B, 2 latent]
        x = self.basis * self.weigh(noise)[:, :, None, None]  # [B, maps, h, w]
        x = self.layers(x).float()  # [B, C, H, W]
        return x.tanh() if self.bounded else x


class Discriminator(nn.Module):
    """An image, and a label where there are any, to a score: the generator's mirror image.

    A label's embedding is multiplied with the last features (Miyato and Koyama 2018). The weight of the
    gradient penalties is kept here, so that held-out losses use the one that training has come to.
    """

    gamma: Tensor

    def __init__(
        self, config: R3GANConfig, channels: int, base: tuple[int, int], doublings: int, classes: int
    ):
        super().__init__()
        maps = widths(config.width, config.widest, doublings + 1)  # fine to coarse
        depth = config.blocks * len(maps)
        layers: list[nn.Module] = [scaled(Conv2d(channels, maps[0], 1, bias=False))]
        for i, o in pairwise(maps):
            layers += [*(Block(i, config, depth) for _ in range(config.blocks)), Down(i, o)]
        layers += [Block(maps[-1], config, depth) for _ in range(config.blocks)]
        self.layers = nn.Sequential(*layers)
        self.basis = nn.Parameter(torch.randn(maps[-1], *base) / math.sqrt(math.prod(base)))
        features = maps[-1] if classes else 1
        self.head = scaled(nn.Linear(maps[-1], features, bias=False))
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


def adam(lr: float, **options: Any) -> Training:
    """Both players by Adam without momentum; the paper's second decay rate rises from 0.9, ours stays at 0.99."""
    players = ("discriminator", "generator")
    return Training(optimisers={p: Optimiser("adam", lr=lr, betas=(0.0, 0.99)) for p in players}, **options)


class R3GAN(Model):
    Config = R3GANConfig
    Sampling = R3GANSampling
    reads = frozenset({"label"})
    averaged = ("generator",)
    paper = "Huang, Gokaslan, Kuleshov and Tompkin 2024, The GAN is dead; long live the GAN!"
    about = "the modern GAN baseline: stable without tricks"

    presets = {
        "tiny": Preset(
            R3GANConfig(
                latent=8, width=8, widest=8, blocks=1, group=4, gamma=0.1, gamma_end=0.01, burn_in=100
            ),
            adam(2e-3, batch=8, average=100.0),
        ),
        "small": Preset(
            R3GANConfig(
                width=24,
                widest=128,
                blocks=1,
                group=16,
                gamma=1.0,
                gamma_end=0.2,
                burn_in=50_000,
                bounded=True,
            ),
            adam(1e-3, batch=32, average=2_000.0),
        ),
        "base": Preset(
            R3GANConfig(width=192, widest=384, gamma=1.0, gamma_end=0.1, burn_in=2_000_000),
            adam(2e-4, batch=256, average=50_000.0),
        ),
        "paper": Preset(
            R3GANConfig(),
            adam(2e-4, batch=256, schedule="cosine", average=500_000.0),
            size=(64, 64),
            channels=3,
            parameters={"generator": 22_429_824, "discriminator": 22_381_440},  # brownvc/R3GAN
        ),  # FFHQ-64
    }

    def __init__(self, config: R3GANConfig, spec: ImageSpec):
        super().__init__(config, spec)
        found = base_of(spec.height, spec.width)
        if found is None:
            raise LimnerError(
                f"r3gan needs a height and width that are a small base times a power of two, such as 32x32 or "
                f"24x40, not {spec.height}x{spec.width}: choose another --size."
            )
        self.classes = len(spec.classes) if choose(self, "label") == "label" else 0
        self.chance = 0.0  # of each augmentation
        self.generator = Generator(config, spec.channels, *found, self.classes)
        self.discriminator = Discriminator(config, spec.channels, *found, self.classes)

    def objectives(self) -> list[Objective]:
        every = self.config.lazy
        lazy = [Objective("discriminator", self.penalty_loss, every=every)] if every > 1 else []
        return [
            Objective("discriminator", self.discriminator_loss),
            Objective("generator", self.generator_loss),
            *lazy,
        ]

    def advance(self, seen: int) -> None:
        c = self.config
        self.discriminator.gamma.fill_(falling(seen, c.gamma, c.gamma_end, c.burn_in))
        self.chance = falling(seen, 0.0, c.augment, c.burn_in)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Each real image against its own fake (eq. 2), and the penalties if they are due at all steps."""
        images, label = self.both(batch)
        if self.config.lazy == 1:
            scores, penalties = self.penalised(images, label)  # [2B]
        else:
            scores, penalties = self.discriminator(images, label), {}  # [2B]
        return {"adversarial": relativistic_d(*scores.chunk(2)), **penalties}

    def penalty_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The penalties, as often as they are not due."""
        return {name: self.config.lazy * term for name, term in self.penalised(*self.both(batch))[1].items()}

    def both(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Real images and as many fakes, as the discriminator gets to see them, with their labels: [2B, C, H, W]."""
        with torch.no_grad():
            fake = self.generate_fakes(batch)
        label = batch.condition.label
        return self.seen(torch.cat([batch.image, fake])), None if label is None else label.repeat(2)

    def penalised(self, images: Tensor, label: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores [2B], and gamma / 2 times R1 and R2, all in float32 (eq. 4)."""
        trains = torch.is_grad_enabled()  # held-out losses need slopes too
        images = images.requires_grad_()
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            scores = self.discriminator(images, label)  # [2B]
            with by_images_only():
                slopes = gradient_norm(scores, images)  # [2B]
        r1, r2 = (0.5 * self.discriminator.gamma * part.mean() for part in slopes.chunk(2))
        if not trains:
            scores, r1, r2 = scores.detach(), r1.detach(), r2.detach()
        return scores, {"r1": r1, "r2": r2}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        label = batch.condition.label
        with torch.no_grad():
            real = self.discriminator(self.seen(batch.image), label)  # [B]
        fake = self.discriminator(self.seen(self.generate_fakes(batch)), label)  # [B]
        return {"adversarial": relativistic_g(real, fake)}

    def seen(self, images: Tensor) -> Tensor:
        """Images as the discriminator gets to see them: augmented in training, as Karras 2020b does it."""
        return augment(images, self.chance, self.config.mirror) if self.training and self.chance else images

    def generate_fakes(self, batch: Batch) -> Tensor:
        """With the labels of the batch, of any range unless bounded: [B, C, H, W]."""
        noise = torch.randn(len(batch.image), self.config.latent, device=batch.image.device)
        return self.generator(noise, batch.condition.label)

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """The noise: [B, latent]."""
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
        """One canvas; without labels, each image's own stream chooses its label."""
        noise = sampling.truncation * self.latent(condition, draws)  # [B, latent]
        if self.classes and condition.label is None:
            condition = Condition(condition.size, label=draws.integers(self.classes))
        picture = self.paint(noise, condition)
        yield Canvas(1, 1, lambda: picture)
