"""The commands that measure: `limner evaluate` and `limner compare`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from limner import config, families
from limner.commands import INTERRUPTED, say, table
from limner.settings import LimnerError


@dataclasses.dataclass(frozen=True)
class _Compare:
    """Train several families for the same time on the same images, measure all alike, and report.

    What stands behind a lone -- goes to every training, as: -- --data.no-labels
    """

    sources: tyro.conf.Positional[tuple[str, ...]]  # folders, archives, parquet files, shapes, digits, emoji
    families: str  # names with commas between
    budget: str = "5m"  # length of each training
    to: str = (
        "runs/compare"  # folder for report.html, report.json and the runs; an unfinished one is gone on with
    )
    preset: str = ""  # tiny, small, base or paper; default: small on a CPU, base on a GPU
    size: str = ""  # 32, or HEIGHTxWIDTH as 64x48; default: as for train
    n: int | None = None  # images to draw of each; default: 1000, or as many as are real
    features: str = "random"  # random, inception, clip, dinov2
    seed: int = 0
    json: bool = False  # for programs to read


def evaluate(argv: Sequence[str]) -> int:
    from limner import checkpoint

    drawn = (
        argv
        and not argv[0].startswith("-")
        and (argv[0].endswith(".safetensors") or checkpoint.exists(argv[0]))
    )
    family = families.load(checkpoint.family_of(argv[0])) if drawn else None
    given = config.parse_evaluate(argv, family.Sampling if family else None)
    if not given.sources:
        raise LimnerError("Name the real images to measure against: limner evaluate RUN SOURCE.")
    from limner.evaluation import evaluate as evaluation

    knobs = config.knobs_of(given)
    learnt = _as_training_data(given, knobs) if given.as_training_data else None
    told = evaluation.evaluate(
        given.what,
        given.sources,
        given.n,
        given.features,
        given.weights,
        given.to,
        given.seed,
        given.json,
        given.labels_per_class,
        **knobs,
    )
    if not told:  # one of several processes, of which the first speaks
        return 0
    if learnt:
        from limner.synthesis import training_data

        training_data.keep(learnt, told["to"])
        told["training_data"] = learnt
    if given.json:
        print(json.dumps(told, indent=2))
        return 0
    table(["", "value", "95% interval", "real against real"], evaluation.rows(told))
    if "n" in told:
        about = f"{told['n']:,} images against {told['real']:,}, features {told['features']} {told['features_hash']}"
        say(f"{about}, {told['resize']}.")
        if told["n"] < 10_000:
            say("Below 10,000 images trust the kernel distance: the Frechet distance is biased by n.")
    if learnt:
        _show_training_data(learnt)
    say(f"Look at {told['to']}.")
    return 0


def _as_training_data(given: Any, knobs: dict[str, Any]) -> dict[str, Any]:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LimnerError("--as-training-data works in one process: call it without torchrun.")
    from limner.synthesis.training_data import as_training_data

    return as_training_data(
        given.what, given.sources, given.n, given.classifier_family, given.classifier_budget,
        given.classifier_preset, given.repeats, given.seed, given.to or None, given.json, **knobs,
    )  # fmt: skip


def _show_training_data(learnt: dict[str, Any]) -> None:
    from limner.synthesis import training_data

    say("")
    heads = [f"{learnt['classifier']} trained on", "images", "accuracy", "95% interval", "over repeats"]
    table(heads, training_data.rows(learnt))
    say(f"Each saw {learnt['budget']}. {learnt['said']}")
    if not learnt["checked"]:
        say("The run's own images cannot be opened: whether it learnt from the test images is not known.")


def compare(argv: Sequence[str]) -> int:
    own = list(argv)
    extra = own[own.index("--") + 1 :] if "--" in own else []
    given = tyro.cli(_Compare, prog="limner compare", args=own[: own.index("--")] if "--" in own else own)
    if not given.sources:
        raise LimnerError("Name the images to train on: limner compare SOURCE --families flow,vae.")
    from limner.evaluation import compare as comparison

    names = [name.strip() for name in given.families.split(",") if name.strip()]
    rows = comparison.compare(
        given.sources,
        names,
        given.budget,
        given.to,
        given.preset,
        given.size,
        given.n,
        given.features,
        given.seed,
        extra,
    )
    if len(rows) < len(names):
        say("Stopped: the same command goes on.")
        return INTERRUPTED
    if given.json:
        print((Path(given.to) / "report.json").read_text("utf-8"))
    else:
        cells = [comparison.cells(row) for row in comparison.ranked(rows) if "failed" not in row]
        table([*comparison.SHORT], [[row[at] for at in comparison.SHORT.values()] for row in cells])
        for row in rows:
            if "failed" in row:
                print(f"{row['family']} failed: {row['failed']}")
        say(f"{comparison.advice(rows)}\nLook at {Path(given.to) / 'report.html'}.")
    return 0 if any("kid" in row for row in rows) else 1
