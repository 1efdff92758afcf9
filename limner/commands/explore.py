"""`limner explore`: sheets of a run's latent space."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from limner.commands import say
from limner.commands.options import Repeated, RunFolder, parse


@dataclass(frozen=True)
class Options:
    """Draw sheets of a run's latent space: interpolations between images, an endless loop, and directions."""

    run: RunFolder  # folder of a run whose images come from a point in a latent space
    to: str = ""  # folder for the sheets. Default: explore in RUN
    label: Repeated = ()  # class to show
    start: Repeated = ()  # .safetensors of limner project: images of your own
    rows: int = 6  # interpolations
    columns: int = 9  # images in each interpolation
    directions: int = 6  # directions shown
    # where directions come from: pca of the points, the jacobian of the images, or the first layer's weights
    by: Literal["auto", "pca", "jacobian", "weights"] = "auto"
    truncation: float = 1.0  # below 1: points nearer to the centre, for safer images that are more alike
    seed: int = 0  # of the first image
    device: str = "auto"  # auto, cpu, cuda
    json: bool = False  # print JSON


def run(argv: Sequence[str]) -> int:
    given = parse(Options, argv, "explore")
    from limner.inference.explore import explore

    result = explore(
        given.run, given.to, given.label, given.start, given.rows, given.columns, given.directions,
        given.by, given.truncation, given.seed, given.device, given.json,
    )  # fmt: skip
    if given.json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        say(f"{len(result['sheets'])} sheets in {result['to']}")
    return 0
