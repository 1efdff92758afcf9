"""Small runs with random weights, of any family, and an engine that is stepped by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from limner import checkpoint, families
from limner.config import Run, write_run
from limner.core import Condition, ImageSpec, Model
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
    return model.eval()


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
