"""The families: one file is one family, found by its file name and imported when it is needed."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limner.families._by_images import Images, settle
from limner.fields import check
from limner.networks.checks import SettingsError
from limner.settings import LimnerError, nearest

if TYPE_CHECKING:
    from limner.core import ImageSpec, Model

DEFAULT = "flow"  # what the demo trains: from a sentence to a picture
CLASSIFIER = "vit"  # what is trained on synthetic images, to measure what they are worth


@dataclass(frozen=True)
class FamilyInfo:
    """What a family says of itself, without a model being built."""

    family: str
    about: str  # one phrase
    paper: str  # authors, year, title
    reads: tuple[str, ...]  # what an image can be conditioned on: fields of Condition
    can: tuple[str, ...]  # its capabilities: keys of ``capabilities`` in `describe`
    one_call: bool  # draws, by default, in one network call
    presets: tuple[str, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """What the family is for: keys of ``GROUPS``."""
        return tuple(group for group, belongs in GROUPS.items() if belongs(self))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"groups": self.groups}


GROUPS: dict[str, Callable[[FamilyInfo], bool]] = {
    "draw images": lambda f: "generates" in f.can and not {"text", "given"} & {*f.reads} and not f.one_call,
    "draw from words": lambda f: "generates" in f.can and "text" in f.reads,
    "draw in one network call": lambda f: f.one_call and "given" not in f.reads,
    "translate pictures": lambda f: "translates" in f.can,
    "understand images": lambda f: bool(
        {"describes", "classifies"} & {*f.can} and "autoencodes" not in f.can
    ),
    "compress images": lambda f: "tokenises" in f.can or {"autoencodes", "describes"} <= set(f.can),
}


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
    classes = [
        value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Model)
    ]
    found = [value for value in classes if value.__module__ == module.__name__]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one Model, not {len(found)}")
    return found[0]


def describe(name: str) -> FamilyInfo:
    """A family's own description."""
    from limner import core

    capabilities = {
        "generates": core.Generates, "explores": core.Latent, "translates": core.Translates,
        "autoencodes": core.Autoencodes, "tokenises": core.Tokenises, "describes": core.Describes,
        "classifies": core.Classifies,
    }  # fmt: skip
    can = tuple(word for word, protocol in capabilities.items() if supports(name, protocol))
    family = load(name)
    sampling = family.Sampling()
    one_call = "generates" in can and getattr(sampling, "one_call", getattr(sampling, "steps", 1) == 1)
    reads = tuple(sorted(family.reads))
    return FamilyInfo(name, family.about, family.paper, reads, can, one_call, tuple(family.presets))


def supports(name: str, protocol: type) -> bool:
    """Whether a family's class has all methods of a protocol of ``core``."""
    family, methods = load(name), [method for method in vars(protocol) if not method.startswith("_")]
    return all(callable(getattr(family, method, None)) for method in methods)


def supporting(protocol: type) -> list[str]:
    """The families that support a protocol of ``core``."""
    return [name for name in names() if supports(name, protocol)]


def build(name: str, config: Any, spec: ImageSpec) -> Model:
    """A family's model. Raises LimnerError for settings that make none, such as a width of 0."""
    family = load(name)
    check(config, "--model.")
    config = settle(config, Images(spec.height, spec.width))
    try:
        return family(config, spec)
    except SettingsError as error:  # any other error is a bug, not a setting
        raise LimnerError(f"{name} cannot be built: {error}; change its --model settings.") from None
