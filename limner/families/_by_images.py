"""Defaults that follow the images: one rule for all families.

A field of a family's config that is declared by `by_images` stands, where nobody sets it, for what its rule gives for
the images that are trained on. `settle` puts that in its place before the first step, and the run keeps it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from limner.fields import differing

T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """What defaults follow."""

    height: int  # pixels
    width: int
    count: int = 0  # trained on; 0: not known, taken for many

    @property
    def side(self) -> int:
        """The shorter side."""
        return min(self.height, self.width)


def by_images(rule: Callable[[Images], Any], default: Any = ()) -> Any:
    """A field of a dataclass; ``default`` stands for what ``rule`` gives."""
    return dataclasses.field(default=default, metadata={"by_images": rule})


def settle(config: T, images: Images) -> T:
    """The dataclass with what the rules of its fields give for ``images``, at any depth."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            changes[f.name] = settle(value, images)
        elif "by_images" in f.metadata and value == f.default:
            changes[f.name] = f.metadata["by_images"](images)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def keep(config: T, saved: T) -> T:
    """The dataclass of a run that goes on, with what was settled when it began, as ``saved`` has it."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value, before = getattr(config, f.name), getattr(saved, f.name)
        if dataclasses.is_dataclass(value):
            changes[f.name] = keep(value, before)
        elif "by_images" in f.metadata and value == f.default:
            changes[f.name] = before
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def resettle(config: T, before: Images, after: Images) -> T:
    """The dataclass with what the rules gave for ``before`` changed to what they give for ``after``."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value, rule = getattr(config, f.name), f.metadata.get("by_images")
        if dataclasses.is_dataclass(value):
            changes[f.name] = resettle(value, before, after)
        elif rule and value == rule(before):
            changes[f.name] = rule(after)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def chosen(before: Any, after: Any) -> Iterator[str]:
    """What `settle` chose, as flags of the command line."""
    for flag, _, value in differing(before, after, "--model"):
        yield f"{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else f'{value:g}'}"


# ---- the rules


def unet_widths(images: Images) -> tuple[int, ...]:
    """Channels of the quick U-Net of flow matching by level."""
    return (
        (48, 128, 192)
        if images.side < 48
        else (48, 96, 144, 192)
        if images.side < 96
        else (48, 96, 96, 144, 192)
    )


def unet_multiples(images: Images) -> tuple[int, ...]:
    """Channels of a quick U-Net by level, in units of 48: its lowest maps are 4 to 6 places high."""
    return (1, 3, 4) if images.side < 48 else (1, 2, 3, 4) if images.side < 96 else (1, 2, 2, 3, 4)


def transformer_patch(images: Images) -> int:
    """Pixels a side of a quick transformer's patches: fewer tokens, so it sees more images in the same time."""
    return 4 if images.side < 48 else 8


def latent_width(images: Images) -> int:
    """Channels of a quick U-Net for latents at its first level."""
    return 128 if images.side < 48 else 64


def latent_multiples(images: Images) -> tuple[int, ...]:
    """Its channels by level: latents are a quarter of the images a side, and the lowest maps 4 to 6 places high."""
    return (1, 2) if images.side < 48 else (1, 2, 4) if images.side < 96 else (1, 2, 2, 4)
