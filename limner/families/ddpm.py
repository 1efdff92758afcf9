"""Denoising diffusion in a thousand steps, unconditional or by label: a U-Net predicts the noise in an image.

Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models". By its config also Nichol and Dhariwal 2021
(cosine schedule, learned variance, fewer steps) and Dhariwal and Nichol 2021 (network=adm).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limner.core import Batch, ConditionEmbedding, Denoised, ImageSpec, Model, Objective, Part, Preset
from limner.diffusion.objectives import Prediction, denoised, diffusion_loss
from limner.diffusion.paths import Discrete, Schedule, Spacing, betas
from limner.diffusion.sampling import Guidance, Plan, SamplingConfig, SolverName, draw
from limner.families._by_images import by_images, unet_multiples
from limner.families._conditioning import choose_classes, embed_labels
from limner.families._presets import SMALL_UNET, training
from limner.fields import Share, check
from limner.networks import exchange
from limner.networks.checks import SettingsError
from limner.networks.images.headroom import HEADROOM, with_headroom
from limner.networks.shape import FeatureShape
from limner.networks.unets.diffusion import DiffusionUNet
from limner.networks.unets.unet import QuickUNet
from limner.settings import LimnerError, Optimiser


@dataclass(frozen=True)
class DDPMConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("blocks", "attention_resolutions", "head_width")

    network: Literal["quick", "ddpm", "adm"] = "quick"  # quick: for a CPU; ddpm: Ho 2020; adm: Dhariwal 2021
    width: int = 48  # channels of the first level
    # channels of each level in those units; each halves the side; default: by the images' size
    multiples: tuple[int, ...] = by_images(unet_multiples)
    blocks: int = 1  # residual blocks by level, on the way down
    attention_resolutions: tuple[int, ...] = (4,)  # shorter sides, in pixels, of maps with attention
    head_width: int = 64  # channels of an attention head; 0: a single head
    dropout: float = 0.0  # inside the blocks
    patch: int = 2  # quick: pixels a side of a patch, folded into the channels
    scale_shift: bool = True  # adm: the time embedding scales and shifts features; false: it is added
    resample_blocks: bool = True  # adm: residual blocks change the resolution
    order: Literal["heads", "split"] = "heads"  # adm: layout of queries, keys and values; split: ADM at 64x64
    condition: Literal["auto", "none", "label"] = "auto"  # auto: on labels where there are any
    condition_dropout: Share = 0.1  # fraction of training images whose condition is left out, for guidance
    headroom: Share = 0.0  # how far beyond the range of pixels those at its ends are learned
    steps: int = 1000  # diffusion steps from data to noise
    schedule: Schedule = "linear"  # noise schedule over the steps; cosine: Nichol 2021
    predict: Prediction = "noise"  # velocity: Salimans 2022; data: Li and He 2025
    learn_variance: bool = False  # learn the variance of the ancestral solver's steps (Nichol 2021)
    bound_weight: float = 0.001  # weight of the variational bound, summed over the steps, that learns it


@dataclass(frozen=True)
class DDPMSampling(SamplingConfig):
    usual_guidance: ClassVar[float] = 1.5

    solver: SolverName = "dpm2m"  # ancestral with 1000 steps: Ho 2020; ddim: Song 2021
    # guidance scale; 1: no guidance. Default: 1.5, or 1 if training left out no condition (--model.condition-dropout 0)
    guidance: Guidance | None = None
    spacing: Spacing = "even"  # how the steps are chosen among those of training
    variance: Share = 1.0  # ancestral, unless learned: 1 is the larger of the two of Ho 2020, 0 the smaller


class Network(nn.Module):
    """Noisy image [B, C, H, W], time [B] of ``steps`` and label [B], -1 for none -> [B, out, H, W]."""

    def __init__(self, config: DDPMConfig, channels: int, out: int, size: tuple[int, int], classes: int):
        super().__init__()
        c = config
        self.quick, self.steps, self.classes = c.network == "quick", c.steps, classes
        shape = FeatureShape(channels, out, size, c.width, c.multiples, c.blocks, c.attention_resolutions,
                             c.patch if self.quick else 1, classes, c.dropout)  # fmt: skip
        self.unet: QuickUNet | DiffusionUNet
        if self.quick:
            self.unet = QuickUNet(shape, c.head_width or c.width * max(c.multiples))
        else:
            adm = c.network == "adm"
            self.unet = DiffusionUNet(shape, head_width=c.head_width, heads=int(not c.head_width), order=c.order,
                                      original=not adm, scale_shift=adm and c.scale_shift,
                                      resample_blocks=adm and c.resample_blocks)  # fmt: skip
        self.shape = shape

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        time = t.float() / self.steps  # [B] in [0, 1)
        return self.unet(x, time if self.quick else 1000 * time, label)  # [B, out, H, W]


class DDPM(Model):
    Config = DDPMConfig
    Sampling = DDPMSampling
    reads = frozenset({"label", "image", "mask"})
    averaged = ("network",)
    paper = "Ho 2020, Denoising Diffusion Probabilistic Models; Nichol 2021, Improved Denoising Diffusion"
    about = "denoising diffusion in a thousand steps: the classic"

    def __init__(self, config: DDPMConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if config.steps < 2:
            raise LimnerError(
                f"--model.steps {config.steps} is out of range: ddpm needs 2 or more, such as 1000."
            )
        self.path = Discrete(betas(config.schedule, config.steps))
        out = spec.channels * (2 if config.learn_variance else 1)
        self.network = Network(config, spec.channels, out, (spec.height, spec.width), choose_classes(self))

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """L_simple (Ho 2020, eq. 14) and, for the variance alone, L_vlb (Nichol 2021, eq. 16)."""
        c = self.config
        data = with_headroom(batch.image, c.headroom)
        t = self.path.random_times(len(data), data.device)
        keep = torch.rand(len(data), device=data.device) >= c.condition_dropout
        label = self.embed(batch.condition).label
        label = label if label is None else torch.where(keep, label, -1)
        return diffusion_loss(
            lambda x, t: self.network(x, t, label), data, self.path, t, c.predict, c.bound_weight * c.steps
        )

    embed = embed_labels

    def denoise(
        self, x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding
    ) -> Denoised:
        out = self.network(x, time, rows.label)
        return denoised(self.config.predict, self.path, x, out, alpha, sigma)

    def plan(self, sampling: DDPMSampling) -> Plan:
        levels = self.path.levels(sampling.steps, sampling.spacing)
        room, variance = self.config.headroom, sampling.variance
        encode = partial(with_headroom, room=room)
        return Plan(self.path, levels, self.spec.shape, 1 + room, variance, encode=encode)

    sample = draw

    def to_diffusers(self) -> list[Part]:
        """A DDPMPipeline."""
        c, unet = self.config, self.network.unet
        try:
            if not isinstance(unet, DiffusionUNet):
                raise exchange.ExchangeError("it has no network of that kind")
            options = exchange.UNetOptions(self.network.shape, c.head_width, c.network == "ddpm",
                                           c.network == "adm" and c.scale_shift,
                                           exchange.norm_groups(unet))  # fmt: skip
            scheduler = exchange.scheduler_settings(
                c.schedule, c.steps, c.predict, c.learn_variance, c.headroom
            )
            settings = exchange.unet_settings(options) | {exchange.DROPOUT: c.condition_dropout}
            unet_part = Part("unet", settings, exchange.export_weights(unet))
        except exchange.ExchangeError as error:
            raise LimnerError(
                f"ddpm cannot be written for diffusers, for {error}: train with --model.network ddpm."
            ) from None
        return [Part("", {"_class_name": "DDPMPipeline"}), unet_part, Part("scheduler", scheduler)]

    @classmethod
    def from_diffusers(cls, parts: Sequence[Part]) -> DDPM | None:
        """A UNet2DModel, with the schedule of the scheduler beside it."""
        found = {str(part.settings["_class_name"]): part for part in parts}
        if "UNet2DModel" not in found:
            return None
        scheduler = next((part.settings for name, part in found.items() if name.endswith("Scheduler")), None)
        try:
            options = exchange.unet_options(found["UNet2DModel"].settings)
            shape, original = options.shape, options.original
            schedule, steps, predict, variance, room = exchange.scheduler_options(
                scheduler or {"_class_name": "DDIMScheduler"}
            )
            if shape.out != (wanted := shape.channels * (2 if variance else 1)):
                whose = "with a learned variance" if variance else "without a learned variance"
                raise exchange.ExchangeError(f"it gives {shape.out} channels, where {whose} it has {wanted}")
            config = DDPMConfig(network="ddpm" if original else "adm", width=shape.width,
                                multiples=tuple(shape.multiples), blocks=shape.blocks,
                                attention_resolutions=tuple(shape.attention_resolutions), head_width=options.head_width,
                                dropout=shape.dropout, scale_shift=options.scale_shift or original,
                                resample_blocks=original, condition="label" if shape.classes else "none",
                                condition_dropout=exchange.condition_dropout(found["UNet2DModel"].settings),
                                steps=steps, schedule=schedule, predict=predict, learn_variance=variance,
                                headroom=room)  # fmt: skip
            classes = tuple(map(str, range(shape.classes)))
            check(config, "--model.")
            spec = ImageSpec(shape.channels, *shape.size, classes=classes)
            weights = found["UNet2DModel"].weights
            model = exchange.build(lambda: cls(config, spec), "network.unet", weights, options.groups)
            if not scheduler:  # checked last: what is wrong with the network comes first
                raise exchange.ExchangeError("no scheduler_config.json beside it says how noise was added")
        except (exchange.ExchangeError, SettingsError) as error:
            raise LimnerError(f"ddpm cannot read this UNet2DModel, for {error}.") from None
        return model


DDPM.presets = {
    "tiny": Preset(
        DDPMConfig(width=16, multiples=(1, 2), head_width=16, headroom=HEADROOM),
        replace(SMALL_UNET, batch=16, average=100.0),
    ),
    # Velocity and cosine: Frechet distance 18 instead of 33 after 10,000 digits (see docs/log.md).
    "small": Preset(DDPMConfig(predict="velocity", schedule="cosine", headroom=HEADROOM), SMALL_UNET),
    "base": Preset(
        DDPMConfig(network="adm", width=128, multiples=(1, 2, 2, 3), blocks=2, attention_resolutions=(32, 16, 8),
                   dropout=0.1, schedule="cosine", learn_variance=True),
        training(Optimiser("adamw", lr=2e-4, betas=(0.9, 0.999)), "network", batch=128, flat=0.5, warmup=10_000,
                 clip=1.0, average=500_000.0),
    ),
    # CIFAR-10: 800,000 steps; without labels, and images are also shown mirrored (--data.flip). The moving average
    # decays by 0.9999 each step.
    "paper": Preset(
        DDPMConfig(network="ddpm", width=128, multiples=(1, 2, 2, 2), blocks=2, attention_resolutions=(16,),
                   head_width=0, dropout=0.1),
        training(Optimiser("adam", lr=2e-4, betas=(0.9, 0.999)), "network", batch=128, schedule="constant",
                 warmup=5000 * 128, clip=1.0, average=128 * math.log(0.5) / math.log(0.9999), average_rampup=0.0),
        size=(32, 32), channels=3,
        parameters={"network": 35_746_307},  # CIFAR-10, ermongroup/ddim
    ),
}  # fmt: skip
