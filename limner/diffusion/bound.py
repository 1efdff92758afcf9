"""The variational bound of a diffusion in discrete steps: how a network learns each step's variance (Nichol 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limner.diffusion.paths import Discrete, like


def share(out: Tensor) -> Tensor:
    """Where in its range a learned variance lies: the second half of a network's channels, [-1, 1] being all of it."""
    return (out.chunk(2, dim=1)[1] + 1) / 2


def step_bound(path: Discrete, data: Tensor, x_t: Tensor, t: Tensor, guess: Tensor, share: Tensor) -> Tensor:
    """[B] bits a number: one step's term of the bound (Ho 2020, eq. 5), times [B] being whole.

    ``guess`` is of the data. ``share`` says which variance the step back takes: 0 the posterior's, 1 that of the
    noise that the step added, between them in the logarithm (Nichol 2021, eq. 15). The last step to the data is
    the likelihood of its 256 levels in [-1, 1] (Ho 2020, eq. 13).
    """
    kept = path.kept.to(t.device)
    beta, now = path.betas.to(t.device)[t], kept[t]
    before = torch.where(t > 0, kept[(t - 1).clamp(min=0)], 1.0)
    small = beta * (1 - before) / (1 - now)  # the posterior's variance
    # At the last step it is 0, and the next one's is taken.
    small = torch.where(t > 0, small, path.betas[1].item() * (1 - kept[0]) / (1 - kept[1]))
    of_data, of_x = before.sqrt() * beta / (1 - now), (1 - beta).sqrt() * (1 - before) / (1 - now)
    of_data, of_x, low, high = (
        like(number.float(), data) for number in (of_data, of_x, small.log(), beta.log())
    )
    log = low + share * (high - low)
    mean = of_data * guess + of_x * x_t
    gap = of_data * data + of_x * x_t - mean
    divergence = 0.5 * (log - low - 1 + torch.exp(low - log) + gap.square() * torch.exp(-log))
    surprise = -log_level(data, mean, torch.exp(0.5 * log))
    term = torch.where(like(t, data) > 0, divergence, surprise)
    return term.flatten(1).mean(1) / math.log(2)


def log_level(data: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-probability that N(mean, std^2), rounded to 256 levels in [-1, 1], is ``data``; the ends take the tails."""
    upper = torch.special.ndtr((data + 1 / 255 - mean) / std)
    lower = torch.special.ndtr((data - 1 / 255 - mean) / std)
    upper = torch.where(data < 0.999, upper, 1.0)
    lower = torch.where(data > -0.999, lower, 0.0)
    return (upper - lower).clamp(min=1e-12).log()
