"""Mean flows: the average velocity between two times, so that one network call leads from noise to image.

Geng 2025, "Mean Flows for One-step Generative Modeling"; Geng 2025b, "Improved Mean Flows"; in pixels, Lu 2026,
"One-step Latent-free Image Generation with Pixel Mean Flows". Time runs as elsewhere in Limner, from noise at t = 0
to data at t = 1, opposite to the papers. For s >= t, u(x_t, t, s) is the mean of the velocity on the path from x_t
to x_s, so x_s = x_t + (s - t) u. The network predicts an image D, and u = (D - x_t) / (1 - t).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from limner.core import (
    Batch,
    Canvas,
    Condition,
    ConditionEmbedding,
    Draws,
    ImageSpec,
    Model,
    Objective,
    Preset,
)
from limner.diffusion import paths
from limner.diffusion.objectives import FlowMatching
from limner.diffusion.paths import expand_dims
from limner.diffusion.sampling import Guidance
from limner.families._by_images import by_images, unet_widths
from limner.families._conditioning import ConditionEmbedder, check_guidance, choose_condition, run_body
from limner.families._presets import BASE_LEVELS, BASE_MUON, SMALL_UNET, TINY_LEVELS, TINY_UNET, training
from limner.fields import Checked, PositiveShare, Share
from limner.losses.mean_flow import Average, adaptive_weight, implied_velocity, split_target
from limner.networks.images.headroom import HEADROOM, with_headroom
from limner.networks.layers import time_features
from limner.networks.transformers.dit import DiffusionTransformer, DiTBlocks
from limner.networks.unets.unet import UNet, UNetLevels
from limner.settings import LimnerError, Optimiser
from limner.text.encoder import TextConfig


@dataclass(frozen=True)
class MeanFlowConfig(FlowMatching, UNetLevels):
    # U-Net: channels by level; default: by the size of the images
    widths: tuple[int, ...] = by_images(unet_widths)
    condition: Literal["auto", "none", "label", "text"] = "auto"  # auto: text, else label, as the data has it
    network: Literal["unet", "transformer"] = "unet"  # unet: for a CPU; transformer: DiT
    body: DiTBlocks = field(default_factory=DiTBlocks)  # of the transformer
    embedding: int = 128  # U-Net: width of the embedding of times and condition
    text: TextConfig = field(default_factory=TextConfig)  # the text encoder
    predict: Literal["data", "velocity"] = "data"  # data: Lu 2026; velocity: u itself, as Geng 2025
    objective: Literal["split", "jvp"] = "split"  # split: Guo 2025; jvp: the identity of Geng 2025
    tangent: Literal["predicted", "conditional"] = "predicted"  # jvp: the network's velocity, or data - noise
    flow_matching_share: float = 0.75  # fraction of training pairs with s = t, which learn the velocity
    from_noise: float = 0.5  # fraction of the other pairs with t = 0
    to_data: float = 0.5  # fraction of the other pairs with s = 1
    average_weight: float = 1.0  # loss weight of pairs with s > t: their errors are small, without noise
    adaptive_power: float = 0.0  # p of the loss weight 1 / (squared error + 0.001)^p; 0: the mean square
    condition_dropout: Share = 0.1  # fraction of training images whose condition is left out
    headroom: Share = 0.0  # how far beyond the range of pixels those at its ends are learned
    guidance: float = 1.0  # largest guidance scale that is learned; 1: none
    guided_share: float = 0.5  # fraction of training images with a guidance scale above 1, if it is learned


@dataclass(frozen=True)
class MeanFlowSampling(Checked):
    steps: int = 1  # network calls an image
    guidance: Guidance = 1.0  # how strongly to follow the condition, up to the largest scale that was learned
    strength: PositiveShare = 0.7  # with an image: how far back to noise it is taken; 1: all the way


class Network(nn.Module):
    """Noisy image [B, C, H, W], its time [B], the time to reach [B] and condition -> [B, C, H, W]."""

    def __init__(self, config: MeanFlowConfig, spec: ImageSpec, condition: str):
        c = config
        width = c.embedding if c.network == "unet" else c.body.width
        super().__init__()
        self.embedder = ConditionEmbedder(condition, len(spec.classes), width, c.text)
        self.time = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))
        if condition != "none" and c.guidance > 1:
            self.guidance = nn.Linear(1, width, bias=False)
        channels, size, context = spec.channels, (spec.height, spec.width), self.embedder.context
        self.body: nn.Module
        if c.network == "unet":
            self.body = UNet(channels, channels, size, width, c, context)
        else:
            self.body = DiffusionTransformer(c.body, channels, channels, size, context)

    def embed(
        self, condition: Condition, keep: Tensor | None = None, guidance: Tensor | None = None
    ) -> ConditionEmbedding:
        """The condition, of images that ``keep`` [B] is True for, and the guidance scale [B]."""
        rows = self.embedder(condition, keep)
        if guidance is not None and hasattr(self, "guidance") and rows.embedding is not None:
            embedding = rows.embedding + self.guidance(guidance.log()[:, None])  # [B, E]
            rows = replace(rows, embedding=embedding)
        return rows

    def forward(self, x: Tensor, t: Tensor, s: Tensor, condition: ConditionEmbedding) -> Tensor:
        times = torch.cat([time_features(t, 64), time_features(s - t, 64)], dim=1)  # [B, 128]
        return run_body(self.body, x, self.time(times), condition)  # [B, C, H, W]


class MeanFlow(Model):
    Config = MeanFlowConfig
    Sampling = MeanFlowSampling
    reads = frozenset({"label", "text", "image"})
    averaged = ("network",)
    paper = "Geng 2025, Mean Flows for One-step Generative Modeling; Lu 2026, Pixel Mean Flows"
    about = "flow matching by average velocity; no teacher"

    def __init__(self, config: MeanFlowConfig, spec: ImageSpec):
        super().__init__(config, spec)
        self.network = Network(config, spec, choose_condition(self, "text", "label"))

    def objectives(self) -> list[Objective]:
        if self.largest_guidance < self.config.guidance and hasattr(self.network, "guidance"):
            raise LimnerError(
                f"--model.guidance {self.config.guidance:g} cannot be learned with --model.condition-dropout 0, as it "
                "leads away from images without a condition: set the dropout above 0, such as 0.1."
            )
        return [Objective("network", self.loss, shown=("velocity", "average"))]

    @property
    def largest_guidance(self) -> float:
        """The largest scale that training teaches."""
        return self.config.guidance if self.drops_condition else 1.0

    def average(self, condition: ConditionEmbedding, sigma_floor: float | None = None) -> Average:
        """u(x_t, t, s), the average velocity that the network predicts for a condition.

        1 - t is taken as at least ``sigma_floor``, by default the config's: no training time reaches the data.
        """
        least = self.config.sigma_floor if sigma_floor is None else sigma_floor

        def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            out = self.network(x, t, s, condition)
            return paths.velocity(out, x, t, least) if self.config.predict == "data" else out

        return u

    def times(self, n: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
        """Times t <= s [n], and how many of the first pairs have t = s."""
        c = self.config
        one, other = (
            paths.training_times(n, c.time_mean, c.time_std, c.time_uniform, device) for _ in range(2)
        )
        equal = round(n * c.flow_matching_share)
        start, end = (torch.rand(n, device=device) < share for share in (c.from_noise, c.to_data))
        t = torch.where(start, 0.0, torch.where(end, one, torch.minimum(one, other)))
        s = torch.where(end, 1.0, torch.where(start, one, torch.maximum(one, other)))
        t[:equal] = s[:equal] = one[:equal]
        return t, s, equal

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared errors of the velocity (t = s) and of the average velocity (t < s), and their weighted sum.

        The weighted sum is lowered. An adaptive weight hides that the errors fall, so the plain ones are shown.
        """
        c, n = self.config, len(batch.image)
        data = with_headroom(batch.image, c.headroom)
        t, s, equal = self.times(n, data.device)
        x = paths.noised(paths.STRAIGHT, data, torch.randn_like(data), t)
        keep = torch.rand(n, device=data.device) >= c.condition_dropout
        guidance = self.training_guidance(keep)
        condition = self.network.embed(batch.condition, keep, guidance)
        velocity = paths.velocity(data, x, t, c.sigma_floor)
        if guidance is not None:
            velocity = self.guided_velocity(velocity, x, t, condition, guidance)
        errors = []
        if equal:
            u = self.average(condition[:equal])(x[:equal], t[:equal], s[:equal])
            errors.append(u - velocity[:equal])
        if equal < n:
            rest = slice(equal, n)
            errors.append(self.average_error(x[rest], t[rest], s[rest], condition[rest], velocity[rest]))
        squares = torch.cat(errors).square().flatten(1)  # [B, CHW]
        weighted = adaptive_weight(squares, c.adaptive_power) * squares.sum(1)  # [B]
        plain = squares.detach()
        return {
            "velocity": plain[:equal].sum() / plain.numel(),
            "average": plain[equal:].sum() / plain.numel(),
            "weighted": (weighted[:equal].sum() + c.average_weight * weighted[equal:].sum()) / n,
        }

    def average_error(
        self, x: Tensor, t: Tensor, s: Tensor, condition: ConditionEmbedding, velocity: Tensor
    ) -> Tensor:
        """What u(x_t, t, s) lacks of its target, [B, C, H, W]; for jvp, the velocity that u implies."""
        u = self.average(condition)
        if self.config.objective == "split":
            return u(x, t, s) - split_target(u, x, t, s)
        tangent = velocity
        if self.config.tangent == "predicted":
            with torch.no_grad():
                tangent = u(x, t, t)
        return implied_velocity(u, x, t, s, tangent) - velocity

    def training_guidance(self, keep: Tensor) -> Tensor | None:
        """Guidance scales of training images [B]: 1, or log-uniform; 1 where ``keep`` is False. None: not learned."""
        c = self.config
        if not hasattr(self.network, "guidance"):
            return None
        scale = c.guidance ** torch.rand(len(keep), device=keep.device)
        guided = keep & (torch.rand(len(keep), device=keep.device) < c.guided_share)
        return torch.where(guided, scale, torch.ones_like(scale))

    @torch.no_grad()
    def guided_velocity(
        self, velocity: Tensor, x: Tensor, t: Tensor, condition: ConditionEmbedding, guidance: Tensor
    ) -> Tensor:
        """v + (1 - 1 / w) (v with the condition - v without), for guidance scales w [B] (Geng 2025b)."""
        rows = (guidance > 1).nonzero()[:, 0]
        if not len(rows):
            return velocity
        x, t = x[rows], t[rows]
        without = self.network.embed(Condition(len(rows)), guidance=torch.ones_like(t))
        gap = self.average(condition[rows])(x, t, t) - self.average(without)(x, t, t)
        return velocity.index_add(0, rows, expand_dims(1 - 1 / guidance[rows], gap) * gap)

    def latent(self, condition: Condition, draws: Draws) -> Tensor:
        """The noise, [B, CHW]: one call makes an image of it."""
        return draws.normal(math.prod(self.spec.shape))

    def paint(self, latent: Tensor, condition: Condition) -> Tensor:
        """[B, CHW] -> [B, C, H, W] in [-1, 1]: from noise to image in one call, without guidance."""
        x, ones = latent.unflatten(1, self.spec.shape), torch.ones(len(latent), device=latent.device)
        u = self.average(self.network.embed(condition, guidance=ones))
        return (x + u(x, torch.zeros_like(ones), ones)).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: MeanFlowSampling, draws: Draws) -> Iterator[Canvas]:
        k = sampling
        if self.network.embedder.kind != "none":
            check_guidance(self, k.guidance, self.largest_guidance)
        if not self.drops_condition:  # it never learned to draw without a label
            condition = self.with_labels(condition, draws)
        x, start = draws.normal(*self.spec.shape), 0.0
        if condition.image is not None:
            start = min(1 - k.strength, 0.999)  # at 1 the average velocity is 0 / 0
            x = start * with_headroom(condition.image, self.config.headroom) + (1 - start) * x
        scale = torch.full((condition.size,), k.guidance, device=x.device)
        u = self.average(self.network.embed(condition, guidance=scale), sigma_floor=0.0)
        times = torch.linspace(start, 1, k.steps + 1, device=x.device)
        for i in range(k.steps):
            t, s = (time.expand(len(x)) for time in times[i : i + 2])
            x = x + expand_dims(s - t, x) * u(x, t, s)
            yield Canvas(i + 1, k.steps, partial(x.clamp, -1, 1))


