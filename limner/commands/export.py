"""`limner export`: a run in another library's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limner.commands import say
from limner.commands.options import RunFolder, parse


@dataclass(frozen=True)
class Options:
    """Write a run as another library reads it, such as DDPMPipeline.from_pretrained of diffusers."""

    run: RunFolder  # folder of a run, or its model.safetensors
    to: Literal["diffusers"] = "diffusers"  # the library
    out: str = ""  # a new folder. Default: a folder of the library's name in RUN


def run(argv: list[str]) -> None:
    given = parse(Options, argv, "export")
    from limner import checkpoint
    from limner.inference import exchange

    out = Path(given.out or checkpoint.folder_of(given.run) / given.to)
    parts = exchange.to_diffusers(given.run, out)
    say(f"{', '.join(str(part.settings['_class_name']) for part in parts)} in {out}")
