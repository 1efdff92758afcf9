"""`limner families`: the families there are; one family's settings and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import tyro

from limner import config, families
from limner.commands import print_json, say
from limner.commands.options import Config, flag_value, parse


@dataclass(frozen=True)
class Options:
    """List the families; or show the settings of one and count its parameters: limner families FAMILY"""

    family: tyro.conf.Suppress[str] = ""
    preset: str = "small"  # tiny, small, base or paper
    size: str = ""  # of the images: 32, or HEIGHTxWIDTH as in 64x48. Default: the preset's, or 32
    channels: int | None = None  # 1 grey, 3 RGB, 4 RGBA. Default: the preset's, or 3
    classes: int = 0  # number of classes that the images have
    json: bool = False  # print JSON


@dataclass(frozen=True, kw_only=True)
class FamilyOptions(Options, Generic[Config]):
    __doc__ = Options.__doc__
    model: Config


def parse_families(argv: Sequence[str]) -> Any:
    """Options, or FamilyOptions where a family is named."""
    if not argv or argv[0].startswith("-"):
        return parse(Options, argv, "families [FAMILY]")
    family = families.load(argv[0])
    name = flag_value(argv, "--preset") or Options.preset
    preset = config.find_preset(family, name)
    size = "x".join(map(str, preset.size)) if preset.size else ""
    default: Any = FamilyOptions(argv[0], name, size, preset.channels, model=preset.model)
    return parse(FamilyOptions[family.Config], argv[1:], f"families {argv[0]}", default)  # type: ignore[name-defined]


def run(argv: list[str]) -> None:
    given = parse_families(argv)
    if not given.family:
        _list(given.json)
        return
    import torch

    from limner.core import ImageSpec

    family = families.load(given.family)
    height, width = config.parse_size(given.size or "32")
    classes = tuple(f"class {i}" for i in range(given.classes))
    spec = ImageSpec(given.channels or 3, height, width, classes=classes)
    with torch.device("meta"):
        model = families.build(given.family, given.model, spec)
    parts = {n: sum(p.numel() for p in m.parameters() if p.requires_grad) for n, m in model.named_children()}
    if given.json:
        print_json({"config": model.config, "parameters": parts})
        return
    say(f"{given.family} ({given.preset}): {family.about}\n{family.paper}\n")
    print_json(model.config)
    say(f"\ntrainable parameters at {spec.channels} x {height} x {width}:")
    for name, count in [*parts.items(), ("total", sum(parts.values()))]:
        print(f"{count:>15,}  {name}")


def _list(as_json: bool) -> None:
    """One line of at most 80 columns per family, under each group that it belongs to."""
    listed = [families.describe(name) for name in families.names()]
    if as_json:
        print_json([info.to_json() for info in listed])
        return
    width = max(len(info.family) for info in listed)
    for group in families.GROUPS:
        if members := [info for info in listed if group in info.groups]:
            say(f"{group.capitalize()}:")
            for info in members:
                say(f"  {info.family:<{width}}  {info.about}")
            say("")
    say("limner families FAMILY shows a family's paper, settings and size.")
