"""ProGAN: generator and discriminator start at about 4x4 pixels, and each doubling of the resolution fades in.

Karras, Aila, Laine and Lehtinen 2018, "Progressive Growing of GANs for Improved Quality, Stability, and
Variation". Level 0 is the coarsest resolution and each further level doubles it; growth is a pure function of the
images seen. Where paper and code differ (kernels fused with resizing), this follows the code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, Model, Objective, Preset
from limner.families._conditioning import choose_classes
from limner.families._presets import gan_training
from limner.fields import Checked, Images, Truncation
from limner.losses import adversarial
from limner.networks.convnets import base_size
from limner.networks.gans.convolve import conv2d, no_weight_gradients
from limner.networks.gans.equalised import EqualConv2d, EqualLinear, minibatch_stddev, pixel_norm
from limner.settings import LimnerError

HE = 2**0.5  # gain of a layer before a leaky ReLU (He 2015)
LONGEST = 16  # pixels: limit on the longer side at level 0

leaky_relu = partial(F.leaky_relu, negative_slope=0.2)
upsample = partial(F.interpolate, scale_factor=2.0, mode="nearest")  # [B, C, H, W] -> [B, C, 2H, 2W]
downsample = partial(F.avg_pool2d, kernel_size=2)  # [B, C, H, W] -> [B, C, H/2, W/2]

LOSSES = {  # name -> (the discriminator's, the generator's)
    "wgan_gp": (adversarial.wasserstein_d, adversarial.wasserstein_g),
    "non_saturating": (adversarial.non_saturating_d, adversarial.non_saturating_g),
    "hinge": (adversarial.hinge_d, adversarial.hinge_g),
}


@dataclass(frozen=True)
class ProGANConfig:
    latent: int = 512  # latent dimension
    maps: int = 8192  # twice the feature maps of level 0, which halve at each level
    widest: int = 512  # limit on the feature maps of a level
    bounded: bool = False  # tanh after the last layer: reaches pure black and white easily, as drawings need
    stable: Images = 600_000  # images seen at each level between two fades
    # images seen while the next level fades in; both 0: full resolution from the start
    fade: Images = 600_000
    loss: Literal["wgan_gp", "non_saturating", "hinge"] = "wgan_gp"  # adversarial loss
    penalty: float = 10.0  # lambda of wgan_gp (Gulrajani 2017), else gamma of R1 (Mescheder 2018)
    drift: float = 0.001  # wgan_gp: weight of the mean squared score of real images
    group: int = 4  # images over which the minibatch standard deviation is taken
    condition: Literal["auto", "none", "label"] = "auto"  # auto: label where the data has labels
    # how labels enter. projection: embedded, and compared with the features (Miyato 2018); classifier: appended to the
    # latent as they are, and told by the discriminator (AC-GAN, Odena 2017; the code of Karras 2018)
    labels: Literal["projection", "classifier"] = "projection"


@dataclass(frozen=True)
class ProGANSampling(Checked):
    truncation: Truncation = 1.0  # factor on the latent; below 1: higher quality, less diversity


class Growth(NamedTuple):
    """How far a network has grown."""

    level: int  # the finest level in use
    alpha: float  # weight of that level, in (0, 1]


def growth(seen: int, last: int, stable: int, fade: int) -> Growth:
    """Each level alone for ``stable`` images, then the next fades in over ``fade`` (Karras 2018, appendix A)."""
    level, within = divmod(seen, stable + fade) if stable + fade else (last, 0)
    if level >= last:
        return Growth(last, 1.0)
    return Growth(level + 1, (within - stable) / fade) if within > stable else Growth(level, 1.0)


def at_growth(image: Tensor, last: int, grown: Growth) -> Tensor:
    """Real images at the resolution of ``grown``, blended with the next coarser one while a level fades in."""
    image = F.avg_pool2d(image, 2 ** (last - grown.level))  # [B, C, h, w]
    return image if grown.alpha == 1 else torch.lerp(upsample(downsample(image)), image, grown.alpha)


def layout(config: ProGANConfig, spec: ImageSpec) -> tuple[tuple[int, int], list[int]]:
    """The size of level 0, and the paper's nf(0), nf(1), ...: of the features before the logit, then by level."""
    coarsest, last = base_size((spec.height, spec.width))
    return coarsest, [max(1, min(config.maps >> i, config.widest)) for i in range(last + 2)]


