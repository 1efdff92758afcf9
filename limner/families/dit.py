"""A transformer on patches: diffusion or flow matching, unconditional, by label or by text.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers": noise is predicted in 1000 steps, with each
step's variance. Or along the straight path, its velocity (Ma 2024, SiT) or the clean image (Li and He 2025, JiT).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor, nn

from limner.core import Batch, ConditionEmbedding, Denoised, ImageSpec, Model, Objective, Preset
from limner.diffusion.objectives import FlowMatching, Prediction, denoised, denoising_loss
from limner.diffusion.paths import STRAIGHT, Discrete, Path, Spacing, betas
from limner.diffusion.sampling import Plan, SamplingConfig, Shift, draw
from limner.families._by_images import by_images, transformer_patch
from limner.families._conditioning import ConditionEmbedder, choose_condition, embed_condition, run_body
from limner.families._presets import BASE_MUON, BASE_TEXT, TINY_TEXT, training
from limner.fields import Share
from limner.networks.images.headroom import HEADROOM, with_headroom
from limner.networks.transformers.dit import DiffusionTransformer, DiTBlocks, TimeEmbedder
from limner.settings import Optimiser
from limner.text.encoder import TextConfig

TIME_SCALE = 50  # of the straight path's times in the embedding, whose shortest wavelength is then an eighth
DISCRETE = Discrete(betas("linear", 1000))


@dataclass(frozen=True)
class Body(DiTBlocks):
    patch: int = by_images(transformer_patch, 0)  # pixels a side of a patch; default: by the images' size


@dataclass(frozen=True)
class DiTConfig(FlowMatching):
    body: Body = field(default_factory=Body)
    condition: Literal["auto", "none", "label", "text"] = "auto"  # auto: text, else label, as the data has it
    predict: Prediction = "data"  # noise: diffusion; the others: flow matching
    embedding_std: float = 0.0  # initial standard deviation of time's and labels' weights; 0: by width
    learn_variance: bool = True  # predict=noise: also learn the variance of the ancestral solver's steps
    condition_dropout: Share = 0.1  # fraction of training images whose condition is left out, for guidance
    headroom: Share = 0.0  # how far beyond the range of pixels those at its ends are learned
    text: TextConfig = field(default_factory=TextConfig)  # the text encoder


@dataclass(frozen=True)
class DiTSampling(SamplingConfig):
    spacing: Spacing = "even"  # predict=noise: how the steps are chosen among the 1000 of training
    shift: Shift = 1.0  # flow matching: above 1, more of the steps near the noise


class Network(nn.Module):
    """Noisy image [B, C, H, W], time [B] and condition -> [B, out, H, W]; 0 at first."""

    def __init__(self, config: DiTConfig, spec: ImageSpec, condition: str, out: int):
        c, width = config, config.body.width
        super().__init__()
        self.embedder = ConditionEmbedder(condition, len(spec.classes), width, c.text)
        if condition == "label":
            nn.init.normal_(self.embedder.label.weight, std=c.embedding_std or 0.5)
        self.time = TimeEmbedder(width, c.embedding_std)
        size = (spec.height, spec.width)
        self.body = DiffusionTransformer(c.body, spec.channels, out, size, self.embedder.context)

    def forward(self, x: Tensor, t: Tensor, condition: ConditionEmbedding) -> Tensor:
        return run_body(self.body, x, self.time(t), condition)  # [B, out, H, W]


class DiT(Model):
    Config = DiTConfig
    Sampling = DiTSampling
    reads = frozenset({"label", "text", "image", "mask"})
    averaged = ("network",)
    paper = "Peebles and Xie 2023, Scalable Diffusion Models with Transformers"
    about = "transformer on patches: diffusion or flow matching"

    def __init__(self, config: DiTConfig, spec: ImageSpec):
        super().__init__(config, spec)
        self.discrete = config.predict == "noise"
        self.path: Path = DISCRETE if self.discrete else STRAIGHT
        out = spec.channels * (2 if self.discrete and config.learn_variance else 1)
        self.network = Network(config, spec, choose_condition(self, "text", "label"), out)

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        c = self.config
        rows = partial(self.network.embedder.with_dropout, batch, c.condition_dropout)
        data = with_headroom(batch.image, c.headroom)
        return denoising_loss(lambda x, t: self.call_network(x, t, rows()), data, self.path, c.predict, c)

    def call_network(self, x: Tensor, t: Tensor, rows: ConditionEmbedding) -> Tensor:
        return self.network(x, t if self.discrete else TIME_SCALE * t, rows)  # [B, out, H, W]

    embed = embed_condition

    def denoise(
        self, x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding
    ) -> Denoised:
        return denoised(self.config.predict, self.path, x, self.call_network(x, time, rows), alpha, sigma)

    def plan(self, sampling: DiTSampling) -> Plan:
        s, room = sampling, self.config.headroom
        encode = partial(with_headroom, room=room)
        if self.discrete:
            return Plan(
                DISCRETE, DISCRETE.levels(s.steps, s.spacing), self.spec.shape, 1 + room, encode=encode
            )
        return Plan(STRAIGHT, STRAIGHT.levels(s.steps, s.shift), self.spec.shape, encode=encode)

    sample = draw


# S, B, L and XL of the paper's table 1: widths 384, 768, 1024, 1152; depths 12, 12, 24, 28; heads 6, 12, 16, 16.
DiT.presets = {
    "tiny": Preset(
        DiTConfig(body=Body(patch=4, width=32, depth=2, heads=2), text=TINY_TEXT, headroom=HEADROOM),
        training(Optimiser("adamw", lr=4e-3, matrix_lr=0.01), "network", batch=16, average=100.0),
    ),
    "small": Preset(
        DiTConfig(body=Body(width=192, heads=3, qk_norm=True, rope=True, swiglu=True), headroom=HEADROOM),
        training(Optimiser("muon", lr=2e-3, matrix_lr=0.01), "network", batch=32, samples=16, clip=1.0),
    ),
    "base": Preset(
        DiTConfig(body=Body(width=512, depth=12, heads=8, qk_norm=True, rope=True, swiglu=True, registers=8),
                  text=BASE_TEXT, headroom=HEADROOM),
        BASE_MUON,
    ),
    # B/2 on the latents of 256x256 images: a half-life of log 2 / 1e-4 steps is a moving average of 0.9999.
    "paper": Preset(
        DiTConfig(body=Body(patch=2, width=768, depth=12, heads=12), predict="noise", embedding_std=0.02),
        training(Optimiser("adamw", lr=1e-4, betas=(0.9, 0.999)), "network", batch=256, schedule="constant",
                 average=1_774_000.0, average_rampup=0.0),
        size=(32, 32), channels=4, classes=1000,
        parameters={"network": 130_315_808},  # B/2 on 32x32x4 latents, facebookresearch/DiT
    ),
}  # fmt: skip
