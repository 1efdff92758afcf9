"""`limner demo`: from random weights to a text-to-image model in minutes, and its score on held-out prompts."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from limner import config, families, fields, files
from limner.commands import say
from limner.commands.options import parse
from limner.config import Run
from limner.fields import JsonResult, Seed

if TYPE_CHECKING:
    import numpy as np

    from limner.training.run import Result as TrainResult

SIZE = 32
PROMPTS = 256
SHOWN = 32
REAL = 2000  # drawings of the data's own that its oracle is checked on
WRITTEN = (  # what a demo writes into its folder
    "checkpoints", "samples", "config.json", "log.jsonl", "model.safetensors", "samples.png", "report.html",
    "demo.json",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Train the default text-to-image family from random weights, and score it on held-out prompts."""

    out: str = "runs/demo"  # folder for the run, samples.png, report.html and demo.json
    budget: str = "297s"  # length of training
    seed: Seed = 0  # the same seed gives the same prompts


@dataclass(frozen=True)
class Result(JsonResult):
    """What ``demo.json`` holds; shares are in [0, 1]."""

    prompts: int  # held-out prompts drawn
    exact: float  # share of them drawn with every attribute right
    oracle_on_real: float  # the same share of real images: what the oracle itself gets right
    train_seconds: float
    images_seen: int
    images_per_second: float
    sampling_images_per_second: float
    peak_memory_mb: int
    attributes: dict[str, float]  # share of prompts with this attribute right
    seed: int


def run(argv: list[str]) -> int:
    given = parse(Options, argv, "demo")
    from limner import checkpoint
    from limner.training.run import train

    config.parse_budget(given.budget, epoch=1)  # refused before a finished demo is removed
    out = Path(given.out)
    if (out / "demo.json").exists():  # finished: start anew, and leave other files alone
        for name in WRITTEN:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    training_run = replace(
        config.preset_run(families.DEFAULT, "small"),
        sources=("shapes",), size=(SIZE, SIZE), budget=given.budget, seed=given.seed,
    )  # fmt: skip
    trained = train(training_run, out, resume=checkpoint.exists(out))
    if trained.stopped:
        return 128 + trained.stopped
    score(out, training_run, trained)
    return 0


def score(out: Path, run: Run, trained: TrainResult) -> None:
    """Draw held-out prompts with the run in ``out`` and write samples.png, report.html and demo.json there."""
    import numpy as np

    from limner.data import shapes
    from limner.inference.pipeline import Pipeline
    from limner.pictures.grid import grid, to_pil
    from limner.progress import bar

    prompts = [scene.caption for scene in shapes.scenes(PROMPTS, seed=run.seed, held_out=True)]
    pipeline = Pipeline(out)
    start = time.perf_counter()
    with bar(f"drawing {PROMPTS} held-out prompts") as watch:
        drawn = pipeline.tensors(PROMPTS, prompt=prompts, seed=run.seed, watch=watch)
    drawing = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    pixels = np.stack([np.asarray(to_pil(x)) for x in drawn])
    attributes = shapes.score(pixels, prompts)
    real = shapes.scenes(REAL, seed=run.seed + 1, held_out=True)
    oracle = shapes.score(shapes.draw(real, SIZE, SIZE, seed=run.seed + 1), [scene.caption for scene in real])

    grid(drawn[:SHOWN], prompts[:SHOWN], columns=8).save(out / "samples.png")
    result = Result(
        prompts=PROMPTS,
        exact=attributes["exact"],
        oracle_on_real=oracle["exact"],
        train_seconds=round(trained.seconds, 1),
        images_seen=trained.seen,
        images_per_second=round(trained.images_per_second, 1),
        sampling_images_per_second=round(PROMPTS / drawing, 1),
        peak_memory_mb=round(peak / 1e6),
        attributes=attributes,
        seed=run.seed,
    )
    files.write_text(out / "report.html", _page(out, run, result, prompts, pixels))
    files.write_json(out / "demo.json", result.to_json())
    _summarise(out, result, prompts[0])


def _page(out: Path, run: Run, result: Result, prompts: Sequence[str], pixels: np.ndarray) -> str:
    from limner.data import shapes
    from limner.evaluation import report
    from limner.pictures.grid import grid
    from limner.training.journal import read_log

    cards = report.figures(
        {
            "held-out prompts drawn with every attribute right": f"{result.exact:.1%}",
            "the oracle on real images": f"{result.oracle_on_real:.1%}",
            "of training": f"{result.train_seconds:.0f} s",
            "images/s of training": f"{result.images_per_second:,.0f}",
            "images/s of sampling": f"{result.sampling_images_per_second:,.0f}",
            "peak memory": f"{result.peak_memory_mb:,} MB",
        }
    )
    names = {
        "exact": "all of the below but the sizes", "shape": "both shapes", "colour": "both colours",
        "relation": "the relation", "size": "both sizes", "exact_with_size": "everything, with the sizes",
        "readable": "two clean objects at all",
    }  # fmt: skip
    rows = [(text, f"{result.attributes[name]:.1%}") for name, text in names.items()]
    sections = [
        ("The score", cards),
        ("Prompts whose combinations were never trained on", report.picture(out / "samples.png")),
        ("What was right", report.table(("attribute", "share"), rows)),
    ]
    exact = [shapes.score(pixels[i : i + 1], prompts[i : i + 1])["exact"] == 1 for i in range(len(prompts))]
    if wrong := [i for i, right in enumerate(exact) if not right]:
        few = wrong[:8]
        sheet = grid(pixels[few], [prompts[i] for i in few], columns=8)
        caption = f"{len(wrong)} of {len(prompts)} were wrong; the first {len(few)}"
        sections.append(("What was wrong", report.picture(sheet, caption)))
    sections += report.training_sections(out, read_log(out), json.dumps(fields.to_json(run), indent=2))
    summary = (
        f"A text-to-image model trained from random weights in {result.train_seconds:.0f} s, "
        f"on {result.images_seen:,} views of pictures that Limner drew itself."
    )
    return report.page("Limner's demo", summary, sections)


def _summarise(out: Path, result: Result, prompt: str) -> None:
    say(
        f"\n{result.exact:.1%} of {result.prompts} held-out prompts drawn with every attribute right, after "
        f"{result.train_seconds:.0f} s of training (the oracle on real images: {result.oracle_on_real:.1%}).\n"
        f"Look at {out / 'samples.png'} and {out / 'report.html'}.\n\nTry next:\n"
        f'  limner sample {out} --prompt "{prompt}" --n 16 --to mine.png\n'
        "  limner data check PATH/TO/YOUR/IMAGES\n"
        f"  limner train {families.DEFAULT} PATH/TO/YOUR/IMAGES --out runs/mine --budget 20m"
    )
