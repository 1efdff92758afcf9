"""CLIP: images and texts in one space, learnt from images with captions (Radford 2021).

It classifies by the names of classes, finds images by words, and says how well images follow their prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from limner.core import Batch, ImageSpec, Model, Objective, Preset, mix
from limner.families._clip import BASE, PUBLISHED, TINY, ClipConfig, ConfiguredClip
from limner.families._presets import training
from limner.losses.contrastive import LARGEST, symmetric_cross_entropy
from limner.settings import LimnerError, Optimiser
from limner.text.negatives import with_another_word


class Clip(Model):
    Config = ClipConfig
    reads = frozenset({"text"})
    averaged = ("comparer",)
    paper = "Radford 2021, Learning Transferable Visual Models From Natural Language Supervision"
    about = "images and texts in one space: search by words, ranking"

    def __init__(self, config: ClipConfig, spec: ImageSpec):
        super().__init__(config, spec)
        if not spec.captions:
            raise LimnerError(
                "clip needs images with captions: put a .txt file beside each image, or a metadata.csv with "
                "file_name and text in their folder."
            )
        self.comparer = ConfiguredClip(config, spec)

    def objectives(self) -> list[Objective]:
        return [Objective("comparer", self.loss)]

    @torch.no_grad()
    def advance(self, seen: int) -> None:
        """Keep the scale that the last step made between 1 and 100 (2.4)."""
        self.comparer.log_scale.clamp_(0, LARGEST)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Symmetric cross-entropy over the batch of all processes (figure 3)."""
        texts = batch.condition.text
        assert texts is not None  # the data has captions
        negatives = [text for _ in range(self.config.hard_negatives) for text in with_another_word(texts)]
        images = self.comparer.embed_images(batch.image)  # [B, D]
        embedded = self.comparer.embed_texts([*texts, *negatives])  # [B + N, D]
        groups = torch.tensor([mix(text) for text in [*texts, *negatives]], device=images.device)  # [B + N]
        scale = self.comparer.log_scale.clamp(0, LARGEST).exp()
        return {"contrast": symmetric_cross_entropy(images, embedded, scale, groups)}

    @property
    def scale(self) -> float:
        return self.comparer.scale

    def embed_images(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, D] of length 1."""
        return self.comparer.embed_images(image)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> [B, D] of length 1."""
        return self.comparer.embed_texts(texts)

    def features(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, D], the embedding."""
        return self.comparer.embed_images(image)


MUON = Optimiser("muon", lr=1e-3, matrix_lr=0.01)


Clip.presets = {
    "tiny": Preset(
        TINY,
        training(Optimiser("adamw", lr=2e-3), "comparer", batch=16, average=100.0),
    ),
    "small": Preset(ClipConfig(), training(MUON, "comparer", batch=128, warmup=5_000, clip=1.0)),
    "base": Preset(
        BASE,
        training(replace(MUON, decay=0.05), "comparer", batch=1024, warmup=200_000, clip=1.0),
    ),
    "paper": Preset(
        PUBLISHED,
        training(
            Optimiser("adamw", lr=5e-4, betas=(0.9, 0.98), eps=1e-6, decay=0.2), "comparer", batch=32_768,
            schedule="cosine", warmup=2_000 * 32_768, average=0.0,
        ),
        size=(224, 224), channels=3,
    ),
}  # fmt: skip
