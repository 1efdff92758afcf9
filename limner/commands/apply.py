"""`limner apply`: pictures through a run that restores, enlarges, translates or paints them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from limner.commands import MISTAKE, print_json, say
from limner.commands.options import RunFolder, Sampling, SamplingOptions, parse_for_run, select
from limner.inference.options import ApplyOptions
from limner.settings import ThreadCount, signal_of

Given = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE|DIR|CLIP")]


@dataclass(frozen=True, kw_only=True)
class Options(ApplyOptions, SamplingOptions[Sampling]):
    """Translate a picture of any size, every picture of a folder, or a clip: restore, enlarge, recolour, paint.

    To see the options of the run's family too: limner apply RUN --help
    """

    run: RunFolder  # folder of a run that makes pictures from given ones
    source: Given  # a picture, a folder of pictures, or a clip
    # the file to write, or a folder for files of the same names: png, jpg, webp or tif. Of a clip: mp4, webm, gif or
    # webp, at the times of its frames, or a folder for these
    to: str
    device: str = "auto"  # auto, cpu, cuda
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again
    json: bool = False  # print JSON


def run(argv: list[str]) -> int:
    given = parse_for_run(Options, argv, "apply")
    from limner.inference.applied import summary
    from limner.inference.apply import apply

    options = select(ApplyOptions, given)
    try:
        result = apply(
            given.run,
            given.source,
            given.to,
            options,
            device=given.device,
            quiet=given.json,
            **vars(given.sampling),
        )
    except KeyboardInterrupt as stop:
        say(f"Stopped. Every file in {given.to} is whole; the same command makes the others.")
        return 128 + signal_of(stop)
    if given.json:
        print_json(result)
    else:
        for sentence in summary(result):
            say(sentence)
    for error in result.failed.values():
        print(f"limner: {error}", file=sys.stderr)
    return MISTAKE if result.failed else 0
