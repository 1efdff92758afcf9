"""`limner explore`: sheets of a run's latent space."""

from __future__ import annotations

from dataclasses import dataclass

from limner.commands import print_result
from limner.commands.options import Repeated, RunFolder, parse, select
from limner.inference.options import ExploreOptions
from limner.settings import ThreadCount


@dataclass(frozen=True, kw_only=True)
class Options(ExploreOptions):
    """Draw sheets of a run's latent space: interpolations between images, an endless loop, and directions."""

    run: RunFolder  # folder of a run whose images come from a point in a latent space
    to: str = ""  # folder for the sheets. Default: explore in RUN
    label: Repeated = ()  # class to show
    start: Repeated = ()  # .safetensors of limner project: images of your own
    device: str = "auto"  # auto, cpu, cuda
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again
    json: bool = False  # print JSON


def run(argv: list[str]) -> None:
    given = parse(Options, argv, "explore")
    from limner.inference.explore import explore

    options = select(ExploreOptions, given)
    result = explore(given.run, given.to, options, device=given.device, quiet=given.json)
    print_result(result, given.json, f"{len(result.sheets)} sheets in {result.to}")
