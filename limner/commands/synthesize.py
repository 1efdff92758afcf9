"""`limner synthesize`: a folder of new images that is training data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import tyro

from limner.commands import INTERRUPTED, say
from limner.commands.options import Repeated, RunFolder, Sampling, parse_for_run, sampling_options
from limner.settings import LimnerError


@dataclass(frozen=True, kw_only=True)
class Options(Generic[Sampling]):
    """Make a folder of labelled or captioned images that limner train reads; the same command resumes it.

    Without --label or --prompt every class gets the same number of images, or the captions of --prompts-from
    are used in turn. To see the sampling options of the run's family too: limner synthesize RUN --help
    """

    run: RunFolder  # folder of a run, or its model.safetensors
    to: str = ""  # folder for the images, metadata.jsonl and provenance.json
    n: int = 10_000  # number of images in the finished folder
    label: Repeated = ()  # draw only this class
    prompt: Repeated = ()  # what the images should show
    prompts_from: str = ""  # source whose captions are used. Default: the images that the run was trained on
    like: str = ""  # source: keep only images that resemble one of its training images
    # source: leave out images that are nearer to one of its training images than held-out images are
    new: str = ""
    classifier: str = ""  # run that classifies: keep only images that it recognises as the requested class
    confidence: float = 0.9  # lowest probability of the requested class by --classifier
    features: str = "random"  # for --like and --new: random, inception, clip, dinov2, or a run
    weights: str = ""  # file or folder of the features' weights, if they need any
    seed: int = 0  # of the first image; each image has its own
    batch: int = 64  # images drawn at once
    device: str = "auto"  # auto, cpu, cuda
    sampling: tyro.conf.OmitArgPrefixes[Sampling]


def run(argv: Sequence[str]) -> int:
    given = parse_for_run(Options, argv, "synthesize")
    if not given.to:
        raise LimnerError("Name the folder for the images: --to DIR.")
    from limner.synthesis.synthesize import report, synthesize

    try:
        result = synthesize(
            given.run, given.to, given.n, labels=given.label, prompts=given.prompt,
            prompts_from=given.prompts_from, like=given.like, new=given.new, classifier=given.classifier,
            confidence=given.confidence, features=given.features, weights=given.weights, seed=given.seed,
            batch=given.batch, device=given.device, **sampling_options(given),
        )  # fmt: skip
    except KeyboardInterrupt:
        about = Path(given.to) / "provenance.json"
        kept = json.loads(about.read_text("utf-8"))["kept"] if about.exists() else 0
        say(f"Stopped with {kept:,} of {given.n:,} images in {given.to}. Resume with the same command.")
        return INTERRUPTED
    for sentence in report(result, given.to):
        say(sentence)
    return 0
