"""How images and texts fit, by their embeddings in one space (Radford 2021; Hessel 2021)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def ensemble(prompts: Tensor) -> Tensor:
    """The embeddings [K, T, D] of each class's T prompts -> [K, D] of length 1: of their directions, the mean's.

    Radford 2021, 3.1.4.
    """
    return F.normalize(F.normalize(prompts, dim=2).mean(1), dim=1)


def zero_shot_logits(images: Tensor, classes: Tensor, scale: float) -> Tensor:
    """Embeddings [B, D] and [K, D] -> [B, K], the scale times their cosines."""
    return scale * F.normalize(images, dim=1) @ F.normalize(classes, dim=1).T


def fit(images: Tensor, texts: Tensor) -> Tensor:
    """Embeddings [..., D] of images and of their texts -> [...] 100 times the cosine, in float64.

    CLIPScore is 2.5 times this where it is above 0 (Hessel 2021, eq. 1, as a share of 100).
    """
    return 100 * torch.cosine_similarity(images.double(), texts.double(), dim=-1)