MeanFlow.presets = {
    "tiny": Preset(MeanFlowConfig(**TINY_LEVELS, guidance=3.0, headroom=HEADROOM), TINY_UNET),
    "small": Preset(MeanFlowConfig(headroom=HEADROOM), SMALL_UNET),
    "base": Preset(MeanFlowConfig(**BASE_LEVELS, guidance=4.0, headroom=HEADROOM), BASE_MUON),
    # Lu 2026's pMF-B/16: objective, times, guidance and batch. Its perceptual losses need networks trained on
    # ImageNet, and its transformer has a second head for v: neither is here.
    "paper": Preset(
        MeanFlowConfig(
            network="transformer",
            body=DiTBlocks(patch=16, width=768, depth=12, heads=12, qk_norm=True, rope=True, swiglu=True, registers=16),
            objective="jvp", flow_matching_share=0.5, from_noise=0.0, to_data=0.0, time_mean=-0.8, time_std=0.8,
            time_uniform=0.0, adaptive_power=1.0, guidance=8.0, guided_share=1.0,
        ),
        training(Optimiser("muon", lr=1e-3, matrix_lr=1e-3, betas=(0.9, 0.95)), "network", batch=1024,
                 schedule="constant", average=1_000 * 1024),
        size=(256, 256), channels=3,
    ),
    # Geng 2025's settings for CIFAR-10, whose times run the other way; Limner's U-Net in place of DDPM++.
    "cifar": Preset(
        MeanFlowConfig(
            patch=1, widths=(128, 256, 256, 256), blocks=(4, 4, 4, 4), attention_resolutions=(16,),
            cross_attention_resolutions=(16,), dropout=0.2, embedding=512, condition="none", predict="velocity",
            objective="jvp", tangent="conditional", flow_matching_share=0.25, from_noise=0.0, to_data=0.0,
            time_mean=2.0, time_std=2.0, time_uniform=0.0, sigma_floor=0.0, adaptive_power=0.75, condition_dropout=0.0,
        ),
        training(Optimiser("adam", lr=6e-4, betas=(0.9, 0.999)), "network", batch=1024, schedule="constant",
                 warmup=10_000 * 1024, average=14_000 * 1024),
        size=(32, 32), channels=3,
    ),
}  # fmt: skip
