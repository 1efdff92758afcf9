"""A request to draw, checked: what is to be drawn, and with which settings."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limner.core import Condition, Draws, Seed
from limner.diffusion.sampling import Drawing
from limner.inference.pipeline import condition_for
from limner.serve.engine.counting import count_evaluations
from limner.serve.engine.knobs import MOST, sampling_for
from limner.serve.engine.models import Served, models_of
from limner.serve.engine.probes import usual_sampling
from limner.serve.messages import Work

COUNTED = 1024  # kinds of requests whose evaluations are kept


class Refused(Exception):
    """A request that cannot be drawn, and the status of HTTP."""

    def __init__(self, message: str, status: int = 400, code: str = "", param: str | None = None):
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param


@dataclass(eq=False)
class Order:
    """A work that was admitted."""

    work: Work
    served: Served
    sampling: Any  # the family's
    condition: Condition  # of one image, on the model's device
    seeds: tuple[Seed, ...]
    evaluations: int  # of the network, for each image
    deadline: float  # on the engine's clock
    others: tuple[Served, ...] = ()  # further models that its settings name

    @property
    def fingerprint(self) -> str:
        return "+".join(one.fingerprint for one in (self.served, *self.others))


@dataclass(eq=False)
class Image:
    """One image of an order."""

    order: Order
    index: int
    age: int  # larger: admitted later
    started: float | None = None  # when its first network call began; None: it waits
    shown: int = 0  # partial images that were sent
    over: bool = False  # it has landed, failed or is not wanted any more

    @property
    def client(self) -> str:
        return self.order.work.client

    @property
    def seed(self) -> Seed:
        return self.order.seeds[self.index]

    def wants_partial(self, done: int, total: int) -> bool:
        """Whether one of its intermediate images is due after ``done`` steps: the first after one step."""
        wanted = self.order.work.partials
        return self.shown < wanted and done < total and done >= 1 + self.shown * (total - 1) / wanted


def take_order(
    work: Work, served: Mapping[str, Served], image: Tensor | None, mask: Tensor | None, now: float
) -> Order:
    """Raises Refused, or LimnerError for settings that do not fit the model."""
    one = served.get(work.model)
    if one is None:
        raise Refused("There is no such model here: see /v1/models.", 404, "model_not_found", "model")
    if work.kind != "draw" or not one.draws:
        raise Refused("This model draws no images: choose one that does.", param="model")
    if not work.seeds:
        raise Refused("Ask for at least one image.", param="n")
    settings = scaled(work, one.model)
    sampling = sampling_for(one.model, settings, models_of(served))
    condition = _condition(work, one, image, mask)
    seeds = _seeds(work, one.model)
    with one.context():
        if one.flies:
            Drawing(one.model, condition, sampling, Draws(seeds[:1], one.device))  # refuses what does not fit
            evaluations = _count(one, condition, sampling, settings)
        else:
            evaluations = max(1, int(getattr(sampling, "steps", 1)))
    named = [getattr(sampling, f.name) for f in dataclasses.fields(sampling) if f.metadata.get("run")]
    others = tuple(other for other in served.values() if any(other.model is model for model in named))
    deadline = now + work.seconds if work.seconds > 0 else math.inf
    return Order(work, one, sampling, condition, seeds, evaluations, deadline, others)


def _count(one: Served, condition: Condition, sampling: Any, settings: Mapping[str, Any]) -> int:
    """As ``count_evaluations``, once for all requests that are alike."""
    given = (condition.image is None, condition.mask is None, condition.label is None, condition.text is None)
    key = json.dumps([settings, given], sort_keys=True)
    if key not in one.counted:
        if len(one.counted) >= COUNTED:
            one.counted.clear()
        one.counted[key] = count_evaluations(one.model, condition, sampling)
    return one.counted[key]


def scaled(work: Work, model: Any) -> dict[str, Any]:
    """The settings of a work, with the steps that its quality asks for, where the family has steps."""
    settings = dict(work.settings)
    names = {f.name for f in dataclasses.fields(model.Sampling)}
    if work.scale_steps != 1 and "steps" in names:
        steps = settings.get("steps", usual_sampling(model).steps)
        if isinstance(steps, int) and not isinstance(steps, bool) and 1 <= steps <= MOST["steps"]:
            settings["steps"] = min(max(1, round(steps * work.scale_steps)), MOST["steps"])
    return settings


def _seeds(work: Work, model: Any) -> tuple[Seed, ...]:
    if work.between is None:
        return work.seeds
    if not getattr(model.Sampling, "interpolates", True):
        raise Refused(
            "This model draws tokens, and nothing lies between those of two seeds.", param="between"
        )
    n = len(work.seeds)
    return tuple((*work.between, i / max(n - 1, 1)) for i in range(n))


def _condition(work: Work, one: Served, image: Tensor | None, mask: Tensor | None) -> Condition:
    model, follows = one.model, one.model.follows
    prompts = [work.prompt] if work.prompt is not None else []
    labels = [work.label] if work.label is not None else []
    condition = condition_for(model, 1, prompts, labels)
    if image is None and "given" in follows:
        raise Refused("This model makes its images from given pictures: send one as image.", param="image")
    if image is not None and not follows & {"image", "given"}:
        raise Refused("This model takes no picture to start from: leave image out.", param="image")
    if mask is not None and (image is None or "mask" not in follows or model.spec.frames > 1):
        raise Refused("This model takes no mask here: leave it out.", param="mask")
    if mask is not None and not mask.any():
        raise Refused("The mask marks nothing to draw anew: make that part transparent.", param="mask")
    if image is not None and model.spec.frames > 1:
        image, mask = _first_frame(image, model.spec.frames)
    return dataclasses.replace(condition, image=image, mask=mask).to(one.device)


def _first_frame(image: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """A picture [1, C, H, W] as the given beginning of a clip [1, C, T, H, W], and its mask [1, 1, T, 1, 1]."""
    if image.ndim == 4:
        image = torch.cat(
            [image[:, :, None], torch.zeros_like(image)[:, :, None].repeat(1, 1, frames - 1, 1, 1)], 2
        )
    drawn = (torch.arange(frames) > 0).float()
    return image, drawn[None, None, :, None, None]
