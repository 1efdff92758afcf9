"""Settings as plain dataclasses, to JSON and back; runs, budgets, sizes, presets. No torch until a family is named."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union

from limner import families, files
from limner.families import _format1, _format2
from limner.settings import DataOptions, LimnerError, Training, nearest

if typing.TYPE_CHECKING:
    from limner.core import Model, Preset

T = TypeVar("T")

# ---- JSON


def to_json(value: Any) -> Any:
    """Nested dataclasses, tuples and dicts as what JSON can hold; ``from_json`` gives them back."""
    if isinstance(value, JsonResult):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


class JsonResult:
    """Base of the frozen dataclasses that commands return.

    In its JSON, a field whose default is None is absent while it is None, and a field with the metadata
    ``INLINE`` is replaced by its own fields.
    """

    def to_json(self) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                name = f.name.removesuffix("_")  # class_, since class is a keyword
                entries |= to_json(value) if f.metadata.get("inline") else {name: to_json(value)}
        return entries


INLINE = {"inline": True}


def from_json(cls: type[T], data: Any, where: str = "model") -> T:
    """Build the dataclass ``cls`` from JSON; ``where`` is the dotted path that errors begin with.

    Strict: an unknown key or a value of another type is a LimnerError. Keys left out take their defaults.
    """
    return _read(cls, data, where)


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin is Annotated:
        return _read(inner[0], data, where)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    if origin in (Union, types.UnionType):
        return _read_union(inner, data, where)
    if origin is Literal:
        if any(data == choice and type(data) is type(choice) for choice in inner):
            return data
        hint = nearest(data, [c for c in inner if isinstance(c, str)]) if isinstance(data, str) else ""
        raise LimnerError(f"{where} must be {_name(kind)}, not {data!r}.{hint}")
    if origin is tuple and isinstance(data, (list, tuple)):
        kinds = inner[:1] * len(data) if inner[1:] == (...,) else inner
        if len(kinds) == len(data):
            return tuple(_read(kinds[i], value, f"{where}[{i}]") for i, value in enumerate(data))
    if origin is list and isinstance(data, list):
        return [_read(inner[0], value, f"{where}[{i}]") for i, value in enumerate(data)]
    if origin is dict and isinstance(data, dict):
        return {key: _read(inner[1], value, f"{where}.{key}") for key, value in data.items()}
    if kind is float and type(data) is int:
        return float(data)
    if kind in (bool, int, float, str, type(None)) and type(data) is kind:
        return data
    raise LimnerError(f"{where} must be {_name(kind)}, not {data!r}.")


def _read_dataclass(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise LimnerError(f"{where} must be a table of settings, not {data!r}.")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in data:
        if key not in fields:
            hint = nearest(str(key), fields) or f" There are {', '.join(fields)}."
            raise LimnerError(f"{where}.{key} is not a setting.{hint}")
    for name, f in fields.items():
        if name not in data and f.default is f.default_factory is dataclasses.MISSING:
            raise LimnerError(f"{where}.{name} is missing.")
    hints = typing.get_type_hints(cls, include_extras=True)
    return cls(**{key: _read(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _read_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    # A value's own type goes first, so that 1 stays an int under float | int.
    for kind in sorted(kinds, key=lambda kind: kind is not type(data)):
        try:
            return _read(kind, data, where)
        except LimnerError:
            continue
    tables = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if isinstance(data, dict) and len(tables) == 1:
        return _read(tables[0], data, where)  # the error within says more than "must be A or B"
    raise LimnerError(f"{where} must be {' or '.join(map(_name, kinds))}, not {data!r}.")


def _name(kind: Any) -> str:
    """A type, named for someone who does not read Python."""
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    inner = typing.get_args(kind)
    if kind in plain:
        return plain[kind]
    if typing.get_origin(kind) is Literal:
        return " or ".join("null" if choice is None else str(choice) for choice in inner)
    if typing.get_origin(kind) is tuple and inner[1:] != (...,):
        return f"a list of {len(inner)} values"
    if typing.get_origin(kind) in (tuple, list):
        return f"a list, each entry {_name(inner[0])}"
    return "a table of settings"


# ---- one training


@dataclass(frozen=True)
class Run:
    """All settings of one training, enough to repeat it. ``config.json`` and every checkpoint hold it."""

    family: str
    sources: tuple[str, ...]
    preset: str
    size: tuple[int, int] | None  # (height, width); None: as the data has it
    budget: str
    seed: int
    model: Any  # the family's Config
    training: Training
    data: DataOptions

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, data: Any) -> Run:
        run = from_json(cls, data, "run")
        return dataclasses.replace(run, model=from_json(families.load(run.family).Config, run.model))


class Migration(NamedTuple):
    """How files of one format become files of the next."""

    run: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]  # (run, spec) as JSON -> run
    weight: Callable[[str, str], str]  # (family, name of a weight) -> name


FORMAT = 3  # of config.json and of the header of every model file
MIGRATIONS = {
    1: Migration(_format1.settings, _format1.weight),
    2: Migration(_format2.settings, _format2.weight),
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
