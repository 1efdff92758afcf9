"""The command that makes training data: `limner synthesize`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from limner import config
from limner.commands import INTERRUPTED, name_the_run, say
from limner.settings import LimnerError


def synthesize(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        config.parse_synthesize(argv)
        raise LimnerError(name_the_run("synthesize"))
    from limner import checkpoint, families
    from limner.synthesis import synthesize as synthesis

    family = families.load(checkpoint.family_of(argv[0]))
    given = config.parse_synthesize(argv, family.Sampling)
    if not given.to:
        raise LimnerError("Say where to put the images: --to DIR.")
    knobs = config.knobs_of(given)
    try:
        told = synthesis.synthesize(
            given.run, given.to, given.n, labels=given.label, prompts=given.prompt,
            prompts_from=given.prompts_from, like=given.like, new=given.new, classifier=given.classifier,
            confidence=given.confidence, features=given.features, weights=given.weights, seed=given.seed,
            batch=given.batch, device=given.device, **knobs,
        )  # fmt: skip
    except KeyboardInterrupt:
        about = Path(given.to) / "provenance.json"
        kept = json.loads(about.read_text("utf-8"))["kept"] if about.exists() else 0
        say(f"Stopped with {kept:,} of {given.n:,} images in {given.to}; the same command goes on.")
        return INTERRUPTED
    for sentence in synthesis.report(told, given.to):
        say(sentence)
    return 0
