"""Training settings that the presets of several families share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from limner.settings import Optimiser, Training

IMAGENET = 1_281_167  # images for training in ImageNet-1k


def training(optimiser: Optimiser, *submodules: str, **options: Any) -> Training:
    """``optimiser`` for each of ``submodules``; ``options`` are fields of Training."""
    return Training(optimisers=dict.fromkeys(submodules, optimiser), **options)


def gan_training(lr: float, betas: tuple[float, float], **options: Any) -> Training:
    """Adam, with the same settings for the discriminator and the generator."""
    return training(Optimiser("adam", lr=lr, betas=betas), "discriminator", "generator", **options)


# Muon needs a half to a third of the images that AdamW needs: see docs/log.md.
SMALL_UNET = training(Optimiser("muon", lr=2e-3, matrix_lr=0.008), "network", batch=32, samples=16, clip=1.0)
TINY_UNET = replace(SMALL_UNET, batch=16)
BASE_MUON = training(
    Optimiser("muon", lr=5e-4, matrix_lr=0.01), "network", batch=256, flat=0.5, warmup=10_000, clip=1.0,
    average=500_000.0,
)  # fmt: skip