def four_taps(weight: Tensor) -> Tensor:
    """[o, i, 3, 3] -> [o, i, 4, 4], the kernel summed over shifts by one pixel along both axes."""
    padded = F.pad(weight, (1, 1, 1, 1))
    return padded[..., 1:, 1:] + padded[..., :-1, 1:] + padded[..., 1:, :-1] + padded[..., :-1, :-1]


class UpConv2d(EqualConv2d):
    """Nearest-neighbour upsampling and a 3x3 convolution, fused at less than half the cost."""

    def forward(self, x: Tensor) -> Tensor:
        weight = four_taps(self.weight * self.scale).flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(x, weight, self.bias, stride=2, padding=1)  # [B, o, 2h, 2w]


class DownConv2d(EqualConv2d):
    """A 3x3 convolution and 2x2 average pooling, fused at less than half the cost."""

    def forward(self, x: Tensor) -> Tensor:
        weight = four_taps(self.weight * self.scale) / 4
        return conv2d(x, weight, self.bias, stride=2, padding=1)  # [B, o, h/2, w/2]


class Generator(nn.Module):
    """A latent [B, latent] of mean square 1, and a label [B] if there are classes, to an image at level ``grown``.

    With ``labels`` projection, a label's embedding, of the same dimension and normalised to mean square 1, is appended
    to the latent (as in StyleGAN); with classifier, the one-hot label itself, and both are normalised together.
    """

    seen: Tensor  # images seen; a buffer, so that a loaded model draws at the level that training reached

    def __init__(self, config: ProGANConfig, spec: ImageSpec, classes: int):
        super().__init__()
        coarsest, (_, *maps) = layout(config, spec)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.bounded = config.bounded
        self.classes = classes if config.labels == "classifier" else 0  # appended to the latent
        self.embed = nn.Embedding(classes, config.latent) if classes and not self.classes else None
        inputs = config.latent * (1 if self.embed is None else 2) + self.classes
        self.shape = (maps[0], *coarsest)
        self.dense = EqualLinear(inputs, maps[0] * coarsest[0] * coarsest[1], bias=False, gain=HE / 4)
        self.bias = nn.Parameter(torch.zeros(maps[0]))
        self.first = EqualConv2d(maps[0], maps[0], 3, gain=HE)
        self.up = nn.ModuleList(UpConv2d(i, o, 3, gain=HE) for i, o in pairwise(maps))
        self.conv = nn.ModuleList(EqualConv2d(o, o, 3, gain=HE) for o in maps[1:])
        self.to_rgb = nn.ModuleList(EqualConv2d(m, spec.channels, 1) for m in maps)

    def forward(self, latent: Tensor, label: Tensor | None, grown: Growth) -> Tensor:
        x = latent
        if self.embed is not None:
            x = torch.cat([x, pixel_norm(self.embed(label))], dim=1)
        if self.classes:
            assert label is not None
            x = pixel_norm(torch.cat([x, F.one_hot(label, self.classes).to(x.dtype)], dim=1))
        x = self.dense(x).unflatten(1, self.shape) + self.bias[:, None, None]  # [B, maps, h, w]
        before = x = pixel_norm(leaky_relu(self.first(pixel_norm(leaky_relu(x)))))
        for level in range(grown.level):
            before = x
            x = pixel_norm(leaky_relu(self.up[level](x)))  # [B, maps, 2h, 2w]
            x = pixel_norm(leaky_relu(self.conv[level](x)))
        image = self.to_rgb[grown.level](x).float()  # [B, C, h, w]
        if grown.alpha < 1:
            coarse = upsample(self.to_rgb[grown.level - 1](before)).float()
            image = torch.lerp(coarse, image, grown.alpha)
        return image.tanh() if self.bounded else image


