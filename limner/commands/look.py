"""The commands that say what there is: `limner show` and `limner families`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import tyro

from limner import config, families
from limner.commands import say, table


@dataclasses.dataclass(frozen=True)
class _Show:
    """Say what a run is: its family, config, data, images seen, and where it came from."""

    run: tyro.conf.Positional[str]  # folder of a run, or its model.safetensors
    json: bool = False  # for programs to read


def show(argv: Sequence[str]) -> int:
    given = tyro.cli(_Show, prog="limner show", args=list(argv))
    from limner import checkpoint

    loaded = checkpoint.load(given.run)
    parts = {name: sum(p.numel() for p in m.parameters()) for name, m in loaded.model.named_children()}
    told = {**loaded.header, "parameters": parts}
    if given.json:
        print(json.dumps(told, ensure_ascii=False, indent=2))
        return 0
    spec, run = loaded.spec, loaded.run
    rows = {
        "family": f"{run.family} ({run.preset}): {type(loaded.model).about}",
        "paper": type(loaded.model).paper,
        "images": f"{spec.channels} channels, {spec.height} x {spec.width}"
        + (f", {len(spec.classes)} classes: {', '.join(spec.classes[:8])}" if spec.classes else "")
        + (", captions" if spec.captions else ""),
        "trained on": ", ".join(run.sources) + f", seed {run.seed}, budget {run.budget}",
        "images seen": f"{told['seen']:,} in {told.get('seconds', 0):,.0f} s",
        "parameters": ", ".join(f"{name} {count:,}" for name, count in parts.items()),
        "parents": ", ".join(told.get("parents") or ()) or "none",
        "written by": ", ".join(f"{name} {version}" for name, version in told.get("versions", {}).items()),
        "digest": str(told.get("digest", "")),
    }
    say("")
    table(["", ""], rows.items(), bold=True)
    print(json.dumps(config.to_json(run.model), indent=2))
    return 0


def list_families(argv: Sequence[str]) -> int:
    given = config.parse_families(argv)
    if not given.family:
        return _table_of_families(given.json)
    import torch

    from limner.core import ImageSpec

    family = families.load(given.family)
    height, width = config.parse_size(given.size or "32")
    classes = tuple(f"class {i}" for i in range(given.classes))
    spec = ImageSpec(given.channels or 3, height, width, classes=classes)
    with torch.device("meta"):
        model = families.build(given.family, given.model, spec)
    parts = {
        name: sum(p.numel() for p in module.parameters() if p.requires_grad)
        for name, module in model.named_children()
    }
    if given.json:
        print(json.dumps({"config": config.to_json(given.model), "parameters": parts}, indent=2))
        return 0
    say(f"{given.family} ({given.preset}): {family.about}\n{family.paper}\n")
    print(json.dumps(config.to_json(given.model), indent=2))
    say(f"\ntrainable parameters at {spec.channels} x {height} x {width}:")
    for name, count in [*parts.items(), ("in all", sum(parts.values()))]:
        print(f"{count:>15,}  {name}")
    return 0


def _table_of_families(as_json: bool) -> int:
    from limner.core import Autoencodes, Classifies, Describes, Generates, Latent

    abilities = {
        "generates": Generates,
        "explores": Latent,
        "autoencodes": Autoencodes,
        "describes": Describes,
        "classifies": Classifies,
    }
    rows: list[dict[str, Any]] = []
    for name in families.names():
        family = families.load(name)
        can = [word for word, protocol in abilities.items() if _has(family, protocol)]
        rows.append(
            {
                "family": name,
                "about": family.about,
                "paper": family.paper,
                "reads": sorted(family.reads),
                "can": can,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    cells = [
        (row["family"], row["about"], row["paper"], ", ".join(row["reads"]), ", ".join(row["can"]))
        for row in rows
    ]
    table(["family", "what it is", "paper", "reads", "can"], cells, bold=True)
    return 0


def _has(family: type, protocol: type) -> bool:
    methods = [name for name in vars(protocol) if not name.startswith("_")]
    return all(callable(getattr(family, name, None)) for name in methods)
