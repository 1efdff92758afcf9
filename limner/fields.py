"""Fields of settings: their types, to JSON and back, and the error of a setting that a person can fix. No torch."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import math
import numbers
import os
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

T = TypeVar("T")


class LimnerError(Exception):
    """A mistake that the person can fix: one sentence with what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """

    # Of several processes that raise it: whether this one prints it; None: unknown.
    speaks: bool | None = None


def nearest(word: str, known: Iterable[str], n: int = 3, alike: float = 0.5) -> str:
    """A hint such as ' Did you mean flow or vae?', or '' when nothing is at least so much alike."""
    matches = difflib.get_close_matches(word.lower(), list(known), n=n, cutoff=alike)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def join_words(words: Sequence[str], conjunction: str = "or") -> str:
    """'a, b or c'"""
    return f" {conjunction} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


# ---- bounds


LARGEST = 2**20  # of a count whose annotation has no bounds, such as a width or a number of steps


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The numbers that a field may hold: Annotated[float, Bounds(0, 1)]. Of a list, each of its numbers."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False  # ``least`` itself is too low
    below: bool = False  # ``most`` itself is too high

    def holds(self, number: float) -> bool:
        low = self.least < number if self.above else self.least <= number
        return low and (number < self.most if self.below else number <= self.most) and math.isfinite(number)

    def advice(self, number: float) -> str:
        """What to choose instead of ``number``: the end that it passes of a wide range, both ends of a narrow one."""
        low, high = ("above " if self.above else "") + f"{self.least:.15g}", f"{self.most:.15g}"
        if self.most >= LARGEST and math.isfinite(number) and number > self.most:
            return f"{high} or less"
        if self.most >= LARGEST:
            return "a finite number" if self.least == -math.inf else low if self.above else f"{low} or more"
        high = f"below {high}" if self.below else high
        return f"{low}, up to {high}" if self.above else f"{low} to {high}"


Share = Annotated[float, Bounds(0, 1)]
ShareBelow1 = Annotated[float, Bounds(0, 1, below=True)]
PositiveShare = Annotated[float, Bounds(0, 1, above=True)]
Truncation = Annotated[float, Bounds(0, 100)]  # a factor on a latent or a style
Positive = Annotated[float, Bounds(0, above=True)]
Count = Annotated[int, Bounds(1, 10**9)]  # of images to read or to draw
Images = Annotated[int, Bounds(0, 2**53)]  # a number of images, which may be large
Seed = Annotated[int, Bounds(0, 2**63 - 1)]  # a whole number that a random generator takes


_PLAIN = bool, int, float, str, bytes, list, tuple, dict, os.PathLike  # what no loaded run or picture is


class Checked:
    """Base of the frozen dataclasses of settings, which are checked when they are made, by whoever makes them.

    Raises LimnerError for a value of another type than its field's, and for a number out of its bounds (see
    ``check``). Python's own kinds of numbers and paths are taken for those of JSON.
    """

    flags: ClassVar[str] = "--"  # what the flags of these fields begin with

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            named = {"run", "picture"} & set(f.metadata)  # it may hold what it names, once that is loaded
            if not named or value is None or isinstance(value, _PLAIN):
                kind = hints[f.name] if value is None else _without_none(hints[f.name])
                value = _read(kind, value, self.flags + f.name.replace("_", "-"))
                object.__setattr__(self, f.name, value)
        check(self, self.flags)


def checked(kind: Any, value: Any, name: str) -> Any:
    """A single value of an annotated type, such as `Count`. Raises LimnerError for another, or one out of bounds."""
    value, bounds = _read(kind, value, name), _bounds(kind) or Bounds()
    _check_numbers(value, bounds, name)
    return value


def _check_numbers(value: Any, bounds: Bounds, name: str) -> None:
    """Raises LimnerError if the number that a field holds, or one of its list, is out of bounds."""
    for entry in value if isinstance(value, tuple) else (value,):
        if _is_number(entry) and not bounds.holds(entry):
            raise LimnerError(f"{name} {entry} is out of range: choose {bounds.advice(entry)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check(settings: Any, flags: str) -> None:
    """Raises LimnerError for a number that is out of bounds, in a dataclass or in a dataclass within it.

    The bounds are those in the annotation of a field. Without them, whole numbers are at least 1, or at least 0
    where that is the default or the field is in ``settings.may_be_zero``, which also says which lists may be empty;
    floats are finite, and negative only where the default is or the field is in ``settings.may_be_negative``.
    ``flags`` is what the flags of its fields begin with.
    """
    hints = _hints(type(settings))
    for f in dataclasses.fields(settings):
        value, name = getattr(settings, f.name), flags + f.name.replace("_", "-")
        if dataclasses.is_dataclass(value) and not isinstance(value, Checked):
            check(value, f"{name}.")
            continue
        if "by_images" in f.metadata and value == f.default:
            continue
        bounds = _bounds(hints[f.name]) or _usual_bounds(settings, f, value)
        if value == () and bounds.least > 0 and typing.get_args(hints[f.name])[:1] == (int,):
            raise LimnerError(f"{name} is empty: name at least one number.")
        _check_numbers(value, bounds, name)


def bounds_of(cls: type, name: str) -> Bounds:
    """The numbers that a field of a dataclass of settings may hold, as ``check`` has them."""
    f = next(f for f in dataclasses.fields(cls) if f.name == name)
    kind = _without_none(_hints(cls)[name])
    return _bounds(kind) or _usual_bounds(cls, f, 0.0 if float in (kind, *typing.get_args(kind)) else 0)


def type_of(cls: type, name: str) -> Any:
    """The type of a field of a dataclass, without None and without what an annotation adds to it."""
    return _plain(_without_none(_hints(cls)[name]))


def _usual_bounds(settings: Any, f: dataclasses.Field[Any], value: Any) -> Bounds:
    """The bounds of a field whose annotation has none."""
    default = f.default if isinstance(f.default, (int, float)) else 0
    if any(isinstance(entry, float) for entry in (value if isinstance(value, tuple) else (value,))):
        negative = f.name in getattr(settings, "may_be_negative", ()) or default < 0
        return Bounds() if negative else Bounds(0)
    empty = f.default in (0, ()) and "by_images" not in f.metadata
    optional = empty or f.name in getattr(settings, "may_be_zero", ())
    return Bounds(0 if optional else 1, max(LARGEST, default))


def _bounds(kind: Any) -> Bounds | None:
    """The first bounds in an annotation, at any depth."""
    for part in typing.get_args(kind):
        if isinstance(part, Bounds):
            return part
        if found := _bounds(part):
            return found
    return None


def _hints(cls: type) -> dict[str, Any]:
    """The annotations of a class, evaluated once."""
    if cls not in _EVALUATED:
        _EVALUATED[cls] = typing.get_type_hints(cls, include_extras=True)
    return _EVALUATED[cls]


_EVALUATED: dict[type, dict[str, Any]] = {}


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
    if kind is Any or isinstance(kind, TypeVar):
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
    if origin is collections.abc.Sequence and isinstance(data, (list, tuple)):
        return tuple(_read(inner[0], value, f"{where}[{i}]") for i, value in enumerate(data))
    if origin is list and isinstance(data, list):
        return [_read(inner[0], value, f"{where}[{i}]") for i, value in enumerate(data)]
    if origin is dict and isinstance(data, dict):
        return {key: _read(inner[1], value, f"{where}.{key}") for key, value in data.items()}
    if kind in (bool, int, float, str, type(None)) and type(data) is kind:
        return data
    if isinstance(data, numbers.Real) and not isinstance(data, bool):  # Python's and NumPy's
        if kind is float:
            return float(data)
        if kind is int and isinstance(data, numbers.Integral):
            return int(data)
    if kind is str and isinstance(data, os.PathLike):
        return os.fspath(data)
    raise LimnerError(f"{where} must be {_name(kind)}, not {data!r}.")


def _read_dataclass(cls: Any, data: Any, where: str) -> Any:
    if isinstance(data, cls):
        return data
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
    hints = _hints(cls)
    return cls(**{key: _read(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _read_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    # A value's own type goes first, so that 1 stays an int under float | int.
    for kind in sorted(kinds, key=lambda kind: _plain(kind) is not type(data)):
        try:
            return _read(kind, data, where)
        except LimnerError:
            continue
    tables = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if isinstance(data, dict) and len(tables) == 1:
        return _read(tables[0], data, where)  # the error within says more than "must be A or B"
    raise LimnerError(f"{where} must be {' or '.join(map(_name, kinds))}, not {data!r}.")


def _without_none(kind: Any) -> Any:
    """``T | None`` -> ``T``: a person leaves a flag out rather than say null."""
    if typing.get_origin(kind) not in (Union, types.UnionType):
        return kind
    return Union[tuple(part for part in typing.get_args(kind) if part is not type(None))]  # noqa: UP007


def _plain(kind: Any) -> Any:
    """A type without what an annotation adds to it."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _name(kind: Any) -> str:
    """A type, named for someone who does not read Python."""
    kind = _plain(kind)
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


def differing(before: Any, now: Any, flag: str) -> Iterator[tuple[str, Any, Any]]:
    """The settings that differ, at any depth: flag of the command line, value before, value now."""
    if dataclasses.is_dataclass(before) and type(before) is type(now):
        for f in dataclasses.fields(before):
            name = f"{flag}.{f.name.replace('_', '-')}"
            yield from differing(getattr(before, f.name), getattr(now, f.name), name)
    elif before != now:
        yield flag, before, now
