"""`limner evaluate`: how good a run's or a folder's images are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from limner import families
from limner.commands import print_json, say, table
from limner.commands.options import RunOrImages, Sampling, SamplingOptions, Sources, parse, select
from limner.evaluation.options import EvaluateOptions
from limner.settings import LimnerError, NoSampling, ThreadCount
from limner.synthesis.options import TrainingDataOptions

if TYPE_CHECKING:
    from limner.synthesis.training_data import TrainingDataScores


@dataclass(frozen=True, kw_only=True)
class Options(TrainingDataOptions, EvaluateOptions, SamplingOptions[Sampling]):
    """Measure a run, or a folder of images that any program made, against real images.

    To see the sampling options of a run's family too: limner evaluate RUN --help
    """

    what: RunOrImages  # a run, or a folder of images
    sources: Sources = ()  # the real images: a folder, archive, parquet file or built-in set
    to: str = ""  # folder for evaluation.json and pictures. Default: evaluation in RUN
    # also measure: does a classifier learn from the run's images what it learns from real ones
    as_training_data: bool = False
    threads: ThreadCount = "auto"  # on a CPU: a number, or auto: measured again and again
    json: bool = False  # print JSON


def run(argv: list[str]) -> None:
    given = parse(Options[_sampling(argv)], argv, "evaluate")  # type: ignore[misc]
    if not given.sources:
        raise LimnerError("Name the real images to measure against: limner evaluate RUN SOURCE.")
    from limner.evaluation.evaluate import evaluate
    from limner.evaluation.tables import (
        EVALUATION,
        compared,
        evaluation_rows,
        measured_in,
        translation_heads,
        translation_rows,
    )  # fmt: skip

    scores = _as_training_data(given) if given.as_training_data else None
    options, to = select(EvaluateOptions, given), given.to or None
    result = evaluate(given.what, given.sources, options, to=to, quiet=given.json, **vars(given.sampling))
    if not result:  # of several processes only the first reports
        return
    if scores and result.to:
        from limner.synthesis.training_data import add_to_evaluation

        add_to_evaluation(scores, result.to)
        result = replace(result, training_data=scores)
    if given.json:
        print_json(result)
        return
    if result.translation:
        table(translation_heads(result.translation), translation_rows(result.translation))
        for note in result.translation.notes:
            say(note)
    if rows := evaluation_rows(result):
        table(EVALUATION, rows)
    if result.held_out and (
        result.understanding or result.translation or getattr(result.fidelity, "memorised", None) is not None
    ):
        say(str(result.held_out))
    if fidelity := result.fidelity:
        features = measured_in([fidelity, *fidelity.other_features.values()])
        say(f"{compared(fidelity)} Features {features}.")
        for note in fidelity.notes:
            say(note)
        if fidelity.frames:
            say(
                "Motion and jitter are relative to real clips'. A clip that stands still has no jitter: read both."
            )
        if fidelity.compared < 10_000:
            say("Below 10,000 images trust the kernel distance: the Frechet distance is biased by n.")
    if scores:
        _show_training_data(scores)
    say(f"Look at {result.to}.")


def _sampling(argv: Sequence[str]) -> type:
    """The sampling options of the run that comes first; a folder of images has none."""
    if not argv or argv[0].startswith("-"):
        return NoSampling
    from limner import checkpoint

    if argv[0].endswith(".safetensors") or checkpoint.exists(argv[0]):
        return families.load(checkpoint.family_of(argv[0])).Sampling
    return NoSampling


def _as_training_data(given: Options[Any]) -> TrainingDataScores:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LimnerError("--as-training-data works in one process: call it without torchrun.")
    from limner.synthesis.training_data import as_training_data

    options = select(TrainingDataOptions, given)
    return as_training_data(
        given.what, given.sources, options, n=given.n, seed=given.seed, to=given.to or None, quiet=given.json,
        **vars(given.sampling),
    )  # fmt: skip


def _show_training_data(scores: TrainingDataScores) -> None:
    from limner.synthesis.training_data import table_rows

    say("")
    heads = [f"{scores.classifier} trained on", "images", "accuracy", "95% interval", "over repeats"]
    table(heads, table_rows(scores))
    say(f"Each saw {scores.budget}. {scores.said}")
    if not scores.checked:
        say("The run's own images cannot be opened, so it may have been trained on the test images.")
