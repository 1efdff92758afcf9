"""Flow matching in pixel space: the default family, unconditional, by label or by text.

A straight path leads from noise at t = 0 to data at t = 1 (Lipman 2023; Liu 2023). The network predicts the
clean image, the loss compares velocities (Li and He 2025), and images are drawn by following the velocity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

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
from limner.diffusion.paths import Level
from limner.diffusion.sampling import Guess, Knobs, Predict, Solver, draw, weaker
from limner.families._conditioning import ConditionEmbedder, ConditionEmbedding, choose
from limner.networks.layers import time_features
from limner.networks.unets.unet import UNet, UNetLevels
from limner.text.encoder import TextConfig

PATH = paths.Straight()


@dataclass(frozen=True)
class FlowConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("attention_resolutions", "cross_attention_resolutions")

    condition: Literal["auto", "none", "label", "text"] = "auto"  # auto: text, else label, as the data has it
    patch: int = 2  # pixels a side of a patch, folded into the channels
    widths: tuple[int, ...] = (48, 128, 192)  # channels by level; each level halves the side
    blocks: tuple[int, ...] = (1, 1, 1)  # residual blocks by level, on the way down and again on the way up
    attention_resolutions: tuple[int, ...] = (4,)  # shorter sides of the feature maps that attend, in patches
    cross_attention_resolutions: tuple[int, ...] = (
        8,
    )  # of those that attend to the text alone, which costs less
    head: int = 64  # channels of an attention head
    embedding: int = 128  # width of what the blocks are told of time and condition
    dropout: float = 0.0  # inside the blocks
    drop_condition: float = 0.1  # share of training images shown without their condition, for guidance
    text: TextConfig = field(default_factory=TextConfig)  # the text encoder
    time_mean: float = -0.8  # training times are sigmoid(normal): its mean
    time_std: float = 1.0  # and its standard deviation
    time_uniform: float = 0.1  # share of training times that are uniform instead
    nearest: float = 0.05  # 1 - t is taken as at least this in the loss


@dataclass(frozen=True)
class FlowSampling(Knobs):
    steps: int = 16  # steps from noise to image
    solver: Solver = "unipc"  # as good in 16 calls as heun in 31 (docs/results.md)
    shift: float = 1.5  # above 1: more of the steps near the noise


class Network(nn.Module):
    """Noisy image [B, C, H, W], time [B] and condition -> clean image [B, C, H, W]."""

    def __init__(self, config: FlowConfig, spec: ImageSpec, condition: str):
        c, width = config, config.embedding
        super().__init__()
        self.embedder = ConditionEmbedder(condition, len(spec.classes), width, c.text)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        levels = UNetLevels(
            c.widths,
            c.blocks,
            c.attention_resolutions,
            c.cross_attention_resolutions,
            c.patch,
            c.head,
            c.dropout,
        )
        context = c.text.width if condition == "text" else 0
        self.unet = UNet(spec.channels, spec.channels, (spec.height, spec.width), width, levels, context)

    def forward(self, x: Tensor, t: Tensor, condition: ConditionEmbedding) -> Tensor:
        embedding = self.time(time_features(t, 64))  # [B, E]
        if condition.embedding is not None:
            embedding = embedding + condition.embedding  # [B, E]
        return self.unet(x, F.silu(embedding), condition.tokens, condition.mask).float()  # [B, C, H, W]


class Flow(Model):
    Config = FlowConfig
    Sampling = FlowSampling
    reads = frozenset({"label", "text", "image", "mask"})
    averaged: ClassVar[tuple[str, ...]] = ("network",)
    paper: ClassVar[str] = (
        "Lipman 2023, Flow Matching for Generative Modeling; Li and He 2025, Back to Basics"
    )
    about: ClassVar[str] = "flow matching in pixel space; the default"

    def __init__(self, config: FlowConfig, spec: ImageSpec):
        super().__init__(config, spec)
        condition = choose(self, "text", "label")
        self.network = Network(config, spec, condition)

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        c, data = self.config, batch.image
        t = paths.times(len(data), c.time_mean, c.time_std, c.time_uniform, data.device)
        x_t = paths.interpolate(data, torch.randn_like(data), t)
        guess = self.network(x_t, t, self.network.embedder.with_dropout(batch, c.drop_condition))
        error = paths.velocity(guess, x_t, t, c.nearest) - paths.velocity(data, x_t, t, c.nearest)
        return {"velocity": error.square().mean()}

    def denoiser(self, condition: Condition) -> Predict:
        """The clean image that the network guesses, for ``condition``."""
        embedded = self.network.embedder(condition)

        def predict(x: Tensor, level: Level) -> Guess:
            return Guess(self.network(x, torch.full((len(x),), level.time, device=x.device), embedded))

        return predict

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: FlowSampling, draws: Draws) -> Iterator[Canvas]:
        yield from draw(
            self.denoiser(condition), PATH, PATH.levels(sampling.steps, sampling.shift), sampling, draws,
            self.spec.shape, condition, weak=weaker(sampling, self, condition),
        )  # fmt: skip


# Muon learns from an image what takes AdamW two to three: see docs/log.md.
SMALL = Training(
    batch=32, samples=16, optimisers={"network": Optimiser("muon", lr=2e-3, matrix_lr=0.008)}, clip=1.0
)

Flow.presets = {
    "tiny": Preset(
        FlowConfig(
            widths=(16, 32),
            blocks=(1, 1),
            attention_resolutions=(4,),
            cross_attention_resolutions=(16,),
            head=16,
            embedding=32,
            text=TextConfig(width=32, layers=1),
        ),
        dataclasses.replace(SMALL, batch=16),
    ),
    "small": Preset(FlowConfig(), SMALL),
    "base": Preset(
        FlowConfig(
            widths=(128, 256, 512, 512),
            blocks=(2, 2, 3, 3),
            attention_resolutions=(8, 4),
            cross_attention_resolutions=(16,),
            embedding=512,
            text=TextConfig(width=512, layers=6, length=512),
            dropout=0.1,
        ),
        Training(
            batch=256,
            optimisers={"network": Optimiser("muon", lr=5e-4, matrix_lr=0.01)},
            flat=0.5,
            warmup=10_000,
            clip=1.0,
            average=500_000,
        ),
    ),
    # After Lipman 2023's CIFAR-10: uniform times, Adam, pixels rather than patches; with this U-Net.
    "paper": Preset(
        FlowConfig(
            patch=1,
            widths=(256, 512, 512, 512),
            blocks=(2, 2, 2, 2),
            attention_resolutions=(16,),
            cross_attention_resolutions=(16,),
            time_uniform=1.0,
        ),
        Training(
            batch=256,
            optimisers={"network": Optimiser("adam", lr=5e-4, betas=(0.9, 0.999))},
            warmup=45_000 * 256,
        ),
        size=(32, 32),
    ),
}
