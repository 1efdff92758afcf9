"""Limner from Python: what the commands do, as three functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from limner import config, families
from limner.config import Run, from_json, to_json
from limner.core import DataOptions, LimnerError, nearest
from limner.data import open_data
from limner.inference.pipeline import Pipeline as load
from limner.training.run import Result
from limner.training.run import train as train_run

__all__ = ["load", "open_data", "train"]


class TrainSettings(TypedDict, total=False):
    """The keywords of ``train``."""

    preset: str | None  # tiny, small, base or paper; default: small on a CPU, base on a GPU
    budget: str  # 90s, 20m, 1.5h, 200kimg or 50epochs; default: 10m
    size: (
        int | tuple[int, int] | None
    )  # one side, or (height, width), in pixels; default: the preset's or the data's
    seed: int  # default: 0
    resume: bool  # resume from the newest checkpoint in ``out``
    quiet: bool  # print nothing
    model: dict[str, Any]  # fields of the family's Config that differ from the preset's
    training: dict[str, Any]  # fields of Training that differ from the preset's
    data: dict[str, Any]  # fields of DataOptions


def train(
    family: str,
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    **settings: Unpack[TrainSettings],
) -> Result:
    """Train a family on images into the folder ``out``; ``TrainSettings`` lists the keywords.

    Raises LimnerError for an unknown keyword or setting, and for whatever ``limner train`` refuses.
    """
    known = TrainSettings.__annotations__
    for name in settings.keys() - known:
        raise LimnerError(f"train() has no keyword {name!r}.{nearest(name, known)}")
    preset_name = settings.get("preset") or config.default_preset()
    preset = config.find_preset(families.load(family), preset_name)
    size = settings.get("size") or preset.size
    sources = [sources] if isinstance(sources, (str, Path)) else sources
    run = Run(
        family=family,
        sources=tuple(map(str, sources)),
        preset=preset_name,
        size=(size, size) if isinstance(size, int) else size,
        budget=settings.get("budget", "10m"),
        seed=settings.get("seed", 0),
        model=_changed(preset.model, settings.get("model"), "model"),
        training=_changed(preset.training, settings.get("training"), "training"),
        data=_changed(DataOptions(channels=preset.channels), settings.get("data"), "data"),  # type: ignore[arg-type]
    )
    return train_run(run, out, resume=settings.get("resume", False), quiet=settings.get("quiet", False))


def _changed(settings: Any, changes: dict[str, Any] | None, where: str) -> Any:
    """``settings`` with some fields changed. Raises LimnerError for unknown fields and values of another type."""
    return from_json(type(settings), to_json(settings) | to_json(changes or {}), where)
