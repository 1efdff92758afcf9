"""Fields of settings: their types, to JSON and back, and the error of a setting that a person can fix. No torch."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union

T = TypeVar("T")


class LimnerError(Exception):
    """A mistake that the person can fix: one sentence with what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


def nearest(word: str, known: Iterable[str], n: int = 3) -> str:
    """A hint such as ' Did you mean flow or vae?', or '' when nothing is near."""
    matches = difflib.get_close_matches(word.lower(), list(known), n=n, cutoff=0.5)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def join_words(words: Sequence[str], conjunction: str = "or") -> str:
    """'a, b or c'"""
    return f" {conjunction} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


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
