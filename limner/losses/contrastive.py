"""Losses of finding what belongs together: images and texts (Radford 2021), places of two pictures (Park 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from limner.distributed import gather_rows
from limner.networks.layers import at_least_float32

START = math.log(1 / 0.07)  # of the logarithm of the scale
LARGEST = math.log(100)  # of it, after any step


def symmetric_cross_entropy(
    images: Tensor, texts: Tensor, scale: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Cross-entropy of finding each image's text and each text's image in the batch of all processes, the mean of both.

    ``images`` [B, D] and ``texts`` [B + N, D], of length 1: the first B belong together in pairs, and N further texts
    belong to no image. Logits are ``scale`` times their cosines. ``groups`` [B + N]: texts with the same entry are the
    same, so the others of them are no negatives of an image of one.
    """
    count = len(images)
    images, texts = at_least_float32(images), at_least_float32(texts)
    images = gather_rows(images)
    texts = _gather_pairs(texts, count)
    groups = None if groups is None else _gather_pairs(groups, count)
    count = len(images)
    logits = scale * images @ texts.T  # [B, B + N]
    if groups is not None:
        same = groups[:count, None] == groups  # [B, B + N]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -math.inf)
    target = torch.arange(count, device=images.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :count].T, target))


def patch_nce(query: Tensor, key: Tensor, temperature: float = 0.07) -> Tensor:
    """[B, N]: the cross-entropy of finding each place's key among the keys of its own picture (Park 2020, eq. 3).

    ``query`` and ``key`` [B, N, D], of length 1; keys carry no gradient.
    """
    logits = at_least_float32(query) @ at_least_float32(key).detach().mT / temperature  # [B, N, N]
    target = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)  # [B, N]
    return F.cross_entropy(logits.mT, target, reduction="none")


def _gather_pairs(rows: Tensor, count: int) -> Tensor:
    """The first ``count`` rows of each process, and after them all their others."""
    return torch.cat([gather_rows(part) for part in rows.split([count, len(rows) - count])])
