"""The Vision Transformer: classifies an image from its patches; the class token gives its features.

Dosovitskiy 2021, "An Image is Worth 16x16 Words"; trained as in Touvron 2021 on small datasets.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, ImageSpec, Model, Objective, Parent, Preset
from limner.families._presets import training
from limner.networks.images import views
from limner.networks.layers import at_least_float32, zero_init
from limner.networks.transformers.patch import PatchConfig, PatchTransformer
from limner.settings import LimnerError, Optimiser


@dataclass(frozen=True)
class ViTConfig:
    body: PatchConfig = field(default_factory=PatchConfig)  # the transformer
    drop_path: float = 0.1  # stochastic depth: drop probability of the last layer, rising linearly from 0
    label_smoothing: float = 0.1  # probability that the target spreads over all classes
    mixup: float = 0.2  # alpha of the Beta(alpha, alpha) that mixes images (Zhang 2018); 0: none
    augment: bool = True  # train on images with other viewpoints, light and weather, and occlusions
    mirror: bool = False  # views include mirroring; not for digits and letters
    pretrained: str = ""  # a run with a transformer over patches to start from, such as dino or mae


class Network(nn.Module):
    """[B, C, H, W] -> logits [B, K]."""

    def __init__(self, config: ViTConfig, spec: ImageSpec):
        super().__init__()
        self.body = PatchTransformer(config.body, spec.channels, (spec.height, spec.width), config.drop_path)
        self.head = zero_init(nn.Linear(config.body.width, len(spec.classes)))

    def forward(self, x: Tensor) -> Tensor:
        return at_least_float32(self.head(self.body(x)[:, 0]))  # [B, K]


class ViT(Model):
    Config = ViTConfig
    reads = frozenset({"label"})
    averaged = ("network",)
    parents: ClassVar[dict[str, Parent]] = {
        "pretrained": Parent(
            PatchTransformer,
            "a transformer over patches",
            "body",
            "network.body",
            source="body",
            frozen=False,
        )
    }
    paper = "Dosovitskiy 2021, An Image is Worth 16x16 Words"
    about = "Vision Transformer: classifies and describes images"

    def __init__(self, config: ViTConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if len(spec.classes) < 2:
            raise LimnerError(
                "vit needs data of at least two classes: sort the images into one folder a class."
            )
        self.network = Network(config, spec)

    @property
    def body(self) -> PatchTransformer:
        return self.network.body

    def objectives(self) -> list[Objective]:
        return [Objective("network", self.loss)]

    def view(self, x: Tensor) -> Tensor:
        """A random view of each image [B, C, H, W]."""
        x = views.mirror(x) if self.config.mirror else x
        return views.occlude(views.weather(views.light(views.viewpoint(x)))) if self.config.augment else x

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy; in training on views, with label smoothing and mixup."""
        c, image, label = self.config, batch.image, batch.condition.label
        assert label is not None  # the data has classes
        target = F.one_hot(label, len(self.spec.classes)).float()  # [B, K]
        if self.training:
            image = self.view(image)
            if c.mixup:  # Zhang 2018, eq. 1, with one weight an image
                part = torch.distributions.Beta(c.mixup, c.mixup).sample((len(image),)).to(image.device)
                part, other = torch.maximum(part, 1 - part), torch.randperm(len(image), device=image.device)
                weight = part[:, None, None, None]
                image = weight * image + (1 - weight) * image[other]
                target = part[:, None] * target + (1 - part[:, None]) * target[other]
            target = (1 - c.label_smoothing) * target + c.label_smoothing / len(self.spec.classes)
        return {"cross entropy": F.cross_entropy(self.network(image), target)}

    def features(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, width], the class token; other sizes too."""
        return at_least_float32(self.body(image)[:, 0])

    def classify(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, K] logits."""
        return self.network(image)


_training = partial(training, schedule="cosine", clip=1.0)
MUON = Optimiser("muon", lr=1e-3, matrix_lr=0.01)

# Widths and depths as in the paper's table 1 and, for Ti and S, Touvron's table 1:
# Ti 192 x 12 with 3 heads, S 384 x 12 with 6, B 768 x 12 with 12, L 1024 x 24 with 16.
ViT.presets = {
    "tiny": Preset(
        ViTConfig(PatchConfig(width=32, depth=2, heads=2)),
        _training(Optimiser("adamw", lr=2e-3), "network", batch=16, average=100.0),
    ),
    "small": Preset(ViTConfig(), _training(MUON, "network", batch=64, warmup=5_000)),
    "base": Preset(
        ViTConfig(PatchConfig(across=8, width=384, depth=12, heads=6)),
        _training(replace(MUON, decay=0.05), "network", batch=256, warmup=100_000),
    ),
    # B/16 on ImageNet as in the paper's table 3: 10,000 steps of warmup, no average.
    "paper": Preset(
        ViTConfig(PatchConfig(patch=16, width=768, depth=12, heads=12), 0.0, 0.0, 0.0, augment=False, mirror=True),
        _training(Optimiser("adamw", lr=3e-3, decay=0.3), "network", batch=4096, warmup=10_000 * 4096, average=0.0),
        size=(224, 224), channels=3, classes=1000, parameters={"network": 86_567_656},  # timm
    ),
}  # fmt: skip
