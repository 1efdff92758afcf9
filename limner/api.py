"""Limner from Python: what the commands do, as three functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limner import config, families
from limner.config import Run
from limner.core import DataOptions, LimnerError, nearest
from limner.data import open_data
from limner.inference.pipeline import Pipeline as load
from limner.training.run import Result
from limner.training.run import train as _train

__all__ = ["load", "open_data", "train"]


def train(
    family: str,
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    preset: str | None = None,
    budget: str = "10m",
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
    resume: bool = False,
    quiet: bool = False,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> Result:
    """Train a family on images; ``model``, ``training`` and ``data`` change fields of the preset's settings.

    ``size`` is (height, width) or one side, in pixels. Raises LimnerError for what the person can mend.
    """
    name = preset or config.default_preset()
    chosen = config.find_preset(families.load(family), name)
    several = [sources] if isinstance(sources, (str, Path)) else sources
    run = Run(
        family=family,
        sources=tuple(str(s) for s in several),
        preset=name,
        size=(size, size) if isinstance(size, int) else size or chosen.size,
        budget=budget,
        seed=seed,
        model=_change(chosen.model, model, "model"),
        training=_change(chosen.training, training, "training"),
        data=_change(DataOptions(channels=chosen.channels), data, "data"),  # type: ignore[arg-type]
    )
    return _train(run, out, resume=resume, quiet=quiet)


def _change(settings: Any, changes: dict[str, Any] | None, where: str) -> Any:
    known = {f.name for f in dataclasses.fields(settings)}
    for name in (changes or {}).keys() - known:
        raise LimnerError(f"{where}.{name} is not a setting.{nearest(name, known)}")
    return dataclasses.replace(settings, **(changes or {}))
