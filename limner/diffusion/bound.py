"""The variational bound of discrete diffusion, from which a network learns each step's variance (Nichol 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limner.diffusion.paths import Discrete, expand_dims


def step_bound(
    path: Discrete, data: Tensor, x_t: Tensor, t: Tensor, denoised: Tensor, variance: Tensor
) -> Tensor:
    """[B] bits per dimension: one step's term of the bound (Ho 2020, eq. 5), at integer times [B].

    ``variance`` in [0, 1] interpolates the logarithm of the reverse step's variance, from the posterior's at 0 to
    beta at 1 (Nichol 2021, eq. 15). The last step's term is the likelihood of the data's 256 levels in [-1, 1]
    (Ho 2020, eq. 13).
    """
    alphas_cumprod = path.alphas_cumprod.to(t.device)
    beta, now = path.betas.to(t.device)[t], alphas_cumprod[t]
    before = torch.where(t > 0, alphas_cumprod[(t - 1).clamp(min=0)], 1.0)
    small = beta * (1 - before) / (1 - now)  # the posterior's variance
    # It is 0 at time 0, where that of time 1 is taken.
    first = path.betas[1].item() * (1 - alphas_cumprod[0]) / (1 - alphas_cumprod[1])
    small = torch.where(t > 0, small, first)
    of_data, of_x = before.sqrt() * beta / (1 - now), (1 - beta).sqrt() * (1 - before) / (1 - now)
    of_data, of_x, low, high = (
        expand_dims(number.float(), data) for number in (of_data, of_x, small.log(), beta.log())
    )
    log = low + variance * (high - low)
    mean = of_data * denoised + of_x * x_t
    gap = of_data * data + of_x * x_t - mean
    divergence = 0.5 * (log - low - 1 + torch.exp(low - log) + gap.square() * torch.exp(-log))
    surprise = -log_level(data, mean, torch.exp(0.5 * log))
    term = torch.where(expand_dims(t, data) > 0, divergence, surprise)
    return term.flatten(1).mean(1) / math.log(2)


def log_level(data: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-probability of ``data`` under N(mean, std^2) rounded to 256 levels in [-1, 1], tails included."""
    upper = torch.special.ndtr((data + 1 / 255 - mean) / std)
    lower = torch.special.ndtr((data - 1 / 255 - mean) / std)
    upper = torch.where(data < 0.999, upper, 1.0)
    lower = torch.where(data > -0.999, lower, 0.0)
    return (upper - lower).clamp(min=1e-12).log()
