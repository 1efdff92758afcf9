"""The commands that train: `limner train` and `limner demo`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import tyro

from limner import config, families, files
from limner.commands import say


@dataclasses.dataclass(frozen=True)
class _Demo:
    """Train the default text-to-image family from random weights, and score it on prompts it never saw."""

    out: str = "runs/demo"  # folder for the run, samples.png, report.html and demo.json
    budget: str = "297s"  # length of training
    seed: int = 0  # the same seed gives the same prompts


def demo(argv: Sequence[str]) -> int:
    given = tyro.cli(_Demo, prog="limner demo", args=list(argv))
    from limner.commands.demo_run import demo as run_demo

    told = run_demo(Path(given.out), given.budget, given.seed)
    return 128 + told["stopped"] if "stopped" in told else 0


def train(argv: Sequence[str]) -> int:
    given = config.parse_train(argv)
    from limner.evaluation import report
    from limner.training.journal import read_log
    from limner.training.run import train as run_training

    result = run_training(given.run, given.out, resume=given.resume)
    out = Path(given.out)
    if int(os.environ.get("RANK", "0")) == 0:
        lead = f"{result.seen:,} images seen in {result.seconds:.0f} s, {result.images_per_second:,.0f} a second."
        settings = json.dumps(config.to_json(given.run), indent=2)
        sections = report.training_sections(out, read_log(out), settings)
        files.write_text(out / "report.html", report.page(f"{given.run.family}: {out.name}", lead, sections))
        if result.stopped:
            say(f"Stopped and saved after {lead} Go on: limner train {given.run.family} --out {out} --resume")
        else:
            draws = hasattr(families.load(given.run.family), "sample")
            then = f"draw: limner sample {out}" if draws else f"measure: limner evaluate {out} SOURCE"
            say(f"{lead}\nLook at {out / 'report.html'}, then {then}")
    return 128 + result.stopped if result.stopped else 0
