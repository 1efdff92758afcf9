"""Small runs with random weights, of any family, and an engine that is stepped by hand."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner import checkpoint, families
from limner.config import Run, write_run
from limner.core import ImageSpec, Model, merge
from limner.inference.pipeline import Pipeline
from limner.serve.engine.models import Served
from limner.serve.engine.scheduler import Scheduler
from limner.serve.messages import Event, Form, Work
from limner.settings import DataOptions

CLASSES = ("cat", "dog", "owl")


def made(family: str, size: int = 16, seed: int = 0, **changes: Any) -> Model:
    """A tiny model whose weights are all random, since those of many last layers begin at 0."""
    kind = families.load(family)
    given = {*kind.given_by[:1]} - {"degraded"}
    spec = ImageSpec(
        3, size, size, 4 if kind.video else 1,
        classes=CLASSES if "label" in kind.reads else (),
        captions="text" in kind.reads and "label" not in kind.reads,
        given=ImageSpec(3, size, size) if given else None,
    )  # fmt: skip
    spec = dataclasses.replace(spec, **changes)
    torch.manual_seed(seed)
    model = families.build(family, kind.presets["tiny"].model, spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return merge(model).eval()


def keep(model: Model, out: Path) -> Path:
    """A run of the model."""
    training = families.load(model.family).presets["tiny"].training
    size = model.spec.height, model.spec.width
    run = Run(model.family, ("digits",), "tiny", size, "1img", 0, model.config, training, DataOptions())
    out.mkdir(parents=True)
    header = checkpoint.make_header(run, model.spec, 7)
    checkpoint.write_model(out / checkpoint.MODEL, model.state_dict(), header)
    write_run(out, run)
    return out


# ---- an engine


class Desk:
    """Served models and a scheduler; events by work, pictures as the tensors that they were encoded from."""

    def __init__(self, *served: Served, clock: Callable[[], float] = time.monotonic, check_every: int = 1000):
        self.events: dict[int, list[Event]] = {}
        self.pictures: dict[tuple[int, int], Tensor] = {}
        self.numbers = itertools.count(1)
        self.scheduler = Scheduler(
            {one.id: one for one in served}, self.take, self.encode, clock=clock, check_every=check_every
        )

    def take(self, event: Event | Callable[[], Event]) -> None:
        event = event() if callable(event) else event
        self.events.setdefault(event.work, []).append(event)

    def encode(self, picture: Tensor, form: Form, spec: ImageSpec) -> bytes:
        assert picture.ndim == len(spec.shape) and picture.dtype == torch.float32
        return picture.numpy().tobytes()

    def ask(self, model: str, *seeds: int, **fields: Any) -> int:
        """Submit a work; its number."""
        image, mask = fields.pop("image", None), fields.pop("mask", None)
        given = {"client": "someone"} | fields
        work = Work(next(self.numbers), model, seeds=seeds, **given)
        self.scheduler.submit(work, image, mask)
        return work.id

    def run(self, steps: int = 100_000) -> None:
        for _ in range(steps):
            if self.scheduler.idle:
                return
            self.scheduler.step()
        assert steps < 100_000, "it never ends"

    def kinds(self, work: int) -> list[str]:
        return [event.kind for event in self.events.get(work, [])]

    def images(self, work: int) -> dict[int, bytes]:
        return {event.index: event.data for event in self.events[work] if event.kind == "image"}

    def failure(self, work: int) -> Event:
        (failed,) = (event for event in self.events[work] if event.kind == "failed")
        assert self.kinds(work)[-1] == "ended"
        return failed


def serve(path: Path, batching: Any = "exact", precision: Any = "float32", **options: Any) -> Served:
    """A run as the engine serves it; its id is the folder's name."""
    one = Served(path.name, Pipeline(path, "cpu"), batching, **({"say": lambda words: None} | options))
    one.measure(precision)
    return one


def smooth(seed: int, side: int = 16, channels: int = 3) -> Tensor:
    """[1, C, H, W] in [-1, 1]"""
    coarse = torch.rand(1, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
