"""The loss of images and texts in one space (Radford 2021, figure 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from limner.distributed import gather_rows

START = math.log(1 / 0.07)  # of the logarithm of the scale
LARGEST = math.log(100)  # of it, after any step


def symmetric_cross_entropy(
    images: Tensor, texts: Tensor, scale: Tensor, groups: Tensor | None = None, others: Tensor | None = None
) -> Tensor:
    """Cross-entropy of finding each image's text and each text's image in the batch of all processes, the mean of both.

    ``images`` and ``texts`` [B, D] belong together in pairs; ``others`` [N, D] are texts of no image. All are of length
    1, and logits are ``scale`` times their cosines. Of two pairs with the same entry in ``groups`` [B], neither
    is a negative of the other: they have the same text.
    """
    images, texts = gather_rows(images.float()), gather_rows(texts.float())
    logits = scale.float() * images @ texts.T  # [B, B]
    if groups is not None:
        groups = gather_rows(groups)
        itself = torch.eye(len(images), dtype=torch.bool, device=images.device)
        logits = logits.masked_fill((groups[:, None] == groups) & ~itself, -math.inf)
    by_image = logits
    if others is not None:
        by_image = torch.cat(
            [logits, scale.float() * images @ gather_rows(others.float()).T], dim=1
        )  # [B, B + N]
    target = torch.arange(len(images), device=images.device)
    return 0.5 * (F.cross_entropy(by_image, target) + F.cross_entropy(logits.T, target))
