"""Rows to try a model by before anybody asks: calls of its network, or whole drawings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limner.core import Canvas, Condition, Draws, FitsModel, Model
from limner.diffusion.sampling import Call, Diffusion
from limner.serve.engine.rows import together

TEXT = "a red square"


def usual_sampling(model: Model) -> Any:
    """The family's settings of sampling, as this model uses them."""
    sampling: Any = model.Sampling()
    return sampling.fit(model) if isinstance(sampling, FitsModel) else sampling


def condition_of(model: Model, number: int, text: str = TEXT) -> Condition:
    """What one image may be asked to show: a label or a text, and a given picture where one is needed."""
    spec, follows = model.spec, model.follows
    image = None
    if "given" in follows:
        given = spec.given or spec
        image = torch.rand(1, *given.shape, generator=torch.Generator().manual_seed(number)) * 2 - 1
    return Condition(
        1,
        label=torch.tensor([number % len(spec.classes)]) if "label" in follows else None,
        text=[text] if "text" in follows else None,
        image=image,
    ).to(model.device)


class NetworkProbe:
    """Calls of one row each, of a model that denoises: all of its levels, with a condition and without."""

    def __init__(self, model: Any, pool: int, text: str = TEXT):
        plan = model.plan(usual_sampling(model))
        levels = list(plan.levels)[:-1]
        conditions = [condition_of(model, 0, text), Condition(1), condition_of(model, 1, text)]
        rows = [model.embed(condition) for condition in conditions]
        self.calls: list[Call] = []
        diffusion: Diffusion = model
        for number in range(pool):
            level = levels[number * 5 % len(levels)]
            noise = Draws([number], model.device).normal(*plan.shape)
            data = Draws([-1 - number], model.device).uniform(*plan.shape) * 2 - 1
            x = level.sigma * noise + level.alpha * data
            self.calls.append(Call(diffusion, x, level, rows[number % 3]))

    def run(self, numbers: Sequence[int]) -> list[tuple[Tensor | None, ...]]:
        return [tuple(guess) for guess in together([self.calls[number] for number in numbers])]


class DrawingProbe:
    """Images of the seeds 0, 1, ..., as a model draws them by itself."""

    def __init__(self, model: Any):
        self.model, self.sampling = model, usual_sampling(model)

    def run(self, numbers: Sequence[int]) -> list[tuple[Tensor | None, ...]]:
        condition = Condition.cat([condition_of(self.model, number) for number in numbers])
        draws = Draws(numbers, self.model.device)
        last: Canvas | None = None
        for last in self.model.sample(condition, self.sampling, draws):  # noqa: B007
            pass
        assert last is not None, "a sampler yields at least its result"
        return [(image,) for image in last.picture().contiguous().split(1)]
