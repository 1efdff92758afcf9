"""Paths between data and noise, x = alpha data + sigma noise: straight, variance preserving, exploding.

A path gives the noise levels of a sampler's steps; two give alpha and sigma at training times [B], too. On every path
the ratio sigma / alpha measures the noise (Karras 2022), so every solver works on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseLevel:
    """A point of a path, x = alpha data + sigma noise, and the time that the network gets there."""

    alpha: float
    sigma: float
    time: float

    @property
    def ratio(self) -> float:
        """sigma / alpha: infinity for pure noise, 0 for data."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio of powers (Lu 2022)."""
        return -math.log(self.ratio) if 0 < self.ratio < math.inf else math.copysign(math.inf, 1 - self.ratio)

    @property
    def signal(self) -> float:
        """alpha / (alpha + sigma): 0 for noise, 1 for data; the time of the straight path."""
        return self.alpha / (self.alpha + self.sigma)


CLEAN = NoiseLevel(1.0, 0.0, math.nan)  # the end of every path, where no network is called


class Path(Protocol):
    """Each path has its own unit and direction of time."""

    straight: ClassVar[bool]  # the ODE is straightest in x / (alpha + sigma), rather than in x / alpha

    def at(self, ratio: float) -> NoiseLevel:
        """The level where sigma / alpha is ``ratio``."""
        ...


def expand_dims(t: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], with the number of dimensions of x."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


def noised(path: Straight | Discrete, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) data + sigma(t) noise, for times t [B]."""
    alpha, sigma = scales(path, t, data)
    return alpha * data + sigma * noise


def scales(path: Straight | Discrete, t: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at times t [B], with the dimensions and the type of data."""
    return expand_dims(path.alpha(t), data).to(data.dtype), expand_dims(path.sigma(t), data).to(data.dtype)


# The straight path: data at t = 1, noise at t = 0 (Lipman 2023; Liu 2023) ---------------------------------


@dataclass(frozen=True)
class Straight:
    """alpha = t, sigma = 1 - t."""

    straight: ClassVar[bool] = True

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def at(self, ratio: float) -> NoiseLevel:
        return self.level(1 / (1 + ratio))

    def level(self, t: float) -> NoiseLevel:
        return NoiseLevel(t, 1 - t, t)

    def levels(self, steps: int, shift: float = 1.0) -> list[NoiseLevel]:
        """From noise to data; ``shift`` above 1 spends more of the steps near the noise (Esser 2024, eq. 23)."""
        noise = [1 - i / steps for i in range(steps + 1)]
        return [self.level(max(0.0, 1 - shift * s / (1 + (shift - 1) * s))) for s in noise]


STRAIGHT = Straight()


def velocity(data: Tensor, x_t: Tensor, t: Tensor, sigma_floor: float = 0.0) -> Tensor:
    """v = (data - x_t) / (1 - t), which equals data - noise; 1 - t is raised to at least ``sigma_floor``."""
    return (data - x_t) / (1 - expand_dims(t, x_t)).clamp(min=sigma_floor)


def stratified(n: int, device: torch.device | str = "cpu") -> Tensor:
    """[n] numbers in (0, 1), one at random from each nth part, in random order (after Kingma 2021, app. I.1).

    Each is uniform, and a batch covers the whole range, which reduces the variance of a loss over it.
    """
    part = torch.randperm(n, device=device) + torch.rand(n, device=device)
    return (part / n).clamp(1e-6, 1 - 1e-6)