class Discriminator(nn.Module):
    """An image at level ``grown``, and perhaps a label [B], to logits [B], positive: real."""

    def __init__(self, config: ProGANConfig, spec: ImageSpec, classes: int):
        super().__init__()
        coarsest, (features, *maps) = layout(config, spec)
        self.group = config.group
        self.from_rgb = nn.ModuleList(EqualConv2d(spec.channels, m, 1, gain=HE) for m in maps)
        self.conv = nn.ModuleList(EqualConv2d(m, m, 3, gain=HE) for m in maps[1:])
        self.down = nn.ModuleList(DownConv2d(i, o, 3, gain=HE) for o, i in pairwise(maps))
        self.last = EqualConv2d(maps[0] + 1, maps[0], 3, gain=HE)
        self.dense = EqualLinear(maps[0] * coarsest[0] * coarsest[1], features, gain=HE)
        self.classes = classes if config.labels == "classifier" else 0  # that the head tells
        self.head = EqualLinear(features, 1 + self.classes)
        self.embed = nn.Embedding(classes, features) if classes and not self.classes else None

    def forward(self, image: Tensor, label: Tensor | None, grown: Growth) -> Tensor:
        return self.outputs(image, label, grown)[0]

    def outputs(self, image: Tensor, label: Tensor | None, grown: Growth) -> tuple[Tensor, Tensor]:
        """The logits [B], and those of the classes [B, K] of a classifier; K is 0 without."""
        x = leaky_relu(self.from_rgb[grown.level](image))  # [B, maps, h, w]
        for level in reversed(range(grown.level)):
            x = leaky_relu(self.down[level](leaky_relu(self.conv[level](x))))  # [B, maps, h/2, w/2]
            if level + 1 == grown.level and grown.alpha < 1:
                x = torch.lerp(leaky_relu(self.from_rgb[level](downsample(image))), x, grown.alpha)
        x = leaky_relu(self.last(minibatch_stddev(x, self.group)))
        x = leaky_relu(self.dense(x.flatten(1)))  # [B, features]
        score, classes = self.head(x).float().split([1, self.classes], dim=1)  # [B, 1], [B, K]
        score = score[:, 0]  # [B]
        if self.embed is not None:
            score = score + (self.embed(label) * x).sum(1).float() / x.shape[1] ** 0.5  # [B]
        return score, classes


_training = partial(gan_training, betas=(0.0, 0.99))  # Karras 2018, appendix A


