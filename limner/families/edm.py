"""Diffusion at continuous noise levels, unconditional or by label.

Karras, Aittala, Aila and Laine 2022, "Elucidating the Design Space of Diffusion-Based Generative Models". The
network's input and target are scaled to variance 1 at every noise level, and Heun's solver draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from limner.core import Batch, ConditionEmbedding, Denoised, ImageSpec, Model, Objective, Preset
from limner.diffusion import paths
from limner.diffusion.paths import expand_dims
from limner.diffusion.sampling import Guidance, Plan, SamplingConfig, SolverName, draw
from limner.families._by_images import by_images, unet_multiples
from limner.families._conditioning import choose_classes, embed_labels
from limner.families._presets import SMALL_UNET, training
from limner.fields import Bounds, Share
from limner.networks.images import augment_conditioning
from limner.networks.images.headroom import HEADROOM, with_headroom
from limner.networks.shape import FeatureShape
from limner.networks.unets.song import SongUNet
from limner.networks.unets.unet import QuickUNet
from limner.settings import LimnerError, Optimiser


@dataclass(frozen=True)
class EDMConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("blocks", "attention_resolutions")

    # quick: on a CPU; song: the paper's DDPM++; ncsnpp: its NCSN++
    network: Literal["quick", "song", "ncsnpp"] = "quick"
    width: int = 48  # channels of the first level
    # channels of each level in those units; each halves the side; default: by the images' size
    multiples: tuple[int, ...] = by_images(unet_multiples)
    blocks: int = 1  # residual blocks by level, on the way down
    attention_resolutions: tuple[int, ...] = (4,)  # shorter sides, in pixels, of maps with attention
    dropout: float = 0.0  # inside the blocks
    patch: int = 2  # quick: pixels a side of a patch, folded into the channels
    head_width: int = 64  # quick: channels of an attention head
    condition: Literal["auto", "none", "label"] = "auto"  # auto: on labels where there are any
    condition_dropout: Share = 0.1  # fraction of training images whose condition is left out, for guidance
    headroom: Share = 0.0  # how far beyond the range of pixels those at its ends are learned
    augment: float = 0.0  # probability of each augmentation, which the network gets as a condition
    sigma_data: float = 0.5  # standard deviation of the data
    noise_mean: float = -1.2  # sigma in training is exp(normal): mean of the normal (P_mean)
    noise_std: float = 1.2  # standard deviation of that normal (P_std)


Sigma = Annotated[float, Bounds(1e-5, 1e5)]
APART = 1.001  # times the smallest sigma; solvers divide by the difference of two levels


@dataclass(frozen=True)
class EDMSampling(SamplingConfig):
    usual_guidance: ClassVar[float] = 1.5

    steps: int = 18  # steps from noise to image
    solver: SolverName = "heun"  # heun: two network calls a step, the others one
    # guidance scale; 1: no guidance. Default: 1.5, or 1 if training left out no condition (--model.condition-dropout 0)
    guidance: Guidance | None = None
    sigma_min: Sigma = 0.002  # noise level of the last step
    sigma_max: Sigma = 80.0  # noise level of the first step
    rho: Annotated[float, Bounds(1, 100)] = 7.0  # above 1: more of the steps near the image


def preconditioning(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(c_skip, c_out, c_in, c_noise): D(x) = c_skip x + c_out F(c_in x, c_noise) (Karras 2022, table 1)."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt(), sigma.log() / 4


def weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma), with which the initial loss is 1 at every noise level (Karras 2022, table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


class Network(nn.Module):
    """Noisy image [B, C, H, W], its noise [B] and label [B], -1 for none -> clean image [B, C, H, W]."""

    def __init__(self, config: EDMConfig, spec: ImageSpec, classes: int):
        super().__init__()
        c, channels, size = config, spec.channels, (spec.height, spec.width)
        self.sigma_data, self.classes, self.quick = c.sigma_data, classes, c.network == "quick"
        numbers = augment_conditioning.FEATURES if c.augment else 0
        shape = FeatureShape(channels, channels, size, c.width, c.multiples, c.blocks, c.attention_resolutions,
                             c.patch if self.quick else 1, classes, c.dropout)  # fmt: skip
        self.unet: nn.Module
        if self.quick:
            self.unet = QuickUNet(shape, c.head_width, numbers)
        else:
            self.unet = SongUNet(shape, numbers, ncsnpp=c.network == "ncsnpp")

    def forward(
        self, x: Tensor, sigma: Tensor, label: Tensor | None, augmented: Tensor | None = None
    ) -> Tensor:
        """``augmented`` [B, 9]: the augmentations of each image; None or 0 for none."""
        c_skip, c_out, c_in, noise = preconditioning(sigma, self.sigma_data)
        if self.quick:
            noise = (noise + 1.6) / 2.8  # from 0 at sigma = 0.0017 to 1 at 120
        out = self.unet(expand_dims(c_in, x) * x, noise, label, augmented)  # [B, C, H, W]
        return expand_dims(c_skip, x) * x + expand_dims(c_out, x) * out  # [B, C, H, W]


class EDM(Model):
    Config = EDMConfig
    Sampling = EDMSampling
    reads = frozenset({"label", "image", "mask"})
    averaged = ("network",)
    paper = "Karras 2022, Elucidating the Design Space of Diffusion-Based Generative Models"
    about = "diffusion with few sampling steps, stable to train"

    def __init__(self, config: EDMConfig, spec: ImageSpec):
        super().__init__(config, spec)
        self.network = Network(config, spec, choose_classes(self))

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Karras 2022, eq. 2 and table 1, with stratified noise levels."""
        c = self.config
        data = with_headroom(batch.image, c.headroom)
        augmented = None
        if c.augment and self.training:  # not for the held-out loss
            data, augmented = augment_conditioning.augment(data, c.augment)
        normal = paths.normal_from(paths.stratified(len(data), data.device))
        sigma = (c.noise_mean + c.noise_std * normal).exp()
        label = batch.condition.label
        if label is not None:
            label = torch.where(torch.rand(len(data), device=data.device) < c.condition_dropout, -1, label)
        x = data + expand_dims(sigma, data) * torch.randn_like(data)
        error = self.network(x, sigma, label, augmented) - data  # [B, C, H, W]
        return {"image": (expand_dims(weight(sigma, c.sigma_data), data) * error.square()).mean()}

    embed = embed_labels

    def denoise(
        self, x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding
    ) -> Denoised:
        return Denoised(self.network(x, time, rows.label))

    def plan(self, sampling: EDMSampling) -> Plan:
        s = sampling
        if not APART * s.sigma_min < s.sigma_max:
            raise LimnerError(
                f"--sigma-min {s.sigma_min:g} must be below --sigma-max {s.sigma_max:g} by a thousandth or more: "
                "the defaults are 0.002 and 80."
            )
        path = paths.Exploding(s.sigma_min, s.sigma_max, s.rho)
        encode = partial(with_headroom, room=self.config.headroom)
        return Plan(path, path.levels(s.steps), self.spec.shape, encode=encode)

    sample = draw


