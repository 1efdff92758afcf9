"""Limner from Python: what the commands do, as three functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from limner.config import preset_run
from limner.data import open_data
from limner.data.open import named
from limner.fields import checked, from_json, to_json
from limner.inference.pipeline import Pipeline as load
from limner.settings import LimnerError, nearest
from limner.training.run import Result
from limner.training.run import train as train_run

__all__ = ["load", "open_data", "train"]


class TrainSettings(TypedDict, total=False):
    """The keywords of ``train``."""

    preset: str | None  # tiny, small, base or paper; default: small on a CPU, base on a GPU
    budget: str  # 90s, 20m, 1.5h, 200kimg or 50epochs; default: 10m
    size: int | tuple[int, int] | None  # side or (height, width), pixels; default: the preset's or the data's
    seed: int  # default: 0
    resume: bool  # resume from the newest checkpoint in ``out``
    quiet: bool  # print nothing
    model: dict[str, Any]  # fields of the family's Config that differ from the preset's; nested ones as dicts
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
    run = preset_run(checked(str, family, "family"), checked(str | None, settings.get("preset"), "preset"))
    sources, out = tuple(named(sources)), Path(checked(str, out, "out"))
    size = run.size if settings.get("size") is None else settings["size"]
    changed: dict[str, Any] = {
        name: from_json(type(value), _changed(value, settings.get(name, {}), name), name)
        for name, value in (("model", run.model), ("training", run.training), ("data", run.data))
    }
    run = replace(
        run, sources=sources, size=(size, size) if isinstance(size, int) else size,
        budget=settings.get("budget", run.budget), seed=settings.get("seed", run.seed), **changed,
    )  # fmt: skip
    resume, quiet = (checked(bool, settings.get(name, False), name) for name in ("resume", "quiet"))
    return train_run(run, out, resume=resume, quiet=quiet)


def _changed(settings: Any, changes: Any, name: str) -> dict[str, Any]:
    """Settings with changes, as JSON; a dict changes only the fields of a nested dataclass that it names."""
    if not isinstance(changes, Mapping):
        raise LimnerError(f"{name} must be a table of settings, not {changes!r}.")
    entries: dict[str, Any] = to_json(settings)
    for field, change in changes.items():
        own = getattr(settings, str(field), None)
        nested = isinstance(change, dict) and is_dataclass(own) and change.keys() <= entries[field].keys()
        entries[field] = _changed(own, change, f"{name}.{field}") if nested else to_json(change)
    return entries
