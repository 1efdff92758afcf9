"""`limner project`: the latent point of a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from limner.commands import say
from limner.commands.options import Picture, RunFolder, parse


@dataclass(frozen=True)
class Options:
    """Find the point in a run's latent space whose image is nearest to a picture; write both."""

    run: RunFolder  # folder of a run whose images come from a point in a latent space
    picture: Picture  # the picture
    to: str = "projection.png"  # sheet to write; the point is written beside it as .safetensors
    steps: int = 300  # optimisation steps
    label: str = ""  # class of the picture. Default: the class that comes nearest
    rate: float = 0.3  # learning rate, in standard deviations of the latent dimensions
    prior: float = 0.001  # pull towards the centre; higher: an image more like the run's own
    # a point per layer, if the run supports it: nearer, but less like the run's own images
    each_layer: bool = False
    tries: int = 256  # random starting points; only the nearest few are optimised
    seed: int = 0  # of the first starting point
    device: str = "auto"  # auto, cpu, cuda
    json: bool = False  # print JSON


def run(argv: Sequence[str]) -> int:
    given = parse(Options, argv, "project")
    from limner.inference.explore import project

    result = project(
        given.run, given.picture, given.to, given.steps, given.label, given.rate, given.prior,
        given.each_layer, given.tries, given.seed, given.device, given.json,
    )  # fmt: skip
    if given.json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
        return 0
    as_label = f" as {result['label']}" if result["label"] else ""
    say(f"{result['psnr']:.1f} dB{as_label} ({result['psnr_start']:.1f} at the start): {result['to']}")
    say(f"The point is in {result['latent']}: limner explore {given.run} --start {result['latent']}")
    return 0