def normal_from(uniform: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) -> standard normal ones, by the quantile function."""
    return math.sqrt(2) * torch.erfinv(2 * uniform - 1)


def training_times(n: int, mean: float, std: float, uniform: float, device: torch.device | str) -> Tensor:
    """[n] times sigmoid(z), z ~ N(mean, std^2) (Esser 2024, eq. 19), or uniform with probability ``uniform``."""
    numbers = stratified(n, device)
    logit_normal = torch.sigmoid(mean + std * normal_from(numbers))
    return torch.where(torch.rand(n, device=device) < uniform, numbers, logit_normal)


# The exploding path: the data itself with noise on top (Karras 2022) --------------------------------------


@dataclass(frozen=True)
class Exploding:
    """alpha = 1, sigma = t."""

    straight: ClassVar[bool] = False
    sigma_min: float = 0.002  # the smallest sigma of the steps
    sigma_max: float = 80.0  # the largest, in effect pure noise
    rho: float = 7.0  # above 1: more of the steps near the data

    def at(self, ratio: float) -> NoiseLevel:
        return NoiseLevel(1.0, ratio, ratio)

    def levels(self, steps: int) -> list[NoiseLevel]:
        """From noise to data (Karras 2022, eq. 5)."""
        return [*map(self.at, karras(steps, self.sigma_min, self.sigma_max, self.rho)), CLEAN]


def karras(steps: int, low: float, high: float, rho: float = 7.0) -> list[float]:
    """``steps`` numbers from high to low, evenly spaced in their rho-th roots (Karras 2022, eq. 5)."""
    first, last = high ** (1 / rho), low ** (1 / rho)
    return [(first + i / max(steps - 1, 1) * (last - first)) ** rho for i in range(steps)]


# Variance preserving, in a finite number of steps (Ho 2020) -----------------------------------------------

Schedule = Literal["linear", "cosine", "scaled_linear"]
Spacing = Literal["even", "ddim", "quadratic", "snr", "karras"]


def betas(schedule: Schedule, steps: int) -> Tensor:
    """[steps], float64, on the CPU: the fraction of the variance that each step replaces by noise.

    linear: 1e-4 to 0.02 for 1000 steps (Ho 2020); cosine (Nichol 2021, eq. 17); scaled_linear: linear in the
    square root, as latent diffusion's code has it under the name linear, 0.0015 to 0.0195 (Rombach 2022).
    """
    if schedule == "cosine":
        at = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
        alphas_cumprod = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)
    if schedule == "scaled_linear":
        return torch.linspace(0.0015**0.5, 0.0195**0.5, steps, dtype=torch.float64, device="cpu") ** 2
    scale = 1000 / steps
    return torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64, device="cpu")


class Discrete:
    """alpha = sqrt(alphas_cumprod), sigma = sqrt(1 - alphas_cumprod); times are 0, the least noise, to steps - 1."""

    straight: ClassVar[bool] = False

    def __init__(self, betas: Tensor):
        self.betas = betas.double()
        self.alphas_cumprod, self.steps = torch.cumprod(1 - self.betas, 0), len(betas)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Discrete) and torch.equal(self.betas, other.betas)

    def random_times(self, n: int, device: torch.device | str) -> Tensor:
        """[n] training times, stratified over all steps."""
        return (stratified(n, device) * self.steps).long()

    def alpha(self, t: Tensor) -> Tensor:
        """[B] in float64."""
        return self.alphas_cumprod.to(t.device)[t].sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """[B] in float64."""
        return (1 - self.alphas_cumprod.to(t.device)[t]).sqrt()

    def level(self, time: float) -> NoiseLevel:
        """Between two times log alpha is interpolated, outside of them extrapolated (Lu 2022, appendix D)."""
        low = min(max(int(time), 0), self.steps - 2)
        near = self.alphas_cumprod[low : low + 2].log()
        log_alpha = float(0.5 * torch.lerp(near[0], near[1], time - low))
        return NoiseLevel(math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha)), time)

    def at(self, ratio: float) -> NoiseLevel:
        """The inverse of ``level``; past the first or last step, the time is that step's."""
        log_alpha = -0.5 * math.log1p(ratio**2)
        table = 0.5 * self.alphas_cumprod.log()
        high = int(torch.searchsorted(-table, -log_alpha).clamp(1, self.steps - 1))
        first, second = table[high - 1 : high + 1].tolist()
        time = high - 1 + (log_alpha - first) / (second - first)
        alpha, time = math.exp(log_alpha), min(max(time, 0.0), float(self.steps - 1))
        return NoiseLevel(alpha, ratio * alpha, time)

    def levels(self, steps: int, spacing: Spacing = "even") -> list[NoiseLevel]:
        """From noise to data in ``steps`` steps.

        even: from the last time to the first (Nichol 2021); ddim, quadratic: Song 2021, appendix D.2; snr: even in
        log alpha / sigma (Lu 2022); karras: even in the 7th root of sigma / alpha.
        """
        if spacing in ("snr", "karras"):
            low, high = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()[[0, -1]].tolist()
            if spacing == "karras":
                return [*map(self.at, karras(steps, low, high)), CLEAN]
            parts = [i / max(steps - 1, 1) for i in range(steps)]
            return [*(self.at(high ** (1 - s) * low**s) for s in parts), CLEAN]
        steps = min(steps, self.steps)
        times = spaced_times(self.steps, steps, spacing) if steps > 1 else [self.steps - 1]
        return [*(self.level(t) for t in reversed(times)), CLEAN]


def spaced_times(total: int, steps: int, spacing: Spacing) -> list[int]:
    """``steps`` of the times 0 to ``total`` - 1, increasing; quadratic may give fewer.

    even: with both ends (Nichol 2021); ddim: every (total / steps)-th; quadratic (Song 2021, appendix D.2).
    """
    if spacing == "even":
        return sectioned_times(total, [steps])
    if spacing == "quadratic":
        end = math.sqrt(0.8 * total)
        return sorted({int((end * i / max(steps - 1, 1)) ** 2) for i in range(steps)})
    return [i * total // steps for i in range(steps)]


def sectioned_times(total: int, sections: Sequence[int]) -> list[int]:
    """``sections[i]`` times of the i-th equal part of 0 to ``total`` - 1, its ends included (Nichol 2021)."""
    size, extra = divmod(total, len(sections))
    times, start = [], 0
    for i, count in enumerate(sections):
        length = size + (i < extra)
        strides = [(length - 1) / (count - 1)] * (count - 1)
        # A running sum, so that rounding falls as it does in the paper's code.
        times += [start + round(at) for at in accumulate(strides, initial=0.0)]
        start += length
    return times
