"""Training settings that the presets of several families share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from limner.settings import Optimiser, Training
from limner.text.encoder import TextConfig

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

TINY_TEXT, BASE_TEXT = TextConfig(width=32, layers=1), TextConfig(width=512, layers=6, length=512)
# What the configs of a family with a `UNet`, an embedding and a text encoder have in common.
TINY_LEVELS: dict[str, Any] = {
    "widths": (16, 32), "blocks": (1, 1), "attention_resolutions": (4,), "cross_attention_resolutions": (16,),
    "head_width": 16, "embedding": 32, "text": TINY_TEXT,
}  # fmt: skip
BASE_LEVELS: dict[str, Any] = {
    "widths": (128, 256, 512, 512), "blocks": (2, 2, 3, 3), "attention_resolutions": (8, 4),
    "cross_attention_resolutions": (16,), "dropout": 0.1, "embedding": 512, "text": BASE_TEXT,
}  # fmt: skip
