"""DINO: a student that agrees with its own moving average about views of an image; no label is needed.

Caron 2021, "Emerging Properties in Self-Supervised Vision Transformers". The views are those that changed
surroundings give: other light, colour, weather, scale, viewpoint, and things in front.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, ImageSpec, Model, Objective, Optimiser, Preset, Training
from limner.losses.distillation import centre_and_sharpen, self_distillation, sinkhorn
from limner.networks.images import views
from limner.networks.layers import init_xavier
from limner.networks.transformers.patch import PatchConfig, PatchTransformer


@dataclass(frozen=True)
class DINOConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("locals", "freeze_images")

    body: PatchConfig = field(default_factory=PatchConfig)
    drop_path: float = 0.1  # of the student
    hidden: int = 512  # of the head's MLP
    bottleneck: int = 64  # features of the head before its last layer
    prototypes: int = 512  # what an image can be likened to
    locals: int = 2  # small views, which only the student sees
    global_area: tuple[float, float] = (0.5, 1.0)  # share of the image in a large view
    local_area: tuple[float, float] = (0.25, 0.5)  # and in a small one
    local_side: float = 0.625  # of a small view, by that of a large one
    occlude: bool = True  # hide boxes in the large views
    mirror: bool = False  # also mirrored: not for digits and letters
    momentum: float = 0.99  # of the teacher, at first
    momentum_images: int = 0  # until which it rises to 1 along a cosine; 0: it stays
    temperature: float = 0.1  # of the student
    teacher_temperature: float = 0.04  # of the softmax of the teacher
    # At first a small network's outputs differ little between images; standardising them over a batch helps.
    standardise: bool = True  # the head's output over the batch, as a batch norm without weights
    # What keeps all images from being likened to one prototype: the paper's moving centre; or, surer where
    # batches and budgets are small, an equal share of the batch for each (as in DINOv2).
    spread: Literal["centre", "sinkhorn"] = "sinkhorn"
    centre_momentum: float = 0.9  # of the moving centre
    freeze_images: int = 2_000  # until which the prototypes stand still


class Network(nn.Module):
    """The transformer and the head of appendix C: [B, C, H, W] -> scores [B, prototypes]."""

    def __init__(self, config: DINOConfig, spec: ImageSpec):
        super().__init__()
        c = config
        self.body = PatchTransformer(c.body, spec.channels, (spec.height, spec.width), c.drop_path)
        self.head = nn.Sequential(
            nn.Linear(c.body.width, c.hidden), nn.GELU(), nn.Linear(c.hidden, c.hidden), nn.GELU(),
            nn.Linear(c.hidden, c.bottleneck),
        )  # fmt: skip
        self.prototypes = nn.Parameter(torch.empty(c.prototypes, c.bottleneck))  # by direction only
        self.standardise = c.standardise
        init_xavier(self.head)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        z = self.head(self.body(x)[:, 0]).float()  # [B, bottleneck]
        if self.standardise:
            z = (z - z.mean(0)) * (z.var(0, correction=0) + 1e-6).rsqrt()
        z = F.normalize(z, dim=1)
        prototypes = self.prototypes.detach() if frozen else self.prototypes
        return (z @ F.normalize(prototypes, dim=1).T).float()


def as_buffers(module: nn.Module) -> nn.Module:
    """The same module with buffers in the place of its parameters: nothing that an optimiser could move."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return module


