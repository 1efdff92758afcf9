"""The masked autoencoder: shown a quarter of the patches, it paints the rest; its encoder describes images.

He 2022, "Masked Autoencoders Are Scalable Vision Learners".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limner.core import Batch, ImageSpec, LimnerError, Model, Objective, Optimiser, Preset, Training
from limner.networks.attention import sincos
from limner.networks.checks import SizeError
from limner.networks.images import views
from limner.networks.layers import init_xavier
from limner.networks.transformers.patch import Layer, PatchConfig, PatchTransformer


@dataclass(frozen=True)
class MAEConfig:
    body: PatchConfig = field(default_factory=PatchConfig)
    decoder_width: int = 64  # channels of the decoder, which is used in training only
    decoder_depth: int = 2  # layers of the decoder
    decoder_heads: int = 4  # attention heads of the decoder
    hidden: float = 0.75  # share of the patches that the encoder does not see
    normalise: bool = True  # patches to paint have mean 0 and variance 1 each
    surroundings: bool = True  # train on images as changed surroundings show them
    crop: float = 0.6  # least share of the area that a training crop shows; 1: no crops
    mirror: bool = False  # also mirrored: not for digits and letters


class Network(nn.Module):
    """The encoder over what is seen, and the narrower decoder over everything (He 2022, figure 1)."""

    def __init__(self, config: MAEConfig, spec: ImageSpec):
        super().__init__()
        c = config
        self.body = PatchTransformer(c.body, spec.channels, (spec.height, spec.width), positions="sincos")
        if c.decoder_width % c.decoder_heads or c.decoder_width % 4:
            raise SizeError(
                f"a decoder of width {c.decoder_width} does not divide into {c.decoder_heads} heads and 4"
            )
        self.enter = nn.Linear(c.body.width, c.decoder_width)
        self.missing = nn.Parameter(torch.empty(1, 1, c.decoder_width))
        self.layers = nn.ModuleList(
            Layer(c.decoder_width, c.decoder_heads, c.body.mlp_ratio) for _ in range(c.decoder_depth)
        )
        self.norm = nn.LayerNorm(c.decoder_width, 1e-6)
        self.leave = nn.Linear(c.decoder_width, spec.channels * self.body.patch**2)
        init_xavier(self)
        nn.init.normal_(self.missing, std=0.02)

    def forward(self, image: Tensor, keep: Tensor) -> Tensor:
        """Image [B, C, H, W], patches seen ``keep`` [B, K] -> all patches [B, L, p p C]."""
        seen = self.enter(self.body(image, keep))  # [B, 1 + K, D]
        grid = self.body.grid
        x = self.missing.to(seen.dtype).expand(len(seen), grid[0] * grid[1], -1)  # [B, L, D]
        x = x.scatter(1, keep[..., None].expand(-1, -1, seen.shape[2]), seen[:, 1:])
        x = x + sincos(x.shape[2], grid, x.device).to(x.dtype)
        x = torch.cat([seen[:, :1], x], dim=1)  # [B, 1 + L, D]
        for layer in self.layers:
            x = layer(x)
        return self.leave(self.norm(x))[:, 1:].float()


def to_patches(image: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, L, p p C], a patch row by row, its channels last."""
    x = image.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, C, h, w, p, p]
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


class MAE(Model):
    Config = MAEConfig
    averaged: ClassVar[tuple[str, ...]] = ("network",)
    paper: ClassVar[str] = "He 2022, Masked Autoencoders Are Scalable Vision Learners"
    about: ClassVar[str] = "learns features without labels, by filling in masked patches"

    def __init__(self, config: MAEConfig, spec: ImageSpec):
        super().__init__(config, spec)
        self.network = Network(config, spec)
        if math.prod(self.body.grid) < 2 or not 0 < config.hidden < 1:
            raise LimnerError(
                f"mae hides {config.hidden:g} of {math.prod(self.body.grid)} patches, which leaves nothing to learn: "
                "set --model.hidden between 0 and 1 and --model.body.across to 2 or more."
            )

    @property
    def body(self) -> PatchTransformer:
        return self.network.body

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def view(self, x: Tensor) -> Tensor:
        c = self.config
        if c.crop < 1:
            x = views.crop(x, (x.shape[2], x.shape[3]), c.crop)
        if c.mirror:
            x = views.mirror(x)
        return views.weather(views.colour(views.light(x))) if c.surroundings else x

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of the hidden patches (He 2022, section 3)."""
        image = self.view(batch.image) if self.training else batch.image
        places = self.body.grid[0] * self.body.grid[1]
        seen = min(max(1, int(places * (1 - self.config.hidden))), places - 1)
        order = torch.rand(len(image), places, device=image.device).argsort(1)
        keep, hidden = order[:, :seen], order[:, seen:]
        target = to_patches(image, self.body.patch).float()  # [B, L, p p C]
        if self.config.normalise and target.shape[2] > 1:
            mean, var = target.mean(2, keepdim=True), target.var(2, keepdim=True)  # the unbiased variance
            target = (target - mean) / (var + 1e-6).sqrt()
        error = (self.network(image, keep) - target).square().mean(2)  # [B, L]
        return {"hidden patches": error.gather(1, hidden).mean()}

    def features(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, width], the mean over the patches; other sizes too."""
        return self.body(image)[:, 1:].mean(1).float()


def _training(
    name: Literal["muon", "adamw"],
    batch: int,
    lr: float,
    decay: float,
    warmup: int,
    average: float = 10_000.0,
) -> Training:
    settings = Optimiser(name, lr=lr, betas=(0.9, 0.95), decay=decay, matrix_lr=0.01)
    return Training(
        batch=batch, optimisers={"network": settings}, schedule="cosine", warmup=warmup, average=average
    )


MAE.presets = {
    "tiny": Preset(
        MAEConfig(PatchConfig(width=32, depth=2, heads=2), 16, 1, 2),
        _training("adamw", 16, 2e-3, 0.0, 0, 100.0),
    ),
    "small": Preset(MAEConfig(), _training("muon", 64, 1e-3, 0.0, 5_000)),
    "base": Preset(
        MAEConfig(PatchConfig(across=8, width=384, depth=12, heads=6), 192, 4, 6),
        _training("muon", 256, 1e-3, 0.05, 100_000),
    ),
    # ViT-B/16 with the paper's decoder; table 8: 1.5e-4 for each 256 of a batch of 4096, 40 epochs of warm-up.
    "paper": Preset(
        MAEConfig(
            PatchConfig(patch=16, width=768, depth=12, heads=12),
            512,
            8,
            16,
            surroundings=False,
            crop=0.2,
            mirror=True,
        ),
        _training("adamw", 4096, 2.4e-3, 0.05, 40 * 1_281_167, 0.0),
        size=(224, 224),
        channels=3,
        parameters={"network": 111_655_680},  # facebookresearch/mae
    ),
}
