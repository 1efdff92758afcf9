"""Data that is one Gaussian, whose denoiser is known exactly."""

from collections.abc import Iterator

import torch
from torch import Tensor

from limner.core import Canvas, Condition, ConditionEmbedding, Denoised, Draws, ImageSpec
from limner.diffusion.paths import NoiseLevel, Path
from limner.diffusion.sampling import Plan, SamplingConfig, draw

MEAN, SPREAD = 0.3, 0.5


def denoise(x: Tensor, level: NoiseLevel) -> Tensor:
    """E[data | x] for data ~ N(MEAN, SPREAD^2)."""
    a, s = level.alpha, level.sigma
    return (SPREAD**2 * a * x + s**2 * MEAN) / (a**2 * SPREAD**2 + s**2)


class Gaussian:
    """In a family's place: it knows the answer, less ``gap`` without a label."""

    spec, follows = ImageSpec(1, 6, 6, classes=("a",)), frozenset({"label"})

    def __init__(self, path: Path, gap: float = 0.0, **plan):
        self.path, self.gap, self.options, self.calls = path, gap, plan, []

    def embed(self, condition: Condition) -> ConditionEmbedding:
        none = torch.full((condition.size,), -1)
        return ConditionEmbedding(label=none if condition.label is None else condition.label)

    def denoise(self, x, time, alpha, sigma, rows) -> Denoised:
        self.calls.append((rows.label.tolist(), (alpha / (alpha + sigma)).flatten().tolist()))
        data = (SPREAD**2 * alpha * x + sigma**2 * MEAN) / (alpha**2 * SPREAD**2 + sigma**2)
        return Denoised(data - self.gap * (rows.label < 0).view(-1, 1, 1, 1))

    def plan(self, sampling: SamplingConfig) -> Plan:
        return Plan(self.path, self.path.levels(sampling.steps), (1, 6, 6), **self.options)

    def sample(self, condition: Condition, config: SamplingConfig, draws: Draws) -> Iterator[Canvas]:
        return draw(self, condition, config, draws)