# CIFAR-10 without labels: 200 million images. Both networks have these settings.
_CIFAR = EDMConfig(
    network="song", width=128, multiples=(2, 2, 2), blocks=4, attention_resolutions=(16,), dropout=0.13,
    condition_dropout=0.0, augment=0.12,
)  # fmt: skip
_CIFAR_TRAINING = training(
    Optimiser("adam", lr=1e-3, betas=(0.9, 0.999)), "network", batch=512, schedule="constant", warmup=10_000_000,
    average=500_000.0,
)  # fmt: skip
EDM.presets = {
    "tiny": Preset(
        EDMConfig(width=16, multiples=(1, 2), head_width=16, augment=0.1, headroom=HEADROOM),
        replace(SMALL_UNET, batch=16, average=100.0),
    ),
    # More training at the noise levels that decide shapes: Frechet distance 11.4 instead of 15.1 after 10,000 digits
    # (see docs/log.md).
    "small": Preset(EDMConfig(noise_mean=-0.6, noise_std=1.4, headroom=HEADROOM), SMALL_UNET),
    "base": Preset(
        EDMConfig(network="song", width=128, multiples=(1, 2, 2, 2), blocks=2, attention_resolutions=(32, 16),
                  dropout=0.1, augment=0.1, headroom=HEADROOM),
        training(Optimiser("adam", lr=5e-4, betas=(0.9, 0.999)), "network", batch=256, flat=0.5, warmup=100_000,
                 clip=1.0, average=500_000.0),
    ),
    "paper": Preset(
        _CIFAR, _CIFAR_TRAINING, size=(32, 32), channels=3,
        parameters={"network": 55_733_891},  # CIFAR-10 with augmentation, NVlabs/edm
    ),
    "ncsnpp": Preset(
        replace(_CIFAR, network="ncsnpp"), _CIFAR_TRAINING, size=(32, 32), channels=3,
        parameters={"network": 56_397_827},  # the same, with --arch=ncsnpp
    ),
}  # fmt: skip