class ProGAN(Model):
    Config = ProGANConfig
    Sampling = ProGANSampling
    reads = frozenset({"label"})
    averaged = ("generator",)
    paper = "Karras, Aila, Laine and Lehtinen 2018, Progressive Growing of GANs"
    about = "GAN that grows from 4x4 pixels to the full image"

    presets = {
        "tiny": Preset(
            ProGANConfig(latent=8, maps=192, widest=24, stable=4, fade=8), _training(1e-3, batch=8, average=100.0),
        ),
        "small": Preset(
            ProGANConfig(latent=128, maps=384, widest=192, bounded=True, stable=8_000, fade=8_000),
            _training(1e-3, batch=32, average=2_000.0, flat=0.5),
        ),
        "base": Preset(
            ProGANConfig(latent=256, maps=4096, widest=256, stable=100_000, fade=100_000), _training(1e-3, batch=64),
        ),
        "paper": Preset(
            ProGANConfig(labels="classifier"), _training(1e-3, batch=16, schedule="constant"), size=(1024, 1024),
            channels=3,
            parameters={"generator": 23_079_115, "discriminator": 23_087_249},  # its authors' code
        ),
    }  # fmt: skip

    def __init__(self, config: ProGANConfig, spec: ImageSpec):
        super().__init__(config, spec)
        coarsest, self.last = base_size((spec.height, spec.width))
        if not self.last or max(coarsest) > LONGEST:
            raise LimnerError(
                f"progan cannot double a small size up to {spec.height}x{spec.width}: "
                "choose a --size that is a power of two times sides of 3 to 16, such as 32 or 64x48."
            )
        classes = choose_classes(self)
        self.generator = Generator(config, spec, classes)
        self.discriminator = Discriminator(config, spec, classes)

    def advance(self, seen: int) -> None:
        self.generator.seen.fill_(seen)

    @property
    def grown(self) -> Growth:
        return growth(int(self.generator.seen), self.last, self.config.stable, self.config.fade)

    def objectives(self) -> list[Objective]:
        discriminator = Objective("discriminator", self.discriminator_loss)
        return [discriminator, Objective("generator", self.generator_loss)]

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        label, grown = batch.condition.label, self.grown
        real = at_growth(batch.image, self.last, grown)
        with torch.no_grad():
            fake = self.generate_fakes(batch, grown)
        (score, told), (fake_score, fake_told) = (self.judge(x, label, grown) for x in (real, fake))
        terms = {"adversarial": LOSSES[self.config.loss][0](score, fake_score)}
        terms |= {name: told[name] + fake_told[name] for name in told}
        if self.config.penalty:
            terms["penalty"] = self.penalty(real, fake, label, grown)
        if self.config.loss == "wgan_gp" and self.config.drift:
            terms["drift"] = self.config.drift * score.square().mean()
        return terms

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        grown = self.grown
        score, told = self.judge(self.generate_fakes(batch, grown), batch.condition.label, grown)
        return {"adversarial": LOSSES[self.config.loss][1](score), **told}

    def judge(self, image: Tensor, label: Tensor | None, grown: Growth) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's logits [B]; with a classifier, also the cross entropy of its classes, as a term."""
        if not self.discriminator.classes:
            return self.discriminator(image, label, grown), {}
        assert label is not None
        score, classes = self.discriminator.outputs(image, label, grown)
        return score, {"class": F.cross_entropy(classes, label)}

    def penalty(self, real: Tensor, fake: Tensor, label: Tensor | None, grown: Growth) -> Tensor:
        """wgan_gp: lambda (|grad D(x)| - 1)^2 between real and fake images, in float32; else R1 on real ones."""
        scores = partial(self.discriminator, label=label, grown=grown)
        if self.config.loss != "wgan_gp":
            return adversarial.r1_penalty(scores, real, self.config.penalty)
        with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
            weight = torch.rand(len(real), 1, 1, 1, device=real.device)
            mixed = torch.lerp(real, fake, weight).detach().requires_grad_()  # [B, C, h, w]
            logits = scores(mixed)
            with no_weight_gradients():
                return self.config.penalty * adversarial.gradient_penalty(logits, mixed)

    def generate_fakes(self, batch: Batch, grown: Growth) -> Tensor:
        """Images at level ``grown`` with the labels of the batch: [B, C, h, w]."""
        latent = torch.randn(len(batch.image), self.config.latent, device=batch.image.device)
        return self.generator(self.normalise(latent), batch.condition.label, grown)

    def normalise(self, latent: Tensor) -> Tensor:
        """[B, latent] to mean square 1; as it is where the generator normalises it with its label."""
        return latent if self.generator.classes else pixel_norm(latent)

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """[B, latent], normal, then normalised to mean square 1 (see ``normalise``)."""
        return self.normalise(draws.normal(self.config.latent))

    def paint(self, latent: Tensor, condition: Condition) -> Tensor:
        """[B, latent] -> [B, C, H, W] in [-1, 1], enlarged from the level that training reached."""
        image = self.generator(latent, condition.label, self.grown)  # [B, C, h, w]
        return F.interpolate(image, (self.spec.height, self.spec.width), mode="nearest").clamp(-1, 1)

    def directions(self) -> Tensor:
        """[K, latent]: eigenvectors of A^T A, A the first layer's weights (Shen and Zhou 2021, eq. 4)."""
        weight = self.generator.dense.weight[:, : self.config.latent].float()
        return torch.linalg.svd(weight, full_matrices=False).Vh

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: ProGANSampling, draws: Draws) -> Iterator[Canvas]:
        """One canvas; without labels, each image's own stream draws its label."""
        latent = sampling.truncation * self.latent(condition, draws)
        picture = self.paint(latent, self.with_labels(condition, draws))
        yield Canvas(1, 1, lambda: picture)
