"""`limner explore`: sheets of a run's latent space."""

from __future__ import annotations

from dataclasses import dataclass

from limner.commands import print_result, say
from limner.commands.options import Repeated, RunFolder, parse, select
from limner.inference.options import ExploreOptions, LoopOptions
from limner.settings import LimnerError, ThreadCount


@dataclass(frozen=True, kw_only=True)
class Options(ExploreOptions, LoopOptions):
    """Draw sheets of a run's latent space: interpolations between images, an endless loop, and directions."""

    run: RunFolder  # folder of a run whose images come from a point in a latent space
    to: str = ""  # folder for the sheets. Default: explore in RUN
    # write a loop alone, whose last frame leads to its first: a .mp4, .webm, .gif or .webp, or a folder for its frames
    loop: str = ""
    label: Repeated = ()  # class to show
    start: Repeated = ()  # .safetensors of limner project: images of your own
    device: str = "auto"  # auto, cpu, cuda
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again
    json: bool = False  # print JSON


def run(argv: list[str]) -> None:
    given = parse(Options, argv, "explore")
    options, how = select(ExploreOptions, given), select(LoopOptions, given)
    if given.loop:
        _loop(given, options, how)
        return
    if how != LoopOptions():
        raise LimnerError("--seconds and --rate are of a loop: name its file with --loop.")
    from limner.inference.explore import explore

    result = explore(given.run, given.to, options, device=given.device, quiet=given.json)
    print_result(result, given.json, f"{len(result.sheets)} sheets in {result.to}")


def _loop(given: Options, options: ExploreOptions, how: LoopOptions) -> None:
    if given.to:
        raise LimnerError("--loop writes the loop alone, without sheets: leave out --to.")
    from limner.inference.loops import save_loop

    result = save_loop(given.run, given.loop, options, how, device=given.device, quiet=given.json)
    shown = f"{result.label}: " if result.label else ""
    print_result(
        result, given.json, f"{shown}{result.frames} frames, {result.seconds:g} seconds, in {result.to}"
    )
    for note in () if given.json else result.notes:
        say(f"{given.loop}: {note}.")