class DINO(Model):
    Config = DINOConfig
    paper: ClassVar[str] = "Caron 2021, Emerging Properties in Self-Supervised Vision Transformers"
    about: ClassVar[str] = "learns features without labels, by self-distillation"

    centre: Tensor
    followed: Tensor

    def __init__(self, config: DINOConfig, spec: ImageSpec):
        super().__init__(config, spec)
        self.student = Network(config, spec)
        self.teacher = as_buffers(copy.deepcopy(self.student)).eval()
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("followed", torch.zeros((), dtype=torch.int64))  # images at its last step
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

    def follow(self) -> None:
        """The teacher's step after the student's last one: once a step, however many microbatches it has."""
        if int(self.followed) >= self.seen:
            return
        c = self.config
        momentum = c.momentum
        if c.momentum_images:
            share = min(1.0, self.seen / c.momentum_images)
            momentum = 1 - (1 - c.momentum) * (math.cos(math.pi * share) + 1) / 2
        own = dict(self.teacher.named_buffers())
        for name, parameter in self.student.named_parameters():
            own[name].lerp_(parameter.detach(), 1 - momentum)
        self.followed.fill_(self.seen)

    def surroundings(self, x: Tensor) -> Tensor:
        if self.config.mirror:
            x = views.mirror(x)
        return views.weather(views.colour(views.light(views.viewpoint(x))))

    def crops(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Two large views [B, C, H, W] and the small ones."""
        c, patch = self.config, self.body.patch
        size = (x.shape[2], x.shape[3])
        small = tuple(max(1, round(side * c.local_side / patch)) * patch for side in size)
        large = [self.surroundings(views.crop(x, size, *c.global_area)) for _ in range(2)]
        if c.occlude:
            large = [views.occlude(view) for view in large]
        little = [
            self.surroundings(views.crop(x, (small[0], small[1]), *c.local_area)) for _ in range(c.locals)
        ]
        return large, little

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy between what the teacher and the student say of different views (eq. 2)."""
        c = self.config
        with torch.no_grad():
            if self.training:
                self.follow()
            large, little = self.crops(batch.image)
            teacher_scores = self.teacher(torch.cat(large))  # [2B, K]
        frozen = self.training and self.seen < c.freeze_images
        scores = [self.student(torch.cat(large), frozen)]
        if little:
            scores.append(self.student(torch.cat(little), frozen))
        student = torch.cat(scores).unflatten(0, (-1, len(batch.image)))  # [V, B, K]
        teacher = teacher_scores.unflatten(0, (2, -1))  # [2, B, K]
        if c.spread == "sinkhorn":
            target = sinkhorn(teacher, c.teacher_temperature)
        else:
            target = centre_and_sharpen(teacher, self.centre, c.teacher_temperature)
            if self.training:
                self.centre.copy_(self.centre.lerp(teacher_scores.mean(0), 1 - c.centre_momentum))  # eq. 4
        return {"agreement": self_distillation(student, target, c.temperature)}

    def features(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, width], the teacher's class token; other sizes too."""
        return self.body(image)[:, 0].float()


def _training(name: Literal["muon", "adamw"], batch: int, lr: float, decay: float, warmup: int) -> Training:
    settings = Optimiser(name, lr=lr, betas=(0.9, 0.999), decay=decay, matrix_lr=0.005)
    return Training(
        batch=batch, optimisers={"student": settings}, schedule="cosine", warmup=warmup, clip=3.0, average=0.0
    )


DINO.presets = {
    "tiny": Preset(
        DINOConfig(PatchConfig(width=32, depth=2, heads=2), 0.0, 32, 16, 32, freeze_images=0),
        _training("adamw", 16, 2e-3, 0.0, 0),
    ),
    "small": Preset(DINOConfig(), _training("muon", 64, 1e-3, 0.0, 5_000)),
    "base": Preset(
        DINOConfig(PatchConfig(across=8, width=384, depth=12, heads=6), 0.1, 2048, 256, 4096, locals=6, momentum=0.996),
        _training("adamw", 256, 5e-4, 0.04, 100_000),
    ),
    # ViT-S/16 as published: 0.0005 for each 256 of a batch of 1024, 10 epochs of warm-up, 8 small views of 96.
    "paper": Preset(
        DINOConfig(
            PatchConfig(patch=16, width=384, depth=12, heads=6), 0.1, 2048, 256, 65536, locals=8,
            global_area=(0.4, 1.0), local_area=(0.05, 0.4), local_side=96 / 224, occlude=False, mirror=True,
            standardise=False, spread="centre", momentum=0.996, momentum_images=100 * 1_281_167,
            freeze_images=1_281_167,
        ),
        _training("adamw", 1024, 2e-3, 0.04, 10 * 1_281_167),
        size=(224, 224),
        channels=3,
        parameters={"student": 21_665_664 + 22_286_592, "teacher": 0},  # backbone and head, facebookresearch/dino
    ),
}  # fmt: skip
