"""Bridges: paths from a given picture, at time 0, to the wanted one, at time 1, and the solver that follows them.

On a bridge x = alpha wanted + sigma given + noise, so the given picture stands where other paths have noise, and every
solver of an ordinary differential equation in `solvers` draws along it too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from limner.diffusion.paths import CLEAN, STRAIGHT, NoiseLevel, expand_dims
from limner.diffusion.solvers import Problem, Query, Solver


class BridgePath(Protocol):
    """Times are in [0, 1]: 0 is the given picture, 1 the wanted one."""

    @property
    def variance(self) -> float:
        """Of the noise from one end to the other."""

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For times [B]: the weight of the wanted picture, that of the given one, and the noise's deviation."""

    def left(self, t: Tensor) -> Tensor:
        """For times [B]: the share of ``variance`` that lies between here and the wanted picture."""

    def levels(self, steps: int) -> list[NoiseLevel]:
        """From the given picture to the wanted one, one more than ``steps``."""


@dataclass(frozen=True)
class StraightBridge:
    """x = (1 - t) given + t wanted + sigma sqrt(t (1 - t)) noise (Liu 2023, rectified flow; Chadebec 2025, LBM)."""

    sigma: float  # 0: no noise, and one answer for each given picture

    @property
    def variance(self) -> float:
        return self.sigma**2

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return t, 1 - t, self.sigma * (t * (1 - t)).sqrt()

    def left(self, t: Tensor) -> Tensor:
        return 1 - t

    def levels(self, steps: int) -> list[NoiseLevel]:
        return STRAIGHT.levels(steps)


class SchrodingerBridge:
    """The bridge of any schedule of variances (Liu 2023, I2SB, eq. 11); step n is at time 1 - (n + 1) / N.

    ``betas`` [N] are the variances of the steps from the wanted picture to the given one.
    """

    def __init__(self, betas: Tensor):
        self.forward = betas.double().cumsum(0)  # [N], the variance from the wanted picture to each step
        self.backward = betas.double().flip(0).cumsum(0).flip(0)  # [N], from each step to the given picture
        self.variance = float(self.forward[-1])

    @classmethod
    def symmetric(cls, steps: int = 1000, least: float = 1e-4, most: float = 0.3) -> SchrodingerBridge:
        """Liu 2023's schedule, widest in the middle; square roots rise evenly, ``most`` is that of 1000 steps."""
        half = (
            torch.linspace(least**0.5, (most / steps) ** 0.5, steps, dtype=torch.float64, device="cpu") ** 2
        )
        half = half[: steps // 2]
        return cls(torch.cat([half, half.flip(0)]))

    def step(self, t: Tensor) -> Tensor:
        """[B] times -> the nearest steps."""
        n = len(self.forward)
        return ((1 - t) * n - 1).round().long().clamp(0, n - 1)

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = self.step(t)
        before, after = (v.to(t.device)[n] for v in (self.forward, self.backward))
        total = before + after
        return after / total, before / total, (before * after / total).sqrt()

    def left(self, t: Tensor) -> Tensor:
        return self.forward.to(t.device)[self.step(t)] / self.variance

    def level(self, n: int) -> NoiseLevel:
        before, after = float(self.forward[n]), float(self.backward[n])
        total = before + after
        return NoiseLevel(after / total, before / total, 1 - (n + 1) / len(self.forward))

    def levels(self, steps: int) -> list[NoiseLevel]:
        last = len(self.forward) - 1
        spaced = {round(last * (1 - i / steps)) for i in range(steps)}
        return [*map(self.level, sorted(spaced, reverse=True)), CLEAN]


def bridge_point(bridge: BridgePath, wanted: Tensor, given: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x at times t [B], for pictures [B, ...]."""
    a, b, std = (expand_dims(w, wanted).to(wanted.dtype) for w in bridge.weights(t))
    return a * wanted + b * given + std * noise


def brownian(problem: Problem, bridge: BridgePath, eta: float = 1.0) -> Solver:
    """Each step draws from the bridge between x and the guess of the wanted picture (Liu 2023, I2SB, eq. 4).

    ``eta`` scales the noise; without any, a step goes to the mean, which on the straight bridge is Euler's.
    """
    x = problem.x
    for done, now, then in problem.steps():
        data = (yield Query(x, now, done)).data
        left, after = _left(bridge, now), _left(bridge, then)
        x = torch.lerp(data, x, after / left)
        if std := eta * math.sqrt(bridge.variance * after * (1 - after / left)):
            x = x + std * problem.draw_noise()
    return x


def _left(bridge: BridgePath, level: NoiseLevel) -> float:
    """`Bridge.left` at a level; 0 at the wanted picture."""
    return float(bridge.left(torch.tensor([level.time], dtype=torch.float64))) if level.sigma else 0.0
