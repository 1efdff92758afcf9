"""A transformer that denoises: diffusion or flow matching over patches, unconditional, by label or by text.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers": noise is predicted in 1000 steps, with each
step's variance. Or along the straight path, its velocity (Ma 2024, SiT) or the clean image (Li and He 2025, JiT).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import (
    Batch,
    Canvas,
    Condition,
    Draws,
    ImageSpec,
    Model,
    Objective,
    Optimiser,
    Preset,
    Training,
)
from limner.diffusion import paths
from limner.diffusion.bound import share, step_bound
from limner.diffusion.paths import Level, Spacing
from limner.diffusion.sampling import Guess, Knobs, Predict, draw, weaker
from limner.families._conditioning import ConditionEmbedder, ConditionEmbedding, choose
from limner.networks.transformers.dit import DiffusionTransformer, DiTBlocks, TimeEmbedder
from limner.text.encoder import TextConfig

FINEST = 50  # the straight path's times are told as 0 to this: no feature of them is rougher than an eighth
STRAIGHT = paths.Straight()
with torch.device("cpu"):  # even where a model is laid out on another device
    DISCRETE = paths.Discrete(paths.betas("linear", 1000))


@dataclass(frozen=True)
class DiTConfig:
    body: DiTBlocks = field(default_factory=DiTBlocks)
    condition: Literal["auto", "none", "label", "text"] = "auto"  # auto: text, else label, as the data has it
    predict: Literal["noise", "velocity", "data"] = "data"  # noise: diffusion; the others: flow matching
    embedding_std: float = (
        0.0  # deviation that the weights of time and label begin with; 0: as suits any width
    )
    learn_variance: bool = True  # noise: also learn how much noise a step of the ancestral solver draws
    drop_condition: float = 0.1  # share of training images shown without their condition, for guidance
    text: TextConfig = field(default_factory=TextConfig)  # the text encoder
    time_mean: float = -0.8  # flow matching's training times are sigmoid(normal): its mean
    time_std: float = 1.0  # and its standard deviation
    time_uniform: float = 0.1  # share of its training times that are uniform instead
    nearest: float = 0.05  # data: 1 - t is taken as at least this in the loss


@dataclass(frozen=True)
class DiTSampling(Knobs):
    spacing: Spacing = "even"  # noise: which of its 1000 steps are taken
    shift: float = 1.0  # flow matching; above 1: more of the steps near the noise


class Network(nn.Module):
    """Noisy image [B, C, H, W], time [B] and condition -> [B, out, H, W]; 0 at first."""

    def __init__(self, config: DiTConfig, spec: ImageSpec, condition: str, out: int):
        c, width = config, config.body.width
        super().__init__()
        self.embedder = ConditionEmbedder(condition, len(spec.classes), width, c.text)
        if condition == "label":
            nn.init.normal_(self.embedder.label.weight, std=c.embedding_std or 0.5)
        self.time = TimeEmbedder(width, c.embedding_std)
        text = c.text.width if condition == "text" else 0
        self.body = DiffusionTransformer(c.body, spec.channels, out, (spec.height, spec.width), text)

    def forward(self, x: Tensor, t: Tensor, condition: ConditionEmbedding) -> Tensor:
        embedding = self.time(t)  # [B, W]
        if condition.embedding is not None:
            embedding = embedding + condition.embedding  # [B, W]
        return self.body(x, F.silu(embedding), condition.tokens, condition.mask).float()  # [B, out, H, W]


class DiT(Model):
    Config = DiTConfig
    Sampling = DiTSampling
    reads = frozenset({"label", "text", "image", "mask"})
    averaged: ClassVar[tuple[str, ...]] = ("network",)
    paper: ClassVar[str] = "Peebles and Xie 2023, Scalable Diffusion Models with Transformers"
    about: ClassVar[str] = "transformer on patches: diffusion or flow matching"

    def __init__(self, config: DiTConfig, spec: ImageSpec):
        super().__init__(config, spec)
        condition = choose(self, "text", "label")
        self.steps = config.predict == "noise"  # rather than the straight path
        self.spread = self.steps and config.learn_variance
        self.network = Network(config, spec, condition, spec.channels * (1 + self.spread))

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.diffusion_loss if self.steps else self.flow_loss)]

    def flow_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The velocity's squared error, whichever the network predicts."""
        c, data = self.config, batch.image
        t = paths.times(len(data), c.time_mean, c.time_std, c.time_uniform, data.device)
        x_t = paths.interpolate(data, noise := torch.randn_like(data), t)
        guess = self.network(x_t, FINEST * t, self.network.embedder.with_dropout(batch, c.drop_condition))
        if c.predict == "velocity":
            error = guess - (data - noise)
        else:
            error = paths.velocity(guess, x_t, t, c.nearest) - paths.velocity(data, x_t, t, c.nearest)
        return {"velocity": error.square().mean()}

    def diffusion_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The noise's squared error and, for the variance alone, the bound (Nichol 2021, eq. 16)."""
        c, data = self.config, batch.image
        t = (paths.evenly(len(data), data.device) * DISCRETE.steps).long()
        x_t = paths.noised(DISCRETE, data, noise := torch.randn_like(data), t)
        out = self.network(
            x_t, t, self.network.embedder.with_dropout(batch, c.drop_condition)
        )  # [B, C or 2C, H, W]
        guess = out[:, : data.shape[1]]
        terms = {"noise": (guess - noise).square().mean()}
        if self.spread:
            level = (paths.like(way(t), x_t) for way in (DISCRETE.alpha, DISCRETE.sigma))
            found = clean(x_t, guess.detach(), *level)
            terms["bound"] = step_bound(DISCRETE, data, x_t, t, found, share(out)).mean()
        return terms

    def denoiser(self, condition: Condition) -> Predict:
        """What the network guesses the clean image to be, for ``condition``."""
        embedded = self.network.embedder(condition)

        def predict(x: Tensor, level: Level) -> Guess:
            time = level.time * (1 if self.steps else FINEST)
            out = self.network(x, torch.full((len(x),), time, device=x.device), embedded)
            if self.steps:
                found = clean(x, out[:, : x.shape[1]], level.alpha, level.sigma)
                return Guess(found, share(out) if self.spread else 0.0)
            return Guess(x + level.sigma * out if self.config.predict == "velocity" else out)

        return predict

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: DiTSampling, draws: Draws) -> Iterator[Canvas]:
        s, path = sampling, DISCRETE if self.steps else STRAIGHT
        levels = DISCRETE.levels(s.steps, s.spacing) if self.steps else STRAIGHT.levels(s.steps, s.shift)
        yield from draw(
            self.denoiser(condition), path, levels, s, draws, self.spec.shape, condition,
            weak=weaker(s, self, condition, lambda other: other.steps == self.steps), clip=1.0 if self.steps else 0.0,
        )  # fmt: skip


