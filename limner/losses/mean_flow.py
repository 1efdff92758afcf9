"""Regression targets for an average velocity u(x_t, t, s), and the weights of their errors."""

from collections.abc import Callable

import torch
from torch import Tensor

Average = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t [B, C, H, W], t [B], s [B] -> u [B, C, H, W]


@torch.no_grad()
def split_target(u: Average, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """u(x_t, t, s) from the intervals t to m and m to s, for a random m between (Guo 2025, SplitMeanFlow)."""
    share = 0.25 + 0.5 * torch.rand_like(t)  # of the interval that lies before m
    m = torch.lerp(t, s, share)
    first = u(x, t, m)
    second = u(x + (m - t).view(-1, 1, 1, 1) * first, m, s)
    return torch.lerp(second, first, share.view(-1, 1, 1, 1))


def implied_velocity(u: Average, x: Tensor, t: Tensor, s: Tensor, tangent: Tensor) -> Tensor:
    """u - (s - t) sg(du/dt), the velocity that u implies (Geng 2025, eq. 6; Geng 2025b, eq. 12).

    du/dt is a Jacobian-vector product along ``tangent``, the velocity at x_t. Its gradient is stopped.
    """
    found = torch.func.jvp(lambda x, t: u(x, t, s), (x, t), (tangent, torch.ones_like(t)))
    mean, slope = found[0], found[1].detach()
    return mean - (s - t).view(-1, 1, 1, 1) * slope


def adaptive_weight(squares: Tensor, power: float) -> Tensor:
    """Squared errors [B, D] -> weights [B] proportional to 1 / (their sum + 0.001)^power; 1 / D for a power of 0."""
    return (squares.detach().sum(1) + 1e-3) ** -power * squares.shape[1] ** (power - 1)
