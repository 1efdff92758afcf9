"""The Vision Transformer: an image in patches, classified; its class token describes it.

Dosovitskiy 2021, "An Image is Worth 16x16 Words"; trained as Touvron 2021 does where images are few.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, ImageSpec, LimnerError, Model, Objective, Optimiser, Parent, Preset, Training
from limner.networks.images import views
from limner.networks.transformers.patch import PatchConfig, PatchTransformer


@dataclass(frozen=True)
class ViTConfig:
    body: PatchConfig = field(default_factory=PatchConfig)
    drop_path: float = 0.1  # chance to go past the last layer; less for those before
    smoothing: float = 0.1  # share of a label that is spread over all classes
    mixup: float = 0.2  # images are mixed by Beta(mixup, mixup) (Zhang 2018); 0: not
    augment: bool = True  # train on views: turned, moved, relit, partly hidden
    mirror: bool = False  # also mirrored: not for digits and letters
    pretrained: str = ""  # a run of dino, mae or vit to start from


class Network(nn.Module):
    """[B, C, H, W] -> logits [B, K]."""

    def __init__(self, config: ViTConfig, spec: ImageSpec):
        super().__init__()
        self.body = PatchTransformer(config.body, spec.channels, (spec.height, spec.width), config.drop_path)
        self.head = nn.Linear(config.body.width, len(spec.classes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def describe(self, x: Tensor) -> Tensor:
        return self.body(x)[:, 0]  # [B, W], the class token

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.describe(x)).float()  # [B, K]


class ViT(Model):
    Config = ViTConfig
    reads = frozenset({"label"})
    averaged: ClassVar[tuple[str, ...]] = ("network",)
    parents: ClassVar[dict[str, Parent]] = {
        "pretrained": Parent(
            PatchTransformer,
            "a transformer over patches",
            config="body",
            weights="network.body",
            source="body",
            frozen=False,
        )
    }
    paper: ClassVar[str] = "Dosovitskiy 2021, An Image is Worth 16x16 Words"
    about: ClassVar[str] = "Vision Transformer: classifies and describes images"

    def __init__(self, config: ViTConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if len(spec.classes) < 2:
            raise LimnerError(
                "vit learns to tell classes apart, of which this data has none: put the images into one folder a class."
            )
        self.network = Network(config, spec)

    @property
    def body(self) -> PatchTransformer:
        return self.network.body

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def view(self, x: Tensor) -> Tensor:
        """The images as changed surroundings would show them."""
        if self.config.mirror:
            x = views.mirror(x)
        return views.occlude(views.weather(views.light(views.viewpoint(x)))) if self.config.augment else x

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy; in training of views, with smoothed and mixed labels."""
        c, image, label = self.config, batch.image, batch.condition.label
        assert label is not None  # the data has classes
        target = F.one_hot(label, len(self.spec.classes)).float()  # [B, K]
        if self.training:
            image = self.view(image)
            if c.mixup:  # Zhang 2018, eq. 1, with a weight for each image
                part = torch.distributions.Beta(c.mixup, c.mixup).sample((len(image),)).to(image.device)
                part, other = torch.maximum(part, 1 - part), torch.randperm(len(image), device=image.device)
                weight = part[:, None, None, None]
                image = weight * image + (1 - weight) * image[other]
                target = part[:, None] * target + (1 - part[:, None]) * target[other]
            target = (1 - c.smoothing) * target + c.smoothing / len(self.spec.classes)
        return {"cross entropy": F.cross_entropy(self.network(image), target)}

    def features(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, width]; other sizes than the trained one too."""
        return self.network.describe(image).float()

    def classify(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, K] logits."""
        return self.network(image)


def _training(
    name: Literal["muon", "adamw"],
    batch: int,
    lr: float,
    decay: float,
    warmup: int,
    average: float = 10_000.0,
) -> Training:
    settings = Optimiser(name, lr=lr, betas=(0.9, 0.99), decay=decay, matrix_lr=0.01)
    return Training(
        batch=batch,
        optimisers={"network": settings},
        schedule="cosine",
        warmup=warmup,
        clip=1.0,
        average=average,
    )


# Widths and depths as in the paper's table 1 and, for Ti and S, Touvron's table 1:
# Ti 192 x 12 with 3 heads, S 384 x 12 with 6, B 768 x 12 with 12, L 1024 x 24 with 16.
ViT.presets = {
    "tiny": Preset(
        ViTConfig(PatchConfig(width=32, depth=2, heads=2)), _training("adamw", 16, 2e-3, 0.0, 0, 100.0)
    ),
    "small": Preset(ViTConfig(), _training("muon", 64, 1e-3, 0.0, 5_000)),
    "base": Preset(
        ViTConfig(PatchConfig(across=8, width=384, depth=12, heads=6)),
        _training("muon", 256, 1e-3, 0.05, 100_000),
    ),
    # B/16 on ImageNet as the paper's table 3 has it: 10,000 steps of warm-up, batch 4096, no average.
    "paper": Preset(
        ViTConfig(
            PatchConfig(patch=16, width=768, depth=12, heads=12),
            drop_path=0.0,
            smoothing=0.0,
            mixup=0.0,
            augment=False,
            mirror=True,
        ),
        _training("adamw", 4096, 3e-3, 0.3, 10_000 * 4096, 0.0),
        size=(224, 224),
        channels=3,
        classes=1000,
        parameters={"network": 86_567_656},  # timm
    ),
}
