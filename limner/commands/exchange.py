"""The commands that trade with other libraries: `limner export` and `limner import`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from limner.commands import say
from limner.settings import LimnerError


@dataclasses.dataclass(frozen=True)
class _Export:
    """Write a run as another library reads it, such as DDPMPipeline.from_pretrained of diffusers."""

    run: tyro.conf.Positional[str]  # folder of a run, or its model.safetensors
    to: Literal["diffusers"] = "diffusers"  # the library
    out: str = ""  # a new folder; without it a folder of the library's name in RUN


@dataclasses.dataclass(frozen=True)
class _Import:
    """Make a run of a folder that diffusers wrote, to sample, evaluate and build on."""

    folder: tyro.conf.Positional[str]  # with model_index.json or config.json
    out: str = ""  # folder that the run is kept in
    size: str = ""  # of the images: 32, or HEIGHTxWIDTH as 64x48; without it as the folder says


def export(argv: Sequence[str]) -> int:
    given = tyro.cli(_Export, prog="limner export", args=list(argv))
    from limner import checkpoint
    from limner.inference import exchange

    out = Path(given.out or checkpoint.folder_of(given.run) / given.to)
    parts = exchange.to_diffusers(given.run, out)
    say(f"{', '.join(str(part.settings['_class_name']) for part in parts)} in {out}")
    return 0


def take(argv: Sequence[str]) -> int:
    given = tyro.cli(_Import, prog="limner import", args=list(argv))
    if not given.out:
        raise LimnerError("Name the folder that the run is to be kept in: --out runs/NAME.")
    from limner import config
    from limner.inference import exchange

    size = config.parse_size(given.size) if given.size else None
    family = exchange.from_diffusers(given.folder, given.out, size)
    say(f"A run of {family} in {given.out}. Look: limner show {given.out}")
    return 0
