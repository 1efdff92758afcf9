"""DINO: self-distillation without labels; a student predicts its own moving average on other views of an image.

Caron 2021, "Emerging Properties in Self-Supervised Vision Transformers". The views differ
in light, colour, weather, scale and viewpoint, and have occlusions.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, ImageSpec, Model, Objective, Preset
from limner.families._presets import IMAGENET, training
from limner.fields import Images
from limner.losses.distillation import centre_and_sharpen, self_distillation, sinkhorn
from limner.networks.images import views
from limner.networks.layers import at_least_float32, init_xavier
from limner.networks.transformers.patch import PatchConfig, PatchTransformer
from limner.settings import Optimiser


@dataclass(frozen=True)
class DINOConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("local_views",)

    body: PatchConfig = field(default_factory=PatchConfig)  # the transformer
    drop_path: float = 0.1  # stochastic depth of the student: drop probability of the last layer
    hidden: int = 512  # width of the head's MLP
    bottleneck: int = 64  # dimension of the head's output, before the prototypes
    prototypes: int = 512  # classes that the student predicts
    local_views: int = 2  # small views an image, which only the student sees
    global_area: tuple[float, float] = (0.5, 1.0)  # share of the image's area in a global view, from and to
    local_area: tuple[float, float] = (0.25, 0.5)  # share of the image's area in a local view
    local_side: float = 0.625  # side of a local view, relative to a global one
    occlude: bool = True  # occlude boxes in the global views
    mirror: bool = False  # views include mirroring; not for digits and letters
    momentum: float = 0.99  # of the teacher, at the start of training
    momentum_images: Images = 0  # images seen until it reaches 1, along a cosine; 0: constant
    temperature: float = 0.1  # of the student's softmax
    teacher_temperature: float = 0.04  # of the teacher's softmax
    # A small untrained network gives nearly the same output for all images; standardised, they differ.
    standardise: bool = True  # the head's output over the batch, as by a batch norm without weights
    # Against collapse to one prototype: the paper's centre, or Sinkhorn-Knopp (DINOv2), safer with small batches.
    centering: Literal["centre", "sinkhorn"] = "sinkhorn"  # of the teacher's logits
    centre_momentum: float = 0.9  # centre: of the moving average of the logits
    freeze_images: Images = 2_000  # images seen before the prototypes are trained


class Network(nn.Module):
    """The transformer and the head of appendix C: [B, C, H, W] -> logits [B, prototypes]."""

    def __init__(self, config: DINOConfig, spec: ImageSpec):
        super().__init__()
        c = config
        self.body = PatchTransformer(c.body, spec.channels, (spec.height, spec.width), c.drop_path)
        first, second = nn.Linear(c.body.width, c.hidden), nn.Linear(c.hidden, c.hidden)
        self.head = nn.Sequential(first, nn.GELU(), second, nn.GELU(), nn.Linear(c.hidden, c.bottleneck))
        self.prototypes = nn.Parameter(torch.empty(c.prototypes, c.bottleneck))  # only their direction counts
        self.standardise = c.standardise
        init_xavier(self.head)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        z = at_least_float32(self.head(self.body(x)[:, 0]))  # [B, bottleneck]
        if self.standardise:
            z = (z - z.mean(0)) * (z.var(0, correction=0) + 1e-6).rsqrt()
        z = F.normalize(z, dim=1)
        prototypes = self.prototypes.detach() if frozen else self.prototypes
        return at_least_float32(z @ F.normalize(prototypes, dim=1).T)


def as_buffers(module: nn.Module) -> nn.Module:
    """The module with its parameters turned into buffers, which no optimiser trains."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return module


