"""Latent diffusion: a network draws the latent of an image, and a frozen autoencoder decodes it.

Rombach 2022, "High-Resolution Image Synthesis with Latent Diffusion Models": noise is predicted in 1000 steps. Or
flow matching: the velocity or the clean latent is predicted along the straight path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, ConditionEmbedding, Denoised, ImageSpec, Model, Objective, Parent, Preset
from limner.diffusion.objectives import FlowMatching, Prediction, denoised, denoising_loss
from limner.diffusion.paths import STRAIGHT, Discrete, NoiseLevel, Path, betas, spaced_times
from limner.diffusion.sampling import Guidance, Plan, SamplingConfig, Shift, draw
from limner.families._by_images import by_images, latent_multiples, latent_width
from limner.families._codec import BASE, SMALL, SMALLEST, TINY, VQ_F4, AutoencoderConfig, ConfiguredCodec
from limner.families._conditioning import ConditionEmbedder, choose_condition, embed_condition, run_body
from limner.families._presets import BASE_MUON, BASE_TEXT, SMALL_UNET, TINY_TEXT, training
from limner.fields import Share
from limner.networks.layers import at_least_float32, time_features
from limner.networks.shape import FeatureShape
from limner.networks.transformers.dit import DiffusionTransformer, DiTBlocks, TimeEmbedder
from limner.networks.unets.diffusion import DiffusionUNet
from limner.networks.unets.unet import UNet, UNetLevels
from limner.settings import LimnerError, Optimiser
from limner.text.encoder import TextConfig

DISCRETE = Discrete(betas("scaled_linear", 1000))


@dataclass(frozen=True)
class LatentConfig(FlowMatching):
    may_be_zero: ClassVar[tuple[str, ...]] = ("blocks", "attention_resolutions")

    autoencoder: str = ""  # run of autoencoder whose latents are drawn; empty: one is trained first
    codec: AutoencoderConfig = field(default_factory=AutoencoderConfig)  # of the autoencoder that is trained
    channelwise: bool = True  # scale each latent channel to mean 0 and variance 1; false: one scale for all
    network: Literal["quick", "ldm", "dit"] = "quick"  # quick: U-Net for a CPU; ldm: the paper's U-Net
    # U-Nets: channels of the first level; default: by the size of the images
    width: int = by_images(latent_width, 0)
    # U-Nets: of that width, by level; each level halves the side; default: by the size of the images
    multiples: tuple[int, ...] = by_images(latent_multiples)
    blocks: int = 1  # U-Nets: residual blocks by level, on the way down
    attention_resolutions: tuple[int, ...] = (4,)  # U-Nets: shorter sides, in pixels, of maps with attention
    head_width: int = 64  # U-Nets: channels of an attention head
    dropout: float = 0.0  # U-Nets: inside the blocks
    body: DiTBlocks = field(default_factory=lambda: DiTBlocks(patch=1))  # of the transformer
    condition: Literal["auto", "none", "label", "text"] = "auto"  # auto: text, else label, as the data has it
    predict: Prediction = "data"  # noise: diffusion; the others: flow matching
    condition_dropout: Share = 0.1  # fraction of training images whose condition is left out, for guidance
    text: TextConfig = field(default_factory=TextConfig)  # text encoder; ldm: a label is a token of its width
    time_mean: float = -0.4  # flow matching: training times are sigmoid(normal); mean of the normal


@dataclass(frozen=True)
class LatentSampling(SamplingConfig):
    usual_guidance: ClassVar[float] = 1.5

    steps: int = 16  # steps from noise to image
    # guidance scale; 1: no guidance. Default: 1.5, or 1 if training left out no condition (--model.condition-dropout 0)
    guidance: Guidance | None = None
    shift: Shift = 1.0  # flow matching: above 1, more of the steps near the noise
    guided_channels: int = 0  # latent channels that guidance applies to, counted from the first; 0: all


class Network(nn.Module):
    """Noisy latent [B, C, h, w], time [B] in [0, 1] and condition -> [B, C, h, w]; 0 at first."""

    def __init__(self, config: LatentConfig, shape: tuple[int, int, int], condition: str, classes: int):
        c, channels, size = config, shape[0], shape[1:]
        tokens = c.text.width if condition == "text" or (c.network == "ldm" and condition == "label") else 0
        embedding = {"quick": 2 * c.width, "dit": c.body.width, "ldm": tokens}[c.network]
        super().__init__()
        self.embedder = ConditionEmbedder(condition, classes, embedding, c.text)
        self.kind = c.network
        self.body: nn.Module
        if c.network == "ldm":
            unet = FeatureShape(channels, channels, size, c.width, c.multiples, c.blocks, c.attention_resolutions,
                                dropout=c.dropout)  # fmt: skip
            self.body = DiffusionUNet(unet, head_width=c.head_width, context=tokens)
        elif c.network == "dit":
            self.time: nn.Module = TimeEmbedder(embedding)
            self.body = DiffusionTransformer(c.body, channels, channels, size, tokens)
        else:
            self.time = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
            widths = tuple(c.width * m for m in c.multiples)
            levels = UNetLevels(widths, (c.blocks,) * len(widths), c.attention_resolutions, (), 1, c.head_width,
                                c.dropout)  # fmt: skip
            self.body = UNet(channels, channels, size, embedding, levels, tokens)

    def forward(self, x: Tensor, t: Tensor, condition: ConditionEmbedding) -> Tensor:
        if self.kind == "ldm":  # conditioned by tokens alone
            tokens, mask = condition.tokens, condition.mask
            if condition.embedding is not None:
                first = condition.embedding[:, None]  # [B, 1, D]
                tokens = first if tokens is None else torch.cat([first, tokens], dim=1)  # [B, 1 + L, D]
                mask = None if mask is None else F.pad(mask, (1, 0), value=True)  # [B, 1 + L]
            return at_least_float32(self.body(x, 1000 * t, tokens=tokens, mask=mask))  # [B, C, h, w]
        embedding = self.time(1000 * t if self.kind == "dit" else time_features(t, 64))  # [B, E]
        return run_body(self.body, x, embedding, condition)  # [B, C, h, w]


class LatentDiffusion(Model):
    """The network sees latents less ``latent_mean``, times ``latent_scale``; both are measured on the first batch."""

    Config = LatentConfig
    Sampling = LatentSampling
    reads = frozenset({"label", "text", "image", "mask"})
    averaged = ("network",)
    parents: ClassVar[dict[str, Parent]] = {
        "autoencoder": Parent(ConfiguredCodec, "an autoencoder", "codec", "autoencoder", source="autoencoder",
                              family="autoencoder")
    }  # fmt: skip
    paper = "Rombach 2022, High-Resolution Image Synthesis with Latent Diffusion Models"
    about = "diffusion or flow matching in an autoencoder's latent space"

    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(self, config: LatentConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if min(spec.height, spec.width) < SMALLEST:
            raise LimnerError(
                f"latent needs images of at least {SMALLEST}x{SMALLEST} pixels for its autoencoder, not "
                f"{spec.height}x{spec.width}: choose a larger --size."
            )
        condition = choose_condition(self, "text", "label")
        self.autoencoder = ConfiguredCodec(config.codec, spec).requires_grad_(False)
        self.shape = self.autoencoder.shape
        self.network = Network(config, self.shape, condition, len(spec.classes))
        self.discrete = config.predict == "noise"
        self.path: Path = DISCRETE if self.discrete else STRAIGHT
        self.register_buffer("latent_mean", torch.zeros(self.shape[0], 1, 1))
        self.register_buffer("latent_scale", torch.zeros(self.shape[0], 1, 1))  # 0: not measured yet

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    @torch.no_grad()
    def measure_scale(self, latent: Tensor) -> None:
        """Set the mean and scale of latents (Rombach 2022, appendix G) from the first batch of training."""
        std, mean = torch.std_mean(latent, (0, 2, 3))
        if not self.config.channelwise:
            std, mean = latent.std().expand_as(std), torch.zeros_like(mean)
        self.latent_mean.copy_(mean[:, None, None])
        self.latent_scale.copy_(1 / std.clamp(min=1e-6)[:, None, None])

    def scale(self) -> Tensor:
        return torch.where(self.latent_scale > 0, self.latent_scale, 1.0)

    def encode(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, latent, h, w] of mean 0 and variance 1."""
        return (self.autoencoder.posterior(image)[0] - self.latent_mean) * self.scale()

    def decode(self, latent: Tensor) -> Tensor:
        """[B, latent, h, w] -> [B, C, H, W] in [-1, 1]."""
        return self.autoencoder.decode(latent / self.scale() + self.latent_mean).clamp(-1, 1)

    @torch.no_grad()
    def training_latents(self, image: Tensor) -> Tensor:
        """As ``encode``, but drawn from the posterior."""
        latent = self.autoencoder.sample(image)
        if self.training and not self.latent_scale.any():
            self.measure_scale(latent)
        return (latent - self.latent_mean) * self.scale()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The error of the noise (Rombach 2022, eq. 3), or of the velocity."""
        c, data = self.config, self.training_latents(batch.image)
        rows = partial(self.network.embedder.with_dropout, batch, c.condition_dropout)
        return denoising_loss(lambda x, t: self.call_network(x, t, rows()), data, self.path, c.predict, c)

    def call_network(self, x: Tensor, t: Tensor, rows: ConditionEmbedding) -> Tensor:
        return self.network(x, t / DISCRETE.steps if self.discrete else t, rows)  # [B, C, h, w]

    embed = embed_condition

    def denoise(
        self, x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding
    ) -> Denoised:
        return denoised(self.config.predict, self.path, x, self.call_network(x, time, rows), alpha, sigma)

    def same_latents(self, other: LatentDiffusion) -> bool:
        """Whether the other encodes and decodes as this one does."""
        one, two = self.autoencoder.state_dict(), other.autoencoder.state_dict()
        return (
            one.keys() == two.keys()
            and all(torch.equal(one[name], two[name]) for name in one)
            and torch.allclose(self.latent_mean, other.latent_mean)
            and torch.allclose(self.latent_scale, other.latent_scale)
        )

    def plan(self, sampling: LatentSampling) -> Plan:
        s = sampling
        if not self.discrete:
            levels = STRAIGHT.levels(s.steps, s.shift)
        else:
            levels = ddim_levels(s.steps) if s.solver == "ddim" else DISCRETE.levels(s.steps)
        return Plan(self.path, levels, self.shape, guided_channels=s.guided_channels, encode=self.encode,
                    decode=self.decode, cell=self.autoencoder.encoder.factor, same_space=self.same_latents)  # fmt: skip

    sample = draw


def ddim_levels(steps: int) -> list[NoiseLevel]:
    """As in latent diffusion's code: every (1000 / steps)-th time plus one, and the end is time 0, not the data."""
    if steps == 1:
        return [DISCRETE.level(DISCRETE.steps - 1), DISCRETE.level(0)]
    times = spaced_times(DISCRETE.steps, min(steps, DISCRETE.steps), "ddim")
    return [*(DISCRETE.level(min(t + 1, DISCRETE.steps - 1)) for t in reversed(times)), DISCRETE.level(0)]


