"""BigGAN: spectrally normalised networks with attention, class-conditional at scale, sampled with truncation.

Brock, Donahue and Simonyan 2019, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", with its
deep variant (appendix B); also without labels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, Model, Objective, Preset, mix
from limner.families._conditioning import choose_classes
from limner.fields import Bounds, Checked, Share
from limner.losses.adversarial import hinge_d, hinge_g
from limner.networks.convnets import base_size
from limner.networks.gans.residual import Attention, DeepDown, DeepUp, Down, Up
from limner.networks.gans.spectral import SpectralConv2d, SpectralEmbedding, SpectralLinear
from limner.networks.layers import at_least_float32
from limner.networks.shape import attention_levels, level_sizes
from limner.settings import LimnerError, Optimiser, Training

STANDING_BATCH = 32  # images in each pass that measures standing statistics
LONGEST_BASE = 15  # pixels: limit on the shorter side of the base size


@dataclass(frozen=True)
class BigGANConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("attention_resolutions",)

    generator_width: int = 96  # feature maps of the generator for each unit of widths
    discriminator_width: int = 96  # the same, of the discriminator
    widths: tuple[int, ...] = (16, 16, 8, 4, 2, 1)  # by resolution, from the base up; the last repeats
    discriminator_widths: tuple[int, ...] = ()  # the discriminator's, from the base up; empty: as widths
    attention_resolutions: tuple[int, ...] = (64,)  # shorter sides, in pixels, of feature maps with attention
    chunk: int = 20  # latent dimension of the base and of each doubling
    embedding: int = 128  # dimension of a label's embedding, shared by all layers
    deep: bool = False  # bottleneck blocks, each conditioned on the whole latent
    depth: int = 2  # deep: blocks at each resolution
    latent: int = 128  # deep: latent dimension
    orthogonal: float = 1e-4  # weight of the orthogonal regularisation of the generator
    discriminator_steps: int = 1  # discriminator updates for each generator update
    condition: Literal["auto", "none", "label"] = "auto"  # auto: label where the data has labels


@dataclass(frozen=True)
class BigGANSampling(Checked):
    truncation: Share = 1.0  # central probability mass of the latent; below 1: quality over diversity
    # passes that measure the standing statistics of batch norm; 0: use those of training
    standing: Annotated[int, Bounds(0, 2**20)] = 16


def truncate(z: Tensor, mass: float) -> Tensor:
    """Standard normal to truncated normal that keeps the central probability ``mass``, by its quantile function.

    Brock's threshold is then sqrt(2) erfinv(mass): 0.954 corresponds to a threshold of 2, 0.683 to 1, 0.383 to 0.5.
    The latent of a seed changes continuously with the mass, which resampling would not give.
    """
    root = 2**0.5
    return z if mass == 1 else (root * torch.erfinv(mass * torch.erf(z.double() / root))).to(z.dtype)


def orthogonality(weight: Tensor) -> Tensor:
    """||W^T W * (1 - I)||_F^2, where the columns of W are the filters (Brock 2019, eq. 3)."""
    filters = weight.flatten(1)  # [outputs, inputs]
    squares = filters.square().sum(1)
    if len(filters) > filters.shape[1]:  # the other Gram matrix is smaller and has the same norm
        return (filters.T @ filters).square().sum() - squares.square().sum()
    return (filters @ filters.T - torch.diag(squares)).square().sum()


def layout(config: BigGANConfig, spec: ImageSpec) -> tuple[tuple[int, int], list[int], tuple[int, ...]]:
    """The base size, the widths by resolution from the base up, and how often the image is halved where it attends."""
    base, levels = base_size(size := (spec.height, spec.width))
    widths = [*config.widths, *[config.widths[-1]] * levels][: levels + 1]
    return base, widths, attention_levels(config.attention_resolutions, level_sizes(size, levels + 1))


class Generator(nn.Module):
    """A latent [B, latent], and a label [B] if there are classes, to an image."""

    def __init__(self, config: BigGANConfig, spec: ImageSpec, classes: int):
        super().__init__()
        base, widths, attention = layout(config, spec)
        maps, levels = [config.generator_width * w for w in widths], len(widths) - 1
        self.chunks, chunk = (1, config.latent) if config.deep else (levels + 1, config.chunk)
        self.latent = chunk * self.chunks
        self.shared = nn.Embedding(classes, config.embedding) if classes else None
        inputs = chunk + (config.embedding if classes else 0)  # of a condition
        self.linear = SpectralLinear(inputs if config.deep else chunk, maps[0] * base[0] * base[1])
        self.start = nn.Unflatten(1, (maps[0], *base))
        self.blocks = nn.ModuleList()
        for level, (i, o) in enumerate(pairwise(maps), 1):
            if config.deep:
                self.blocks.extend(DeepUp(i, i, inputs, up=False) for _ in range(config.depth - 1))
                self.blocks.append(DeepUp(i, o, inputs, up=True))
            else:
                self.blocks.append(Up(i, o, inputs))
            if levels - level in attention:
                self.blocks.append(Attention(o))
        self.norm = nn.BatchNorm2d(maps[-1])
        self.out = SpectralConv2d(maps[-1], spec.channels, 3)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        conditions = chunks = z.chunk(self.chunks, dim=1)  # [B, chunk] each
        if self.shared is not None:
            embedded = self.shared(label)  # [B, embedding]
            conditions = tuple(torch.cat([embedded, chunk], dim=1) for chunk in chunks)
        if self.chunks == 1:  # deep: the whole latent for each block
            first, each = conditions[0], iter(conditions * len(self.blocks))
        else:
            first, each = chunks[0], iter(conditions[1:])
        x = self.start(self.linear(first))  # [B, maps, h, w]
        for block in self.blocks:
            x = block(x) if isinstance(block, Attention) else block(x, next(each))
        return at_least_float32(self.out(F.relu(self.norm(x))).tanh())  # [B, C, H, W]


class Discriminator(nn.Module):
    """An image, and a label [B] if there are classes (by projection, Miyato 2018), to logits [B], positive: real."""

    def __init__(self, config: BigGANConfig, spec: ImageSpec, classes: int):
        super().__init__()
        _, widths, attention = layout(
            replace(config, widths=config.discriminator_widths or config.widths), spec
        )
        maps, layers = [config.discriminator_width * w for w in reversed(widths)], nn.Sequential()
        if config.deep:
            layers.append(SpectralConv2d(spec.channels, maps[0], 3))  # [B, maps, H, W]
        else:
            layers.append(Down(spec.channels, maps[0], first=True))  # [B, maps, H/2, W/2]
            layers.extend([Attention(maps[0])] if 1 in attention else [])
        for level, (i, o) in enumerate(pairwise(maps), 1 if config.deep else 2):
            if config.deep:
                layers.append(DeepDown(i, o, downsample=True))
                layers.extend(DeepDown(o, o, downsample=False) for _ in range(config.depth - 1))
            else:
                layers.append(Down(i, o, downsample=level < len(widths)))
            layers.extend([Attention(o)] if level in attention else [])
        self.layers = layers
        self.head = SpectralLinear(maps[-1], 1)
        self.embed = SpectralEmbedding(classes, maps[-1]) if classes else None

    def forward(self, image: Tensor, label: Tensor | None) -> Tensor:
        features = F.relu(self.layers(image)).sum((2, 3))  # [B, maps]
        score = self.head(features).squeeze(1)  # [B]
        if self.embed is not None:
            score = score + (self.embed(label) * features).sum(1)  # [B]
        return at_least_float32(score)


class BigGAN(Model):
    Config = BigGANConfig
    Sampling = BigGANSampling
    reads = frozenset({"label"})
    averaged = ("generator",)
    paper = (
        "Brock, Donahue and Simonyan 2019, Large Scale GAN Training for High Fidelity Natural Image Synthesis"
    )
    about = "class-conditional GAN at scale, with attention and truncation"

    def __init__(self, config: BigGANConfig, spec: ImageSpec):
        super().__init__(config, spec)
        base, doublings = base_size(size := (spec.height, spec.width))
        if not doublings or min(base) > LONGEST_BASE:
            step = 2 ** max(1, int(math.log2(min(size))) - 2)
            height, width = (step * max(4, round(side / step)) for side in size)
            raise LimnerError(
                f"biggan cannot double a base of 3 to {LONGEST_BASE} pixels a side up to {size[0]}x{size[1]}: "
                f"choose --size {height}x{width}."
            )
        classes = choose_classes(self)
        self.generator = Generator(config, spec, classes)
        self.discriminator = Discriminator(config, spec, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                nn.init.orthogonal_(module.weight)
                if isinstance(bias := getattr(module, "bias", None), Tensor):
                    nn.init.zeros_(bias)
        self.measured: dict[BigGANSampling, Generator] = {}  # with the standing statistics of these settings

    def train(self, mode: bool = True) -> BigGAN:
        self.measured = {}  # statistics of weights that training may change
        super().train(mode)
        return self

    def objectives(self) -> list[Objective]:
        discriminator = Objective("discriminator", self.discriminator_loss)
        return [discriminator, Objective("generator", self.generator_loss, self.config.discriminator_steps)]

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.generate_fakes(batch)
        label = batch.condition.label
        both = None if label is None else torch.cat([label, label])
        score = self.discriminator(torch.cat([batch.image, fake]), both)  # [2B]
        return {"adversarial": hinge_d(*score.chunk(2))}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        score = self.discriminator(self.generate_fakes(batch), batch.condition.label)  # [B]
        terms = {"adversarial": hinge_g(score)}
        if self.config.orthogonal:
            layers = [m for m in self.generator.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            with torch.autocast(batch.image.device.type, enabled=False):
                total = torch.stack([orthogonality(layer.weight) for layer in layers]).sum()
            terms["orthogonal"] = self.config.orthogonal * total
        return terms

    def generate_fakes(self, batch: Batch) -> Tensor:
        """Images with the labels of the batch: [B, C, H, W]."""
        z = torch.randn(len(batch.image), self.generator.latent, device=batch.image.device)
        return self.generator(z, batch.condition.label)

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: BigGANSampling, draws: Draws) -> Iterator[Canvas]:
        """A canvas for each pass that measures statistics, unless they are cached, and one for the image."""
        if not 0 <= sampling.truncation <= 1:
            raise LimnerError(
                f"--truncation {sampling.truncation:g} is out of range for biggan: choose 0 to 1."
            )
        z = truncate(self.latent(condition, draws), sampling.truncation)  # [B, latent]
        label = self.with_labels(condition, draws).label
        total = 1 + (0 if sampling in self.measured else sampling.standing)
        for done in self.measure(sampling):
            yield Canvas(done, total, lambda: self.generator(z, label))
        picture = self.measured[sampling](z, label)
        yield Canvas(total, total, lambda: picture)

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """[B, latent], standard normal."""
        return draws.normal(self.generator.latent)

    def paint(self, latent: Tensor, condition: Condition) -> Tensor:
        """[B, latent] -> [B, C, H, W] in [-1, 1], differentiable; without labels, all of the first class."""
        sampling = BigGANSampling()
        for _ in self.measure(sampling):
            pass
        first = torch.zeros(len(latent), dtype=torch.long, device=latent.device)
        return self.measured[sampling](latent, first if condition.label is None else condition.label)

    def measure(self, sampling: BigGANSampling) -> Iterator[int]:
        """Measure standing statistics for this truncation into ``measured``; yields the passes done after each.

        Their latents and labels are always the same, so that an image depends on its own seed only. They belong to a
        copy of the generator that shares its weights (Brock 2019, appendix E).
        """
        if sampling in self.measured:
            return
        weights = {id(p): p for p in self.generator.parameters()}
        with torch.inference_mode(False):  # so that an image can be differentiated by its latent later
            generator = copy.deepcopy(self.generator, weights).eval()
        for norm in generator.modules():
            if isinstance(norm, nn.BatchNorm2d) and sampling.standing:
                norm.reset_running_stats()
                norm.train().momentum = None  # the mean over all passes
        for i in range(sampling.standing):
            seeds = [mix("standing", i, j) for j in range(STANDING_BATCH)]
            with torch.inference_mode(False), torch.no_grad():
                draws, any_label = Draws(seeds, self.device), Condition(STANDING_BATCH)
                z = truncate(self.latent(any_label, draws), sampling.truncation)
                generator(z, self.with_labels(any_label, draws).label)
            yield i + 1
        self.measured = {sampling: generator.eval()}


def _training(lr: tuple[float, float], batch: int, **options: Any) -> Training:
    """Adam without momentum; ``lr`` is that of the generator and that of the discriminator.

    Brock 2019, appendix C, has 5e-5 and 2e-4 for two discriminator steps; the preset paper is the authors' for one.
    """
    adam = Optimiser("adam", betas=(0.0, 0.999), eps=1e-6)
    players = {"generator": replace(adam, lr=lr[0]), "discriminator": replace(adam, lr=lr[1])}
    return Training(batch=batch, optimisers=players, **options)


# For 256x256 the paper's widths are (16, 16, 8, 8, 4, 2, 1), for 512x512 with one more 1.
# The average decays by 0.9999 a step, from step 20,000 on.
_PAPER = _training(
    (1e-4, 4e-4), 2048, schedule="constant", accumulate=8, average=2048 * math.log(0.5) / math.log(0.9999),
    average_rampup=0.0, average_from=2048 * 20_000,
)  # fmt: skip
BigGAN.presets = {
    "tiny": Preset(
        BigGANConfig(4, 4, (2, 2, 1), attention_resolutions=(8,), chunk=4, embedding=4, latent=8),
        _training((2e-3, 2e-3), 8, average=100.0),
    ),
    "small": Preset(
        BigGANConfig(16, 16, (16, 8, 4, 1), attention_resolutions=(16,), embedding=32),
        _training((4e-4, 8e-4), 64, average=5_000.0),
    ),
    "base": Preset(BigGANConfig(64, 64, attention_resolutions=(32,)), _training((1e-4, 4e-4), 256, average=100_000.0)),
    "paper": Preset(
        BigGANConfig(), _PAPER, size=(128, 128), channels=3, classes=1000,
        parameters={"generator": 70_433_988, "discriminator": 87_982_370},  # ajbrock/BigGAN-PyTorch
    ),
    # ImageNet at 64x64. There the discriminator is a step narrower than the generator at each resolution.
    "paper64": Preset(
        BigGANConfig(widths=(16, 16, 8, 4, 2), discriminator_widths=(16, 8, 4, 2, 1), chunk=24), _PAPER, size=(64, 64),
        channels=3, classes=1000,
        parameters={"generator": 70_239_108, "discriminator": 45_500_449},  # ajbrock/BigGAN-PyTorch
    ),
    "deep": Preset(BigGANConfig(128, 128, deep=True), _PAPER, size=(128, 128), channels=3),
}  # fmt: skip
