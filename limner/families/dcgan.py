"""DCGAN, the first GAN that trained reliably: a convolutional generator and discriminator.

Radford, Metz and Chintala 2016, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks"; the variants that textbooks list are fields of its Config.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, Model, Objective, Preset
from limner.families._conditioning import choose_classes
from limner.families._presets import gan_training
from limner.fields import Checked, Truncation
from limner.losses import adversarial
from limner.networks.convnets import Crop, activation, ceil_sizes, halvings, init_normal, mlp, widths
from limner.networks.layers import at_least_float32
from limner.settings import LimnerError

Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid"]

R1_EVERY = 16  # steps (Karras 2020, appendix B)
LOSSES = {  # name -> (the discriminator's, the generator's)
    "bce": (adversarial.non_saturating_d, adversarial.non_saturating_g),
    "mse": (adversarial.least_squares_d, adversarial.least_squares_g),
    "hinge": (adversarial.hinge_d, adversarial.hinge_g),
}


@dataclass(frozen=True)
class DCGANConfig:
    noise: Literal["normal", "uniform"] = "normal"  # distribution of the latent; uniform: in (0, 1)
    latent: int = 100  # latent dimension
    layers: Literal["convolution", "linear"] = "convolution"  # of both networks
    width: int = 64  # convolution: feature maps at half the resolution; doubled at each further halving
    widest: int = 512  # convolution: limit on the feature maps of a layer
    hidden: int = 512  # linear: units in each of the two hidden layers
    upsample: Literal["transposed", "nearest"] = "transposed"  # how the generator doubles the resolution
    downsample: Literal["strides", "max_pool"] = "strides"  # how the discriminator halves the resolution
    generator_activation: Activation = "relu"  # of the hidden layers
    discriminator_activation: Activation = "leaky_relu"  # of slope 0.2
    batch_norm: bool = True  # in the hidden layers (linear: of the generator alone)
    loss: Literal["bce", "mse", "hinge"] = "bce"  # mse: least squares GAN (Mao 2017)
    r1: float = 0.0  # gamma of the R1 penalty (Mescheder 2018); 0: none, as in the paper
    condition: Literal["auto", "none", "label"] = "auto"  # auto: label where the data has labels
    embedding: int = 32  # dimension of a label's embedding, which is appended to the latent


@dataclass(frozen=True)
class DCGANSampling(Checked):
    truncation: Truncation = 1.0  # standard deviation of the latent; below 1: higher quality, less diversity


class Generator(nn.Module):
    """A latent [B, latent], and a label [B] if there are classes, to an image."""

    def __init__(self, config: DCGANConfig, spec: ImageSpec, classes: int):
        super().__init__()
        self.embed = nn.Embedding(classes, config.embedding) if classes else None
        inputs = config.latent + (config.embedding if classes else 0)
        if config.layers == "linear":
            units = [inputs, config.hidden, config.hidden, math.prod(spec.shape)]
            dense = mlp(units, config.generator_activation, config.batch_norm)
            self.layers = nn.Sequential(dense, nn.Unflatten(1, spec.shape), nn.Tanh())
        else:
            self.layers = self.convolutions(config, spec, inputs)

    @staticmethod
    def convolutions(config: DCGANConfig, spec: ImageSpec, inputs: int) -> nn.Sequential:
        levels = halvings(size := (spec.height, spec.width))
        maps = [*reversed(widths(config.width, config.widest, levels)), spec.channels]
        bias = not config.batch_norm  # batch norm subtracts any constant
        coarse = ceil_sizes(size, levels)[-1]
        layers: list[nn.Module] = [nn.Unflatten(1, (inputs, 1, 1))]
        layers += [nn.ConvTranspose2d(inputs, maps[0], coarse, bias=bias)]  # [B, maps, h, w]
        for i, o in pairwise(maps):
            layers += [nn.BatchNorm2d(i)] if config.batch_norm else []
            layers += [activation(config.generator_activation)]
            if config.upsample == "transposed":  # to [B, o, 2h, 2w]
                layers += [nn.ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=bias)]
            else:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(i, o, 3, padding=1, bias=bias)]
        return nn.Sequential(*layers, nn.Tanh(), Crop(size))

    def forward(self, latent: Tensor, label: Tensor | None) -> Tensor:
        if self.embed is not None:
            latent = torch.cat([latent, self.embed(label)], dim=1)  # [B, latent + embedding]
        return at_least_float32(self.layers(latent))  # [B, C, H, W]


class Discriminator(nn.Module):
    """An image, and a label [B] if there are classes (by projection, Miyato 2018), to logits [B], positive: real."""

    def __init__(self, config: DCGANConfig, spec: ImageSpec, classes: int):
        super().__init__()
        if config.layers == "linear":
            act = activation(config.discriminator_activation)
            units = [math.prod(spec.shape), config.hidden, config.hidden]
            self.layers = nn.Sequential(nn.Flatten(), mlp(units, config.discriminator_activation), act)
            self.head: nn.Module = nn.Linear(features := config.hidden, 1)
        else:
            levels = halvings((spec.height, spec.width))
            maps = widths(config.width, config.widest, levels)
            self.layers = self.convolutions(config, [spec.channels, *maps])
            coarse = (spec.height >> levels, spec.width >> levels)
            self.head = nn.Conv2d(features := maps[-1], 1, coarse, bias=not config.batch_norm)
        self.embed = nn.Embedding(classes, features) if classes else None

    @staticmethod
    def convolutions(config: DCGANConfig, maps: list[int]) -> nn.Sequential:
        bias = not config.batch_norm
        layers: list[nn.Module] = []
        for level, (i, o) in enumerate(pairwise(maps)):
            if config.downsample == "strides":
                layers += [nn.Conv2d(i, o, 4, stride=2, padding=1, bias=bias)]  # [B, o, h/2, w/2]
            else:
                layers += [nn.Conv2d(i, o, 3, padding=1, bias=bias), nn.MaxPool2d(2)]  # [B, o, h/2, w/2]
            layers += [nn.BatchNorm2d(o)] if config.batch_norm and level else []
            layers += [activation(config.discriminator_activation)]
        return nn.Sequential(*layers)

    def forward(self, image: Tensor, label: Tensor | None) -> Tensor:
        features = self.layers(image)  # [B, maps, h, w] or [B, hidden]
        score = self.head(features).flatten()  # [B]
        if self.embed is not None:
            pooled = features.reshape(*features.shape[:2], -1).sum(2)  # [B, maps]
            score = score + (self.embed(label) * pooled).sum(1)  # [B]
        return at_least_float32(score)


_training = partial(gan_training, betas=(0.5, 0.999))  # Radford 2016, section 4


class DCGAN(Model):
    Config = DCGANConfig
    Sampling = DCGANSampling
    reads = frozenset({"label"})
    averaged = ("generator",)
    paper = "Radford, Metz and Chintala 2016, Unsupervised Representation Learning with DCGANs"
    about = "the convolutional GAN; quick to train and to sample"

    presets = {
        "tiny": Preset(DCGANConfig(latent=8, width=4, widest=8, embedding=4), _training(1e-3, batch=8, average=100.0)),
        "small": Preset(DCGANConfig(), _training(4e-4, batch=32, average=2_000.0)),
        "base": Preset(DCGANConfig(width=128, widest=1024), _training(2e-4, batch=128)),
        "paper": Preset(
            DCGANConfig(), _training(2e-4, batch=128, schedule="constant", average=0.0), size=(64, 64), channels=3,
            parameters={"generator": 3_576_704, "discriminator": 2_765_568},  # pytorch/examples
        ),
    }  # fmt: skip

    def __init__(self, config: DCGANConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if config.layers == "convolution" and min(spec.height, spec.width) < 8:
            raise LimnerError(
                f"the convolutions of dcgan need images of at least 8x8 pixels, not {spec.height}x{spec.width}: "
                "choose a larger --size or --model.layers linear."
            )
        classes = choose_classes(self)
        self.generator = Generator(config, spec, classes)
        self.discriminator = Discriminator(config, spec, classes)
        init_normal(self, 0.02)

    def objectives(self) -> list[Objective]:
        discriminator = Objective("discriminator", self.discriminator_loss)
        lazy = [Objective("discriminator", self.r1_loss, every=R1_EVERY)] if self.config.r1 else []
        return [discriminator, Objective("generator", self.generator_loss), *lazy]

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.generate_fakes(batch)
        real = self.discriminator(batch.image, batch.condition.label)
        fake = self.discriminator(fake, batch.condition.label)
        return {"adversarial": LOSSES[self.config.loss][0](real, fake)}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        score = self.discriminator(self.generate_fakes(batch), batch.condition.label)
        return {"adversarial": LOSSES[self.config.loss][1](score)}

    def r1_loss(self, batch: Batch) -> dict[str, Tensor]:
        """R1 penalty on real images; scaled by R1_EVERY because it runs only every R1_EVERY steps."""
        scores = partial(self.discriminator, label=batch.condition.label)
        return {"r1": adversarial.r1_penalty(scores, batch.image, R1_EVERY * self.config.r1)}

    def generate_fakes(self, batch: Batch) -> Tensor:
        """Images with the labels of the batch: [B, C, H, W]."""
        draw = torch.rand if self.config.noise == "uniform" else torch.randn
        latent = draw(len(batch.image), self.config.latent, device=batch.image.device)
        return self.generator(latent, batch.condition.label)

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """[B, latent] from the distribution that the generator was trained on."""
        draw = draws.uniform if self.config.noise == "uniform" else draws.normal
        return draw(self.config.latent)

    def paint(self, latent: Tensor, condition: Condition) -> Tensor:
        """[B, latent] -> [B, C, H, W] in [-1, 1]."""
        return self.generator(latent, condition.label)

    def directions(self) -> Tensor:
        """[K, latent]: eigenvectors of A A^T, A the first layer's weights (Shen and Zhou 2021, eq. 4)."""
        layers = self.generator.layers.modules()
        first = next(layer for layer in layers if isinstance(layer, nn.ConvTranspose2d | nn.Linear))
        weight = first.weight.T if isinstance(first, nn.Linear) else first.weight.flatten(1)
        return torch.linalg.svd(weight[: self.config.latent].float(), full_matrices=False).U.T

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: DCGANSampling, draws: Draws) -> Iterator[Canvas]:
        """One canvas; without labels, each image's own stream draws its label."""
        mean = 0.5 if self.config.noise == "uniform" else 0.0
        latent = mean + sampling.truncation * (self.latent(condition, draws) - mean)  # [B, latent]
        picture = self.paint(latent, self.with_labels(condition, draws))
        yield Canvas(1, 1, lambda: picture)
