"""Runs, budgets, sizes and presets. No torch until a family is named."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from limner import families, files
from limner.families import _format1, _format2, _format3, _format4, _format5
from limner.fields import Checked, Seed, from_json, nearest, to_json
from limner.settings import DataOptions, LimnerError, Training

if typing.TYPE_CHECKING:
    from limner.core import Model, Preset


@dataclass(frozen=True)
class Run(Checked):
    """All settings of one training, enough to repeat it. ``config.json`` and every checkpoint hold it."""

    family: str
    sources: tuple[str, ...]
    preset: str
    size: tuple[int, int] | None  # (height, width); None: as the data has it
    budget: str
    seed: Seed
    model: Any  # the family's Config
    training: Training
    data: DataOptions

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, data: Any) -> Run:
        run = from_json(cls, _without_gone(data), "run")
        return dataclasses.replace(run, model=from_json(families.load(run.family).Config, run.model))


class Migration(NamedTuple):
    """How files of one format become files of the next."""

    run: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]  # (run, spec) as JSON -> run
    weight: Callable[[str, str], str]  # (family, name of a weight) -> name


FORMAT = 6  # of config.json and of the header of every model file
MIGRATIONS = {
    1: Migration(_format1.settings, _format1.weight),
    2: Migration(_format2.settings, _format2.weight),
    3: Migration(_format3.settings, _format3.weight),
    4: Migration(_format4.settings, _format4.weight),
    5: Migration(_format5.settings, _format5.weight),
}


GONE = {"training": ("processes",)}  # settings that files of formats up to 4 may hold, without effect since


def _without_gone(run: Any) -> Any:
    """A run's JSON without the settings that are gone."""
    if not isinstance(run, dict):
        return run
    return {
        key: {name: kept for name, kept in value.items() if name not in GONE.get(key, ())}
        if isinstance(value, dict)
        else value
        for key, value in run.items()
    }


def migrate_run(run: Mapping[str, Any], spec: Mapping[str, Any], version: int) -> dict[str, Any]:
    """A run's JSON of format ``version``, in today's format; ``spec`` is that of its images."""
    for number in range(version, FORMAT):
        run = MIGRATIONS[number].run(run, spec)
    return dict(run)


def write_run(folder: str | Path, run: Run) -> None:
    """Write a run's ``config.json``, atomically."""
    files.write_json(Path(folder) / "config.json", {"format": FORMAT, **run.to_json()})


def read_run(folder: str | Path) -> Run:
    """The ``config.json`` of a run's folder, of this format or an earlier one. Raises LimnerError."""
    path = Path(folder) / "config.json"
    try:
        saved = files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise LimnerError(f"{folder} holds no run: there is no {path}.") from None
    version = saved.pop("format", 1)
    if type(version) is not int or version not in range(1, FORMAT + 1):
        raise LimnerError(
            f"{path} has the format {version!r}, which this version of Limner cannot read: update it."
        )
    if version in MIGRATIONS:
        try:
            saved = migrate_run(saved, _spec_of(Path(folder), saved.get("size")), version)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LimnerError(f"{path} has settings that format {version} cannot have ({error}).") from None
    try:
        return Run.from_json(saved)
    except LimnerError as error:
        raise LimnerError(f"{path} does not hold the settings of a run: {error}") from None


def _spec_of(folder: Path, size: Any) -> dict[str, Any]:
    """The spec of a run's images, as JSON: from a model file of it or a parent; else from its size; else 32 x 32."""
    for path in sorted(folder.rglob("model.safetensors"), key=lambda path: len(path.parts)):
        with contextlib.suppress(OSError, LimnerError, ValueError, KeyError, TypeError):
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = files.parse_json(file.read(min(length, path.stat().st_size)), path)
            return dict(files.parse_json(header["__metadata__"]["limner"], path)["spec"])
    height, width = size if isinstance(size, list) and len(size) == 2 else (32, 32)
    return {"height": height, "width": width}


class Budget(NamedTuple):
    """A length of training."""

    amount: float
    unit: Literal["seconds", "images"]

    def spent(self, seconds: float, images: int) -> float:
        """The share of the budget that is spent: 1 or more if it is all spent."""
        return (seconds if self.unit == "seconds" else images) / self.amount


def parse_budget(text: str, epoch: int) -> Budget:
    """'90s', '4m', '1.5h', '5000img', '200kimg' or '50epochs', of ``epoch`` images each. Raises LimnerError."""
    scales = {"s": 1, "m": 60, "h": 3600, "img": 1, "kimg": 1000, "epoch": epoch, "epochs": epoch}
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-z]+)", text.strip().lower())
    amount = float(match[1]) * scales.get(match[2], 0) if match else 0
    if not match or not 0 < amount < float("inf"):
        raise LimnerError(f"{text!r} is not a valid budget: use 90s, 4m, 200kimg or 50epochs.")
    return Budget(amount, "seconds" if match[2] in ("s", "m", "h") else "images")


def budget_of(seconds: float) -> str:
    """A budget of at least so many seconds, rounded up to two digits: 0.1s, 41s, 15m, 2.5h."""
    unit, size = next(
        (u, size) for u, size in (("h", 3600), ("m", 60), ("s", 1)) if seconds >= 2 * size or size == 1
    )
    step = 10 ** max(math.floor(math.log10(max(seconds / size, 0.1))) - 1, -1)
    return f"{math.ceil(seconds / size / step) * step:g}{unit}"


def parse_size(text: str) -> tuple[int, int]:
    """'32' or '64x48' (height x width) -> (height, width) in pixels. Raises LimnerError."""
    match = re.fullmatch(r"([1-9]\d{0,4})(?:\s*[x×]\s*([1-9]\d{0,4}))?", text.strip().lower())
    if not match:
        raise LimnerError(
            f"{text!r} is not a valid image size: use 32 for one side, or HEIGHTxWIDTH, as in 64x48."
        )
    return int(match[1]), int(match[2] or match[1])


def find_preset(family: type[Model], name: str) -> Preset:
    """A family's preset by its name. Raises LimnerError."""
    if name not in family.presets:
        hint = nearest(name, family.presets) or f" There are {', '.join(family.presets)}."
        raise LimnerError(f"{family.family} has no preset {name!r}.{hint}")
    return family.presets[name]


def preset_run(family: str, name: str | None = None) -> Run:
    """A run of a family with the settings of a preset: by default 'small' on a CPU, 'base' on a GPU."""
    if not name:
        import torch

        name = "base" if torch.cuda.is_available() else "small"
    preset = find_preset(families.load(family), name)
    data = from_json(DataOptions, {"channels": preset.channels}, "data")
    return Run(family, (), name, preset.size, "10m", 0, preset.model, preset.training, data)
