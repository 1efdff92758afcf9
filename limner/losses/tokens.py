"""Losses of DALL-E's tokenizer, the ramps of its training, and how much of a codebook is in use."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from limner.networks.layers import at_least_float32


def logit_laplace(mu: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
    """Minus the log-density of the logit-Laplace distribution at ``target`` in (0, 1) (Ramesh 2021, A.3)."""
    distance = (torch.logit(target) - mu).abs() * torch.exp(-log_scale)
    return math.log(2) + log_scale + target.log() + torch.log1p(-target) + distance


def kl_uniform(logits: Tensor) -> Tensor:
    """[B, codes, h, w] -> [B, h, w]: KL(q || uniform) in nats, of q = softmax(logits)."""
    log_q = F.log_softmax(at_least_float32(logits), 1)
    return (log_q.exp() * log_q).sum(1) + math.log(logits.shape[1])


def dvae_loss(pixels: Tensor, kl: Tensor, weight: float | Tensor) -> dict[str, Tensor]:
    """The terms of -log p [B, C, H, W] and of the KL [B, h, w], both divided by C H W, means over the batch.

    At 256 x 256 x 3 and 32 x 32 positions, ``weight`` is 192 times that of the KL's mean over them (Ramesh 2021, A.2).
    """
    size = pixels[0].numel()
    return {
        "pixels": pixels.flatten(1).sum(1).mean() / size,
        "kl": weight * kl.flatten(1).sum(1).mean() / size,
    }


def ramp(seen: float, span: float, start: float, end: float) -> float:
    """From ``start`` to ``end`` over ``span`` images by half a cosine (Ramesh 2021, A.2); ``end`` with a span of 0."""
    share = min(seen / span, 1.0) if span else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the shares of ``counts`` [codes]: 1 if one code is used, ``codes`` if all are alike."""
    share = counts / counts.sum().clamp(min=1e-12)
    return torch.exp(-torch.special.xlogy(share, share).sum())