class DINO(Model):
    Config = DINOConfig
    paper = "Caron 2021, Emerging Properties in Self-Supervised Vision Transformers"
    about = "learns features without labels, by self-distillation"

    centre: Tensor  # [prototypes], moving average of the teacher's logits
    followed: Tensor  # images seen at the teacher's last update

    def __init__(self, config: DINOConfig, spec: ImageSpec):
        super().__init__(config, spec)
        self.student = Network(config, spec)
        self.teacher = as_buffers(copy.deepcopy(self.student)).eval()
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("followed", torch.zeros((), dtype=torch.int64))
        self.seen = 0

    @property
    def body(self) -> PatchTransformer:
        return self.teacher.body  # type: ignore[return-value]

    def train(self, mode: bool = True) -> DINO:
        super().train(mode)
        self.teacher.eval()
        return self

    def objectives(self) -> list[Objective]:
        return [Objective("student", self.loss)]

    def advance(self, seen: int) -> None:
        self.seen = seen

    def update_teacher(self) -> None:
        """Move the teacher towards the student, once a step, however many microbatches a step has."""
        if int(self.followed) >= self.seen:
            return
        momentum, images = self.config.momentum, self.config.momentum_images
        if images:
            progress = min(1.0, self.seen / images)
            momentum = 1 - (1 - momentum) * (math.cos(math.pi * progress) + 1) / 2
        own = dict(self.teacher.named_buffers())
        for name, parameter in self.student.named_parameters():
            own[name].lerp_(parameter.detach(), 1 - momentum)
        self.followed.fill_(self.seen)

    def augment(self, x: Tensor) -> Tensor:
        x = views.mirror(x) if self.config.mirror else x
        return views.weather(views.colour(views.light(views.viewpoint(x))))

    def crops(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Two global views [B, C, H, W], and the local views."""
        c, patch = self.config, self.body.patch
        size = (x.shape[2], x.shape[3])
        h, w = (max(1, round(side * c.local_side / patch)) * patch for side in size)
        global_views = [self.augment(views.crop(x, size, *c.global_area)) for _ in range(2)]
        global_views = [views.occlude(view) for view in global_views] if c.occlude else global_views
        return global_views, [
            self.augment(views.crop(x, (h, w), *c.local_area)) for _ in range(c.local_views)
        ]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy between the teacher and the student on different views (eq. 2)."""
        c = self.config
        with torch.no_grad():
            if self.training:
                self.update_teacher()
            global_views, local_views = self.crops(batch.image)
            logits = self.teacher(torch.cat(global_views))  # [2B, K]
        frozen = self.training and self.seen < c.freeze_images
        scores = [self.student(torch.cat(same), frozen) for same in (global_views, local_views) if same]
        student = torch.cat(scores).unflatten(0, (-1, len(batch.image)))  # [V, B, K]
        teacher = logits.unflatten(0, (2, -1))  # [2, B, K]
        if c.centering == "sinkhorn":
            target = sinkhorn(teacher, c.teacher_temperature)
        else:
            target = centre_and_sharpen(teacher, self.centre, c.teacher_temperature)
            if self.training:
                self.centre.copy_(self.centre.lerp(logits.mean(0), 1 - c.centre_momentum))  # eq. 4
        return {"agreement": self_distillation(student, target, c.temperature)}

    def features(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, width], the teacher's class token; other sizes too."""
        return at_least_float32(self.body(image)[:, 0])


_training = partial(training, schedule="cosine", clip=3.0, average=0.0)
ADAMW = Optimiser("adamw", betas=(0.9, 0.999))
MUON = replace(ADAMW, name="muon", lr=1e-3, matrix_lr=0.005)

DINO.presets = {
    "tiny": Preset(
        DINOConfig(PatchConfig(width=32, depth=2, heads=2), 0.0, 32, 16, 32, freeze_images=0),
        _training(replace(ADAMW, lr=2e-3), "student", batch=16),
    ),
    "small": Preset(DINOConfig(), _training(MUON, "student", batch=64, warmup=5_000)),
    "base": Preset(
        DINOConfig(PatchConfig(across=8, width=384, depth=12, heads=6), 0.1, 2048, 256, 4096, 6, momentum=0.996),
        _training(replace(ADAMW, lr=5e-4, decay=0.04), "student", batch=256, warmup=100_000, clip_each=True),
    ),
    # ViT-S/16 as published: learning rate 5e-4 per 256 images of a batch, 10 epochs of warmup, 8 local views of 96.
    "paper": Preset(
        DINOConfig(
            PatchConfig(patch=16, width=384, depth=12, heads=6, plain_resize=True), 0.1, 2048, 256, 65536,
            local_views=8, global_area=(0.4, 1.0), local_area=(0.05, 0.4), local_side=96 / 224, occlude=False,
            mirror=True, standardise=False, centering="centre", momentum=0.996, momentum_images=100 * IMAGENET,
            freeze_images=IMAGENET,
        ),
        _training(replace(ADAMW, lr=2e-3, decay=0.04), "student", batch=1024, warmup=10 * IMAGENET, clip_each=True),
        size=(224, 224), channels=3,
        parameters={"student": 21_665_664 + 22_286_592, "teacher": 0},  # backbone and head, facebookresearch/dino
    ),
}  # fmt: skip
