"""The commands that move in a latent: `limner explore` and `limner project`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal

import tyro

from limner.commands import say


@dataclasses.dataclass(frozen=True)
class _Explore:
    """Sheets of what a run's latent holds: ways between images, an endless loop, what directions change."""

    run: tyro.conf.Positional[str]  # folder of a run whose images come from a point
    to: str = ""  # folder for the sheets; without it explore in RUN
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # which class to show; may be given again
    start: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # .safetensors of limner project: images of yours
    rows: int = 6  # ways from image to image
    columns: int = 9  # images on a way
    directions: int = 6  # directions shown
    by: Literal["auto", "pca", "jacobian", "weights"] = (
        "auto"  # where directions come from: how the points vary, how the images change, the first weights
    )
    truncation: float = 1.0  # below 1: points nearer to the centre, safer and more alike
    seed: int = 0  # of the first image
    device: str = "auto"  # auto, cpu, cuda
    json: bool = False  # for programs to read


@dataclasses.dataclass(frozen=True)
class _Project:
    """Find the point in a run's latent whose image is nearest to a picture; keep both."""

    run: tyro.conf.Positional[str]  # folder of a run whose images come from a point
    picture: tyro.conf.Positional[str]  # the picture
    to: str = "projection.png"  # sheet to write; the point is kept beside it as .safetensors
    steps: int = 300  # of Adam
    label: str = ""  # which class it is; without it the one that comes nearest
    rate: float = 0.3  # largest step of Adam, in deviations of a point's numbers
    prior: float = 0.001  # pull towards the centre; higher: an image more like the run's own
    each_layer: bool = False  # a point for each layer, where the run can: nearer, but less like its own
    tries: int = 256  # random points to start from; the nearest few go on
    seed: int = 0  # of the first of them
    device: str = "auto"  # auto, cpu, cuda
    json: bool = False  # for programs to read


def explore(argv: Sequence[str]) -> int:
    given = tyro.cli(_Explore, prog="limner explore", args=list(argv))
    from limner.inference import explore as exploring

    told = exploring.explore(
        given.run, given.to, given.label, given.start, given.rows, given.columns, given.directions,
        given.by, given.truncation, given.seed, given.device, given.json,
    )  # fmt: skip
    if given.json:
        print(json.dumps(told, ensure_ascii=False, indent=2))
    else:
        say(f"{len(told['sheets'])} sheets in {told['to']}")
    return 0


def project(argv: Sequence[str]) -> int:
    given = tyro.cli(_Project, prog="limner project", args=list(argv))
    from limner.inference import explore as exploring

    told = exploring.project(
        given.run, given.picture, given.to, given.steps, given.label, given.rate, given.prior,
        given.each_layer, given.tries, given.seed, given.device, given.json,
    )  # fmt: skip
    if given.json:
        print(json.dumps(told, ensure_ascii=False, indent=2))
        return 0
    as_label = f" as {told['label']}" if told["label"] else ""
    say(f"{told['psnr']:.1f} dB{as_label} ({told['psnr_start']:.1f} at the start): {told['to']}")
    say(f"Its point is in {told['latent']}: limner explore {given.run} --start {told['latent']}")
    return 0
