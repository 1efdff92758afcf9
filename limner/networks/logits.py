"""From logits to a token: guidance, then temperature, top-k and top-p, then one draw from an image's own stream."""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from limner.networks.layers import at_least_float32

COLDEST = 1e-6  # a temperature below counts as 0: logits over it would overflow


class Chooses(Protocol):
    """Draws indices by weights: ``limner.core.Draws``."""

    def choose(self, probabilities: Tensor) -> Tensor: ...


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Logits moved away from the unconditional ones; 1: as trained (Dayma 2021, super conditioning; Ho 2022)."""
    return unconditional + scale * (conditional - unconditional)


def filter_logits(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """Logits [..., K] over the temperature, above 0, with -inf where a token is left out; at least in float32.

    ``top_k`` keeps the k largest and all that equal the k-th; None, or k above K, keeps all. ``top_p`` keeps the
    most probable of these until their sum reaches p, the token that crosses p included (Holtzman 2020).
    """
    logits = at_least_float32(logits) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]  # [..., 1]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p < 1:
        probability, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = probability.cumsum(-1) - probability  # [..., K], of all that are more probable
        left_out = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(left_out, -math.inf)
    return logits


def choose(
    logits: Tensor, draws: Chooses, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """Logits [B, ..., K] -> indices [B, ...], one uniform number each; temperature 0: the most probable, none drawn."""
    if temperature < COLDEST:
        return logits.argmax(-1)
    return draws.choose(filter_logits(logits, temperature, top_k, top_p).softmax(-1))


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of logits [..., K] with targets [...], in float32 or float64."""
    logits = at_least_float32(logits)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def remove_smoothing(logits: Tensor, smoothing: float) -> Tensor:
    """Logits [..., K] of a network that learnt smoothed labels, without what the smoothing put on every token.

    That is ``smoothing`` / K; a token that has no more than it becomes impossible (-inf).
    """
    if not smoothing:
        return logits
    return (logits.softmax(-1) - smoothing / logits.shape[-1]).clamp(min=0).log()