def clean(x: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The data of x = alpha data + sigma noise."""
    return (x - sigma * noise) / alpha


def _training(name: Literal["muon", "adamw"], batch: int, lr: float, **options: Any) -> Training:
    return Training(batch=batch, optimisers={"network": Optimiser(name, lr=lr, matrix_lr=0.01)}, **options)


# S, B, L and XL of the paper's table 1: widths 384, 768, 1024, 1152; depths 12, 12, 24, 28; heads 6, 12, 16, 16.
DiT.presets = {
    "tiny": Preset(
        DiTConfig(DiTBlocks(patch=4, width=32, depth=2, heads=2), text=TextConfig(width=32, layers=1)),
        _training("adamw", 16, 4e-3, average=100.0),
    ),
    "small": Preset(
        DiTConfig(DiTBlocks(width=192, heads=3, qk_norm=True, rope=True, swiglu=True)),
        _training("muon", 32, 2e-3, samples=16, clip=1.0),
    ),
    "base": Preset(
        DiTConfig(
            DiTBlocks(width=512, depth=12, heads=8, qk_norm=True, rope=True, swiglu=True, registers=8),
            text=TextConfig(width=512, layers=6, length=512),
        ),
        _training("muon", 256, 5e-4, flat=0.5, warmup=10_000, clip=1.0, average=500_000.0),
    ),
    # B/2 on the latents of 256x256 images: a half-life of log 2 / 1e-4 steps is a moving average of 0.9999.
    "paper": Preset(
        DiTConfig(DiTBlocks(patch=2, width=768, depth=12, heads=12), predict="noise", embedding_std=0.02),
        Training(
            batch=256,
            optimisers={"network": Optimiser("adamw", lr=1e-4, betas=(0.9, 0.999))},
            schedule="constant",
            average=1_774_000.0,
            average_rampup=0.0,
        ),
        size=(32, 32),
        channels=4,
        classes=1000,
        parameters={"network": 130_315_808},  # B/2 on 32x32x4 latents, facebookresearch/DiT
    ),
}
