"""Values of requests: what a field may hold, how it is read from JSON or from the text of a form, and its schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from limner.fields import join_words, nearest
from limner.serve.http.errors import ApiError

Type = Literal["integer", "number", "string", "boolean", "list", "object"]

NAMES = {
    "integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false", "list": "a list",
    "object": "an object",
}  # fmt: skip
LARGEST = 2**63 - 1  # of a whole number without a bound
INTEGER = re.compile(r"[+-]?[0-9]{1,40}", re.ASCII)
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", re.ASCII)
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\[\]-]{0,63}", re.ASCII)  # what may be repeated in a message


def bad(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """400 for one field."""
    return ApiError(400, message, code, param)


def told(name: str) -> str:
    """A name as a message may repeat it: neither long nor a path."""
    return name if PLAIN.fullmatch(name) else "That"


def shown(name: str) -> str | None:
    """Likewise as ``param``; None: it is left out."""
    return name if PLAIN.fullmatch(name) else None


def unsupported(message: str, param: str) -> ApiError:
    return bad(message, shown(param), "unsupported_parameter")


@dataclass(frozen=True)
class Field:
    """What a person may set in a request. Bounds of a list are those of its entries."""

    name: str
    type: Type = "string"
    help: str = ""
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()  # choices of the API that no model here has
    least: float | None = None
    most: float | None = None
    above: bool = False  # ``least`` itself is too low
    below: bool = False
    longest: int = 256  # characters of a text
    entries: Type = "string"  # of a list
    count: tuple[int, int] = (1, 64)  # entries of a list, from and to

    def read(self, value: Any, text: bool = False) -> Any:
        """The value, checked; None where it is null. ``text``: it comes from a form. Raises ApiError 400."""
        if value is None or (text and value == "" and not self.required):
            if self.required:
                raise bad(f"{self.name} is null: give {NAMES[self.type]}.", self.name, "invalid_type")
            return None
        if self.type != "list":
            return self._one(value, self.type, text)
        if not isinstance(value, list):
            raise self._wrong_type(self.type)
        least, most = self.count
        if not least <= len(value) <= most:
            many = f"{least}" if least == most else f"{least} to {most}"
            raise bad(f"{self.name} must have {many} entries, not {len(value)}.", self.name)
        return [self._one(entry, self.entries, text) for entry in value]

    def _one(self, value: Any, kind: Type, text: bool) -> Any:
        if text and kind != "string":
            value = self._from_text(value, kind)
        if kind == "string":
            return self._text(value)
        if kind == "boolean":
            if not isinstance(value, bool):
                raise self._wrong_type(kind)
            return value
        if isinstance(value, bool) or not isinstance(value, int if kind == "integer" else (int, float)):
            raise self._wrong_type(kind)
        if self.choices and str(value) not in self.choices:
            raise bad(f"{self.name} must be {join_words(self.choices)}.", self.name)
        self._check_range(value)
        return float(value) if kind == "number" else value

    def _from_text(self, value: Any, kind: Type) -> Any:
        value = value.strip() if isinstance(value, str) and len(value) <= 64 else ""
        if kind == "boolean" and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if kind in ("integer", "number") and INTEGER.fullmatch(value):
            return int(value)
        if kind == "number" and NUMBER.fullmatch(value):
            return float(value)
        raise self._wrong_type(kind)

    def _text(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self._wrong_type("string")
        if len(value) > self.longest:
            raise bad(
                f"{self.name} is too long: give at most {self.longest:,} characters.", self.name,
                "string_above_max_length",
            )  # fmt: skip
        if not is_unicode(value):
            raise bad(f"{self.name} holds half of a surrogate pair: give valid Unicode.", self.name)
        if value in self.refused:
            offered = join_words(self.choices)
            raise unsupported(f"No model here gives {value}: choose {offered} for {self.name}.", self.name)
        if self.choices and value not in self.choices:
            raise bad(
                f"{self.name} must be {join_words(self.choices)}.{nearest(value, self.choices)}", self.name
            )
        return value

    def _check_range(self, value: float) -> None:
        low, high = self.range()
        holds = (value > low if self.above else value >= low) and (
            value < high if self.below else value <= high
        )
        # A whole number may be too large to become a float, which infinite bounds would let pass.
        if not holds or (isinstance(value, int) and abs(value) > LARGEST) or value != value:
            raise bad(f"{self.name} is out of range: choose {self.advice()}.", self.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise bad(f"{self.name} is not a finite number: choose {self.advice()}.", self.name)

    def range(self) -> tuple[float, float]:
        low = -math.inf if self.least is None else self.least
        return low, math.inf if self.most is None else self.most

    def advice(self) -> str:
        """What to choose."""
        low = "" if self.least is None else f"{_digits(self.least)}"
        high = "" if self.most is None else f"{_digits(self.most)}"
        if low and high:
            first = f"above {low}, up to" if self.above else f"{low} to"
            return f"{first} below {high}" if self.below else f"{first} {high}"
        if low:
            return f"above {low}" if self.above else f"{low} or more"
        if high:
            return f"below {high}" if self.below else f"{high} or less"
        return "a finite number" if self.type == "number" else "a smaller whole number"

    def _wrong_type(self, kind: Type) -> ApiError:
        within = "Each entry of " if kind != self.type else ""
        return bad(f"{within}{self.name} must be {NAMES[kind]}.", self.name, "invalid_type")

    def schema(self) -> dict[str, Any]:
        """JSON Schema (OpenAPI 3.1) of what ``read`` takes."""
        entry = self._schema_of(self.entries if self.type == "list" else self.type)
        if self.type == "list":
            least, most = self.count
            entry = {"type": "array", "items": entry, "minItems": least, "maxItems": most}
        if not self.required:
            entry["type"] = [entry["type"], "null"]
            if "enum" in entry:
                entry["enum"] = [*entry["enum"], None]
        if self.help:
            entry["description"] = self.help
        if self.default is not None:
            entry["default"] = list(self.default) if isinstance(self.default, tuple) else self.default
        return entry

    def _schema_of(self, kind: Type) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": kind}
        if self.choices and kind in ("integer", "number"):
            entry["enum"] = [json.loads(choice) for choice in self.choices]
        if kind == "string":
            entry |= {"enum": list(self.choices)} if self.choices else {"maxLength": self.longest}
        if self.least is not None:
            entry["exclusiveMinimum" if self.above else "minimum"] = self.least
        if self.most is not None:
            entry["exclusiveMaximum" if self.below else "maximum"] = self.most
        return entry


def _digits(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.15g}"


def is_unicode(text: str) -> bool:
    """Whether it can be encoded: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_fields(
    body: Mapping[str, Any], fields: Iterable[Field], text: bool, refused: Mapping[str, str]
) -> dict[str, Any]:
    """The values that are given and not null. Raises ApiError 400 for the first that is not right.

    ``refused`` says of known names why no model here takes them.
    """
    known = {field.name: field for field in fields}
    for name, value in body.items():
        if name in known:
            continue
        base = name.split("[")[0]  # such as svg[model]
        if base in refused:
            if value is not None:
                raise unsupported(f"{base} is not supported: {refused[base]}.", base)
            continue
        hint = nearest(name[:64], known) or f" There are {join_words(sorted(known), 'and')}."
        raise unsupported(f"{told(name)} is not a parameter of this request.{hint}", name)
    values = {}
    for name, field in known.items():
        if name not in body:
            if field.required:
                message = f"{name} is missing: give {NAMES[field.type]}."
                raise bad(message, name, "missing_required_parameter")
            continue
        value = field.read(body[name], text)
        if value is not None:
            values[name] = value
    return values
