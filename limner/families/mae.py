"""The masked autoencoder: it predicts masked patches from the visible quarter; its encoder gives features.

He 2022, "Masked Autoencoders Are Scalable Vision Learners".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from limner.core import Batch, ImageSpec, Model, Objective, Preset
from limner.families._presets import IMAGENET, training
from limner.networks.attention import sincos
from limner.networks.checks import SettingsError
from limner.networks.images import views
from limner.networks.layers import at_least_float32, init_xavier
from limner.networks.transformers.patch import Layer, PatchConfig, PatchTransformer
from limner.settings import LimnerError, Optimiser


@dataclass(frozen=True)
class MAEConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("decoder_depth",)

    body: PatchConfig = field(default_factory=PatchConfig)  # the transformer
    decoder_width: int = 64  # of a token in the decoder
    decoder_depth: int = 2  # layers of the decoder
    decoder_heads: int = 4  # attention heads of the decoder
    mask_ratio: float = 0.75  # share of the patches that the encoder does not see
    normalise_patches: bool = True  # targets have mean 0 and variance 1 in each patch
    augment: bool = True  # train on images with other light, colours and weather
    crop_area: float = 0.6  # smallest share of the area in a training crop; 1: no crops
    mirror: bool = False  # views include mirroring; not for digits and letters


class Network(nn.Module):
    """The encoder over the visible patches and the narrower decoder over all (He 2022, figure 1)."""

    def __init__(self, config: MAEConfig, spec: ImageSpec):
        super().__init__()
        c = config
        self.body = PatchTransformer(c.body, spec.channels, (spec.height, spec.width), positions="sincos")
        if c.decoder_width % c.decoder_heads or c.decoder_width % 4:
            fault = f"a decoder of width {c.decoder_width} does not divide into {c.decoder_heads} heads and 4"
            raise SettingsError(fault)
        self.decoder_embed = nn.Linear(c.body.width, c.decoder_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, c.decoder_width))
        layers = (Layer(c.decoder_width, c.decoder_heads, c.body.mlp_ratio) for _ in range(c.decoder_depth))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(c.decoder_width, 1e-6)
        self.decoder_pred = nn.Linear(c.decoder_width, spec.channels * self.body.patch**2)
        init_xavier(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, image: Tensor, keep: Tensor) -> Tensor:
        """[B, C, H, W] and the indices [B, K] of the visible patches -> predicted patches [B, L, p p C]."""
        visible = self.decoder_embed(self.body(image, keep))  # [B, 1 + K, D]
        x = self.mask_token.to(visible.dtype).expand(len(visible), math.prod(self.body.grid), -1)  # [B, L, D]
        x = x.scatter(1, keep[..., None].expand(-1, -1, visible.shape[2]), visible[:, 1:])
        x = x + sincos(x.shape[2], self.body.grid, x.device).to(x.dtype)
        x = torch.cat([visible[:, :1], x], dim=1)  # [B, 1 + L, D]
        for layer in self.layers:
            x = layer(x)
        return at_least_float32(self.decoder_pred(self.norm(x))[:, 1:])


def to_patches(image: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, L, p p C], a patches row by row, channels last."""
    x = image.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, C, h, w, p, p]
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


class MAE(Model):
    Config = MAEConfig
    averaged = ("network",)
    paper = "He 2022, Masked Autoencoders Are Scalable Vision Learners"
    about = "learns features without labels, by filling in masked patches"

    def __init__(self, config: MAEConfig, spec: ImageSpec):
        super().__init__(config, spec)
        self.network = Network(config, spec)
        if math.prod(self.body.grid) < 2 or not 0 < config.mask_ratio < 1:
            raise LimnerError(
                f"mae masks {config.mask_ratio:g} of {math.prod(self.body.grid)} patches, so nothing can be learned: "
                "set --model.mask-ratio between 0 and 1 and --model.body.across to 2 or more."
            )

    @property
    def body(self) -> PatchTransformer:
        return self.network.body

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def view(self, x: Tensor) -> Tensor:
        """A random view of each image [B, C, H, W]."""
        c = self.config
        x = views.crop(x, (x.shape[2], x.shape[3]), c.crop_area) if c.crop_area < 1 else x
        x = views.mirror(x) if c.mirror else x
        return views.weather(views.colour(views.light(x))) if c.augment else x

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error on the masked patches (He 2022, section 3)."""
        image = self.view(batch.image) if self.training else batch.image
        patches = self.body.grid[0] * self.body.grid[1]
        visible = min(max(1, int(patches * (1 - self.config.mask_ratio))), patches - 1)
        order = torch.rand(len(image), patches, device=image.device).argsort(1)
        keep, masked = order[:, :visible], order[:, visible:]
        target = to_patches(image, self.body.patch).float()  # [B, L, p p C]
        if self.config.normalise_patches and target.shape[2] > 1:
            mean, var = target.mean(2, keepdim=True), target.var(2, keepdim=True)  # the unbiased variance
            target = (target - mean) / (var + 1e-6).sqrt()
        error = (self.network(image, keep) - target).square().mean(2)  # [B, L]
        return {"masked patches": error.gather(1, masked).mean()}

    def features(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, width], the mean over the patches; other sizes too."""
        return at_least_float32(self.body(image)[:, 1:].mean(1))


_training = partial(training, schedule="cosine")
ADAMW = Optimiser("adamw", betas=(0.9, 0.95))
MUON = replace(ADAMW, name="muon", lr=1e-3, matrix_lr=0.01)

MAE.presets = {
    "tiny": Preset(
        MAEConfig(PatchConfig(width=32, depth=2, heads=2), 16, 1, 2),
        _training(replace(ADAMW, lr=2e-3), "network", batch=16, average=100.0),
    ),
    "small": Preset(MAEConfig(), _training(MUON, "network", batch=64, warmup=5_000)),
    "base": Preset(
        MAEConfig(PatchConfig(across=8, width=384, depth=12, heads=6), 192, 4, 6),
        _training(replace(MUON, decay=0.05), "network", batch=256, warmup=100_000),
    ),
    # ViT-B/16 with the paper's decoder; table 8: learning rate 1.5e-4 per 256 images of a batch, 40 epochs of warmup.
    "paper": Preset(
        MAEConfig(
            PatchConfig(patch=16, width=768, depth=12, heads=12), 512, 8, 16, augment=False, crop_area=0.2, mirror=True,
        ),
        _training(replace(ADAMW, lr=2.4e-3, decay=0.05), "network", batch=4096, warmup=40 * IMAGENET, average=0.0),
        size=(224, 224), channels=3, parameters={"network": 111_655_680},  # facebookresearch/mae
    ),
}  # fmt: skip
