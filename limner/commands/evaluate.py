"""`limner evaluate`: how good a run's or a folder's images are."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic

import tyro

from limner import families
from limner.commands import say, table
from limner.commands.options import Sampling, Sources, parse, sampling_options
from limner.settings import LimnerError, NoSampling

RunOrImages = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]


@dataclass(frozen=True, kw_only=True)
class Options(Generic[Sampling]):
    """Measure a run, or a folder of images that any program made, against real images.

    To see the sampling options of a run's family too: limner evaluate RUN --help
    """

    what: RunOrImages  # a run, or a folder of images
    sources: Sources = ()  # the real images: a folder, archive, parquet file or built-in set
    n: int | None = None  # images to draw or to read. Default: 1000, or the number of real images if lower
    features: str = "random"  # random, inception, clip, dinov2, or a run that describes images
    weights: str = ""  # file or folder of the features' weights, if they need any
    # also probe a run's features with this many labelled images per class; 0: do not
    labels_per_class: int = 0
    to: str = ""  # folder for evaluation.json and pictures. Default: evaluation in RUN
    seed: int = 0  # of the first image drawn
    # also measure: does a classifier learn from the run's images what it learns from real ones
    as_training_data: bool = False
    classifier_family: str = families.CLASSIFIER  # family of that classifier
    classifier_preset: str = ""  # tiny, small, base or paper. Default: small on a CPU, base on a GPU
    classifier_budget: str = "60kimg"  # of each training: the same for real, synthetic and both
    repeats: int = 1  # classifiers of each kind, each with its own seed
    json: bool = False  # print JSON
    sampling: tyro.conf.OmitArgPrefixes[Sampling]


def run(argv: Sequence[str]) -> int:
    given = parse(Options[_sampling(argv)], argv, "evaluate")  # type: ignore[misc]
    if not given.sources:
        raise LimnerError("Name the real images to measure against: limner evaluate RUN SOURCE.")
    from limner.evaluation.evaluate import evaluate, rows

    options = sampling_options(given)
    learnt = _as_training_data(given, options) if given.as_training_data else None
    result = evaluate(
        given.what, given.sources, given.n, given.features, given.weights, given.to, given.seed, given.json,
        given.labels_per_class, **options,
    )  # fmt: skip
    if not result:  # of several processes only the first reports
        return 0
    if learnt:
        from limner.synthesis import training_data

        training_data.keep(learnt, result["to"])
        result["training_data"] = learnt
    if given.json:
        print(json.dumps(result, indent=2))
        return 0
    table(["", "value", "95% interval", "real against real"], rows(result))
    if "n" in result:
        features = f"{result['features']} {result['features_hash']}"
        say(f"{result['n']:,} images against {result['real']:,}, features {features}, {result['resize']}.")
        if result["n"] < 10_000:
            say("Below 10,000 images trust the kernel distance: the Frechet distance is biased by n.")
    if learnt:
        _show_training_data(learnt)
    say(f"Look at {result['to']}.")
    return 0


def _sampling(argv: Sequence[str]) -> type:
    """The sampling options of the run that comes first; a folder of images has none."""
    if not argv or argv[0].startswith("-"):
        return NoSampling
    from limner import checkpoint

    if argv[0].endswith(".safetensors") or checkpoint.exists(argv[0]):
        return families.load(checkpoint.family_of(argv[0])).Sampling
    return NoSampling


def _as_training_data(given: Options, options: dict[str, Any]) -> dict[str, Any]:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LimnerError("--as-training-data works in one process: call it without torchrun.")
    from limner.synthesis.training_data import as_training_data

    return as_training_data(
        given.what, given.sources, given.n, given.classifier_family, given.classifier_budget,
        given.classifier_preset, given.repeats, given.seed, given.to or None, given.json, **options,
    )  # fmt: skip


def _show_training_data(learnt: dict[str, Any]) -> None:
    from limner.synthesis import training_data

    say("")
    heads = [f"{learnt['classifier']} trained on", "images", "accuracy", "95% interval", "over repeats"]
    table(heads, training_data.rows(learnt))
    say(f"Each saw {learnt['budget']}. {learnt['said']}")
    if not learnt["checked"]:
        say("The run's own images cannot be opened, so it may have been trained on the test images.")
