"""Checks of a network's settings. A SettingsError is the user's mistake; other errors of a constructor are bugs."""

import dataclasses
import math
import typing
from typing import Any

LARGEST = 2**20  # of a width, a depth, a count of anything that is not images


class SettingsError(ValueError):
    """Settings that make no network. The message says what is wrong, without a full stop."""


def check_dropout(probability: float) -> float:
    """The probability. Raises SettingsError for one above 1."""
    if probability > 1:
        raise SettingsError(f"a dropout of {probability:g} is above 1")
    return probability


def check_settings(config: Any, where: str = "--model") -> None:
    """Raises SettingsError for a number in ``config``, or in a dataclass in it, that no network can have.

    Integers are at least 1, or at least 0 where that is the default or the field is in ``config.may_be_zero``, which
    also says which tuples may be empty. Floats are finite, and negative only where the default is or the field is in
    ``config.may_be_negative``. ``where`` is the flag of ``config``.
    """
    types = typing.get_type_hints(type(config))
    may_be_zero, may_be_negative = (getattr(config, name, ()) for name in ("may_be_zero", "may_be_negative"))
    for field in dataclasses.fields(config):
        kind, value = types[field.name], getattr(config, field.name)
        name = f"{where}.{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            check_settings(value, name)
        elif kind in (int, tuple[int, ...]):
            _check_counts(name, value, field.name in may_be_zero or field.default in (0, ()))
        elif isinstance(value, float):
            negative = field.name in may_be_negative or (
                isinstance(field.default, float) and field.default < 0
            )
            if not math.isfinite(value) or (value < 0 and not negative):
                raise SettingsError(
                    f"{name} is {value}, but must be finite{'' if negative else ' and at least 0'}"
                )


def _check_counts(name: str, value: int | tuple[int, ...], optional: bool) -> None:
    """Raises SettingsError for a count, or one of several, that is out of bounds; ``optional``: 0 and none are not."""
    numbers = value if isinstance(value, tuple) else (value,)
    if not numbers and not optional:
        raise SettingsError(f"{name} is empty, but needs at least one number")
    for number in numbers:
        if number < (least := 0 if optional else 1):
            raise SettingsError(f"{name} is {number}, but must be at least {least}")
        if number > LARGEST and not optional:
            raise SettingsError(f"{name} is {number}, but must be at most {LARGEST}")
