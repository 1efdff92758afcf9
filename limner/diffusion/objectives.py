"""What a denoising network learns: its loss on a path, and the clean data that its prediction means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limner.core import Denoised
from limner.diffusion.bound import step_bound
from limner.diffusion.paths import STRAIGHT, Discrete, Path, noised, scales, training_times, velocity

Prediction = Literal["noise", "velocity", "data"]
Network = Callable[[Tensor, Tensor], Tensor]  # noisy x [B, C, ...] and its times [B] -> prediction

SIGMA_FLOOR = 0.05  # diffusion_loss with predict=data divides by at least this


@dataclass(frozen=True)
class FlowMatching:
    """The training times of flow matching, a part of a family's Config."""

    time_mean: float = -0.8  # flow matching: training times are sigmoid(normal); mean of the normal
    time_std: float = 1.0  # flow matching: standard deviation of that normal
    time_uniform: float = 0.1  # flow matching: fraction of training times that are uniform instead
    sigma_floor: float = 0.05  # flow matching with predict=data: lower limit of 1 - t in the loss


def flow_matching_loss(
    network: Network, data: Tensor, config: FlowMatching, predict: Prediction
) -> dict[str, Tensor]:
    """Squared error of the velocity, whether the network predicts that or the data (Lipman 2023; Li and He 2025)."""
    c = config
    t = training_times(len(data), c.time_mean, c.time_std, c.time_uniform, data.device)
    x_t = noised(STRAIGHT, data, noise := torch.randn_like(data), t)
    out = network(x_t, t)  # [B, C, ...]
    if predict == "velocity":
        error = out - (data - noise)
    else:
        error = velocity(out, x_t, t, c.sigma_floor) - velocity(data, x_t, t, c.sigma_floor)
    return {"velocity": error.square().mean()}


def diffusion_loss(
    network: Network, data: Tensor, path: Discrete, t: Tensor, predict: Prediction, bound: float = 1.0
) -> dict[str, Tensor]:
    """L_simple (Ho 2020, eq. 14) of what the network predicts, at times t [B].

    A network with twice the channels learns each step's variance too, by the variational bound times ``bound``,
    which does not train its prediction (Nichol 2021, eq. 16).
    """
    noise = torch.randn_like(data)
    x_t = noised(path, data, noise, t)
    out, variance = split_variance(network(x_t, t), data.shape[1])
    alpha, sigma = scales(path, t, data)
    if predict == "noise":
        terms = {"noise": (out - noise).square().mean()}
    elif predict == "velocity":
        terms = {"velocity": (out - (alpha * noise - sigma * data)).square().mean()}
    else:  # an error of the data is an error of the velocity, divided by sigma
        terms = {"velocity": ((out - data) / sigma.clamp(min=SIGMA_FLOOR)).square().mean()}
    if variance is not None:
        guess = denoised(predict, path, x_t, out.detach(), alpha, sigma).data
        terms["bound"] = bound * step_bound(path, data, x_t, t, guess, variance).mean()
    return terms


def denoising_loss(
    network: Network, data: Tensor, path: Path, predict: Prediction, config: FlowMatching
) -> dict[str, Tensor]:
    """`diffusion_loss` at random times of a discrete path, or `flow_matching_loss` on the straight one."""
    if isinstance(path, Discrete):
        return diffusion_loss(network, data, path, path.random_times(len(data), data.device), predict)
    return flow_matching_loss(network, data, config, predict)


def clean_loss(network: Network, data: Tensor, path: Discrete, t: Tensor) -> dict[str, Tensor]:
    """Squared error of the clean data, at times t [B], with one weight for all noise levels (Ramesh 2022, 2.2)."""
    x_t = noised(path, data, torch.randn_like(data), t)
    return {"data": (network(x_t, t).to(data.dtype) - data).square().mean()}


def denoised(
    predict: Prediction, path: Path, x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor
) -> Denoised:
    """The clean data that a prediction on a path means (Ho 2020, eq. 15; Salimans 2022, appendix D).

    With it the learned variance, if the network has channels for one.
    """
    out, variance = split_variance(out, x.shape[1])
    if predict == "noise":
        return Denoised((x - sigma * out) / alpha, variance)
    if predict == "velocity":
        return Denoised(x + sigma * out if path.straight else alpha * x - sigma * out, variance)
    return Denoised(out, variance)


def split_variance(out: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """A network's output -> its prediction, and the learned variance in [0, 1] if it has channels for one."""
    if out.shape[1] == channels:
        return out, None
    out, variance = out.chunk(2, dim=1)
    return out, (variance + 1) / 2
