"""`limner import`: a run from another library's format."""

from __future__ import annotations

from dataclasses import dataclass

from limner.commands import say
from limner.commands.options import Folder, parse
from limner.config import parse_size
from limner.settings import LimnerError


@dataclass(frozen=True)
class Options:
    """Make a run of a folder that diffusers wrote, to sample, evaluate and build on."""

    folder: Folder  # has model_index.json or config.json
    out: str = ""  # folder for the run
    size: str = ""  # of the images: 32, or HEIGHTxWIDTH as in 64x48. Default: as in the folder


def run(argv: list[str]) -> None:
    given = parse(Options, argv, "import")
    if not given.out:
        raise LimnerError("Name the folder for the run: --out runs/NAME.")
    from limner.inference import exchange

    size = parse_size(given.size) if given.size else None
    family = exchange.from_diffusers(given.folder, given.out, size)
    say(f"A run of {family} is in {given.out}. Look: limner show {given.out}")
