"""`limner show`: what a run is."""

from __future__ import annotations

from dataclasses import dataclass

from limner.commands import print_json, say, table
from limner.commands.options import RunFolder, parse


@dataclass(frozen=True)
class Options:
    """Show what a run is: its family, settings, data, images seen, and the runs it was built on."""

    run: RunFolder  # folder of a run, or its model.safetensors
    json: bool = False  # print JSON


def run(argv: list[str]) -> None:
    given = parse(Options, argv, "show")
    from limner import checkpoint

    loaded = checkpoint.load(given.run)
    parts = {name: sum(p.numel() for p in m.parameters()) for name, m in loaded.model.named_children()}
    header = {**loaded.header, "parameters": parts}
    if given.json:
        print_json(header)
        return
    spec, run = loaded.spec, loaded.run
    rows = {
        "family": f"{run.family} ({run.preset}): {type(loaded.model).about}",
        "paper": type(loaded.model).paper,
        f"{spec.noun}s": (f"{spec.frames} frames, " if spec.frames > 1 else "")
        + f"{spec.channels} channels, {spec.height} x {spec.width}"
        + (f", {len(spec.classes)} classes: {', '.join(spec.classes[:8])}" if spec.classes else "")
        + (", captions" if spec.captions else ""),
        "trained on": ", ".join(run.sources) + f", seed {run.seed}, budget {run.budget}",
        f"{spec.noun}s seen": f"{header['seen']:,} in {header.get('seconds', 0):,.0f} s",
        "parameters": ", ".join(f"{name} {count:,}" for name, count in parts.items()),
        "parents": ", ".join(header.get("parents") or ()) or "none",
        "written by": ", ".join(f"{name} {version}" for name, version in header.get("versions", {}).items()),
        "digest": str(header.get("digest", "")),
    }
    say("")
    table(["", ""], rows.items(), bold=True)
    print_json(run.model)
