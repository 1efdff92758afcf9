"""`limner project`: the latent point of a picture."""

from __future__ import annotations

from dataclasses import dataclass

from limner.commands import print_result
from limner.commands.options import Picture, RunFolder, parse, select
from limner.inference.options import ProjectOptions
from limner.settings import ThreadCount


@dataclass(frozen=True, kw_only=True)
class Options(ProjectOptions):
    """Find the point in a run's latent space whose image is nearest to a picture; write both."""

    run: RunFolder  # folder of a run whose images come from a point in a latent space
    picture: Picture  # the picture
    to: str = "projection.png"  # sheet to write; the point is written beside it as .safetensors
    device: str = "auto"  # auto, cpu, cuda
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again
    json: bool = False  # print JSON


def run(argv: list[str]) -> None:
    given = parse(Options, argv, "project")
    from limner.inference.explore import project

    options = select(ProjectOptions, given)
    result = project(given.run, given.picture, given.to, options, device=given.device, quiet=given.json)
    as_label = f" as {result.label}" if result.label else ""
    found = f"{result.psnr:.1f} dB{as_label} ({result.psnr_start:.1f} at the start): {result.to}"
    following = f"The point is in {result.latent}: limner explore {given.run} --start {result.latent}"
    print_result(result, given.json, f"{found}\n{following}")
