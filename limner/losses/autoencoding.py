"""Losses of autoencoders: terms of the evidence lower bound, [B] in nats an image, a codebook's."""

import math

import torch.nn.functional as F
from torch import Tensor

from limner.networks.layers import at_least_float32


def kl_gaussian(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)), summed over all but the batch (Kingma 2014, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def nll_bernoulli(logits: Tensor, image: Tensor) -> Tensor:
    """Cross-entropy of pixels in [-1, 1], mapped to probabilities in [0, 1] (Kingma 2014, appendix C.1)."""
    target = (image + 1) / 2
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).sum(1)


def nll_gaussian(mean: Tensor, image: Tensor, sigma: float = 0.0) -> Tensor:
    """Minus the log-density of N(mean, sigma^2) at the pixels. ``sigma`` 0: the optimum for this batch.

    The optimal variance is the mean squared error itself (Rybkin 2021, eq. 8), so the balance with the KL term needs
    no tuning.
    """
    error = (image - mean).square()  # [B, ...]
    # A perfect reconstruction would make the optimum 0.
    variance = error.new_tensor(sigma**2) if sigma else error.mean().clamp(min=1e-6)
    return 0.5 * (error / variance + variance.log() + math.log(2 * math.pi)).flatten(1).sum(1)


def vq_loss(code: Tensor, entry: Tensor, commitment: float = 0.25, legacy: bool = False) -> Tensor:
    """Codebook term plus ``commitment`` times the commitment term: a scalar (van den Oord 2017, eq. 3).

    ``legacy`` puts the weight on the codebook term instead, as published VQGANs were trained: the value is the same,
    the gradients are not.
    """
    code, entry = at_least_float32(code), at_least_float32(entry)
    to_code, to_entry = (entry - code.detach()).square().mean(), (code - entry.detach()).square().mean()
    return commitment * to_code + to_entry if legacy else to_code + commitment * to_entry
