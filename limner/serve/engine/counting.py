"""How many evaluations of a network an image takes, counted by its own solver on a picture of one pixel."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from limner.core import Condition, ConditionEmbedding, Denoised, Draws
from limner.diffusion.sampling import Drawing, Plan


class _Pixel:
    """A model that denoises a single pixel along the path of another, and has no network."""

    def __init__(self, model: Any):
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def embed(self, condition: Condition) -> ConditionEmbedding:
        return ConditionEmbedding()

    def plan(self, sampling: Any) -> Plan:
        plan: Plan = self.model.plan(sampling)
        shape = (1,) * len(plan.shape)
        return dataclasses.replace(
            plan, shape=shape, encode=lambda x: x, same_space=lambda other: True, cell=1
        )


def count_evaluations(model: Any, condition: Condition, sampling: Any) -> int:
    """Of one image of this condition: every row of every network call, also those that guide.

    Raises LimnerError for settings that do not fit the model, as drawing does.
    """
    runs = {
        f.name: _Pixel(getattr(sampling, f.name))
        for f in dataclasses.fields(sampling)
        if f.metadata.get("run") and getattr(sampling, f.name)
    }
    pixel = torch.ones(1, 1, 1, 1)
    asked = dataclasses.replace(
        condition,
        image=None if condition.image is None else pixel,
        mask=None if condition.mask is None else pixel,
    )
    drawing = Drawing(_Pixel(model), asked, dataclasses.replace(sampling, **runs), Draws([0]))  # type: ignore[arg-type]
    query, evaluations = next(drawing.solver), 0
    while True:
        evaluations += len(drawing.calls(query.x, query.level))
        try:
            query = drawing.solver.send(Denoised(torch.zeros_like(query.x)))
        except StopIteration:
            return evaluations