LatentDiffusion.presets = {
    "tiny": Preset(
        LatentConfig(codec=TINY, width=16, multiples=(1, 2), attention_resolutions=(2,), head_width=16, text=TINY_TEXT),
        training(Optimiser(lr=4e-3), "network", batch=16, average=100.0),
    ),
    "small": Preset(LatentConfig(codec=SMALL), SMALL_UNET),
    "base": Preset(
        LatentConfig(
            codec=BASE, network="dit", width=128, multiples=(1, 2), text=BASE_TEXT,
            body=DiTBlocks(patch=2, width=512, depth=12, heads=8, qk_norm=True, rope=True, swiglu=True, registers=8),
        ),
        BASE_MUON,
    ),
    # FFHQ at 256x256, on VQ-f4. The half-life is that of a decay of 0.9999.
    "paper": Preset(
        LatentConfig(
            codec=VQ_F4,
            channelwise=False, network="ldm", width=224, multiples=(1, 2, 3, 4), blocks=2,
            attention_resolutions=(32, 16, 8), head_width=32, predict="noise",
        ),
        training(Optimiser("adamw", lr=8.4e-5, betas=(0.9, 0.999), decay=0.01), "network", batch=42,
                 schedule="constant", average=291_000.0, average_rampup=0.0, average_warmup=True),
        size=(256, 256), channels=3,
        parameters={"autoencoder": 55_322_782, "network": 274_056_163},  # CompVis/latent-diffusion
    ),
}  # fmt: skip
