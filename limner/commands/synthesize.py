"""`limner synthesize`: a folder of new images that is training data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from limner import files
from limner.commands import say
from limner.commands.options import Repeated, RunFolder, Sampling, SamplingOptions, parse_for_run, select
from limner.settings import LimnerError, ThreadCount, signal_of
from limner.synthesis.options import SynthesizeOptions


@dataclass(frozen=True, kw_only=True)
class Options(SynthesizeOptions, SamplingOptions[Sampling]):
    """Make a folder of labelled or captioned images that limner train reads; the same command resumes it.

    Without --label or --prompt every class gets the same number of images, or the captions of --prompts-from
    are used in turn. To see the sampling options of the run's family too: limner synthesize RUN --help
    """

    run: RunFolder  # folder of a run, or its model.safetensors
    to: str = ""  # folder for the images, metadata.jsonl and provenance.json
    label: Repeated = ()  # draw only this class
    prompt: Repeated = ()  # what the images should show
    device: str = "auto"  # auto, cpu, cuda
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again


def run(argv: list[str]) -> int:
    given = parse_for_run(Options, argv, "synthesize")
    if not given.to:
        raise LimnerError("Name the folder for the images: --to DIR.")
    from limner.synthesis.synthesize import report, synthesize

    options = select(SynthesizeOptions, given)
    try:
        result = synthesize(given.run, given.to, options, device=given.device, **vars(given.sampling))
    except KeyboardInterrupt as stop:
        about = Path(given.to) / "provenance.json"
        kept = files.read_json(about).get("kept", 0) if about.exists() else 0
        say(f"Stopped with {kept:,} of {given.n:,} images in {given.to}. Resume with the same command.")
        return 128 + signal_of(stop)
    for sentence in report(result, given.to):
        say(sentence)
    return 0
