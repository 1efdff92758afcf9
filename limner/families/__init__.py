"""The families: one file is one family, found by its file name and imported when it is needed."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from limner.networks.checks import SizeError, check_settings
from limner.settings import LimnerError, nearest

if TYPE_CHECKING:
    from limner.core import ImageSpec, Model


DEFAULT = "flow"  # what the demo trains: from a sentence to a picture
CLASSIFIER = "vit"  # what learns from synthetic images, to tell what they are worth


def names() -> list[str]:
    """Every family's name, without importing any."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str) -> type[Model]:
    """The model class of a family: the one subclass of Model that its file defines."""
    if name not in (known := names()):
        hint = nearest(name, known) or f" There are {', '.join(known) or 'none'}."
        raise LimnerError(f"There is no family {name!r}.{hint}")
    from limner.core import Model

    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Model) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one Model, not {len(found)}")
    return found[0]


def build(name: str, config: Any, spec: ImageSpec) -> Model:
    """A family's model. Raises LimnerError for settings that make none, such as a width of 0."""
    family = load(name)
    try:
        check_settings(config)
        return family(config, spec)
    except SizeError as error:  # any other error is a bug, not a setting
        raise LimnerError(f"{name} cannot be built: {error}; change its --model settings.") from None
