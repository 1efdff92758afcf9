"""`limner demo`: from random weights to a text-to-image model in minutes, and its score on held-out prompts."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from limner import config, families, files
from limner.commands import say
from limner.commands.options import parse
from limner.config import Run
from limner.fields import JsonResult, Seed, from_json, to_json
from limner.settings import LimnerError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from limner.training.run import Result as TrainResult

SIZE = 32
PROMPTS = 256
SHOWN = 32
REAL = 2000  # drawings of the data's own that its oracle is checked on
WRITTEN = (  # what a demo writes into its folder, as patterns; demo.json, which lists it, comes last
    "checkpoints/*/model.safetensors", "checkpoints/*/live.safetensors", "checkpoints/*/state.json",
    "samples/????????????.png", "config.json", "log.jsonl", "model.safetensors", "samples.png", "report.html",
)  # fmt: skip
FOLDERS = "checkpoints", "samples"
EARLIER = ".earlier-demo"  # folder for a finished demo until the next is finished


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
    written: dict[str, str] = field(default_factory=dict)  # the files of the demo -> hash of their content


def run(argv: list[str]) -> int:
    given = parse(Options, argv, "demo")
    from limner import checkpoint
    from limner.training.run import train

    config.parse_budget(given.budget, epoch=1)  # refused before a finished demo is removed
    out = Path(given.out)
    training_run = replace(
        config.preset_run(families.DEFAULT, "small"),
        sources=("shapes",), size=(SIZE, SIZE), budget=given.budget, seed=given.seed,
    )  # fmt: skip
    if (out / "demo.json").exists():  # finished: start anew
        set_aside(out)
    else:
        refuse_other_run(out, training_run)
    try:
        trained = train(training_run, out, resume=checkpoint.exists(out))
    finally:
        if not checkpoint.exists(out):
            restore(out)
    if trained.stopped:
        return 128 + trained.stopped
    score(out, training_run, trained)
    shutil.rmtree(out / EARLIER, ignore_errors=True)
    return 0


def set_aside(out: Path) -> None:
    """Move a finished demo to a hidden folder in its own. Raises LimnerError where a person's own files are in the way.

    Those are all files at the places of a demo's that demo.json does not list, or that have changed since.
    """
    about = out / "demo.json"
    try:
        written = from_json(Result, files.read_json(about), str(about)).written
    except LimnerError:
        raise LimnerError(
            f"{about} was not written by this version's demo: name another folder with --out."
        ) from None
    there = [path for pattern in WRITTEN for path in out.glob(pattern)]
    there += [path for name in FOLDERS for path in (out / name).rglob("*") if not path.is_dir()]
    for path in there:
        if written.get(path.relative_to(out).as_posix()) != files.sha256(path):
            raise LimnerError(
                f"{path} was not written by the demo, or has changed since: move it, or name another folder with --out."
            )
    shutil.rmtree(out / EARLIER, ignore_errors=True)
    for path in {about, *there}:
        _move(path, out / EARLIER / path.relative_to(out))
    _remove_empty(out)


def restore(out: Path) -> None:
    """Put a demo back that was set aside, where the next could not begin."""
    if (out / EARLIER).is_dir():
        for path in sorted((out / EARLIER).rglob("*")):
            if path.is_file():
                _move(path, out / path.relative_to(out / EARLIER))
        shutil.rmtree(out / EARLIER, ignore_errors=True)


def refuse_other_run(out: Path, run: Run) -> None:
    """Raises LimnerError where a folder holds another run than an unfinished one of this demo."""
    if (out / "config.json").exists() or (out / "model.safetensors").exists():
        found = replace(config.read_run(out), budget=run.budget)
        if found != run:
            raise LimnerError(f"{out} holds another run than this demo's: name another folder with --out.")


def hashes(out: Path) -> dict[str, str]:
    """The files of a demo by their names in its folder, with a hash of each."""
    found = (path for pattern in WRITTEN for path in sorted(out.glob(pattern)))
    return {path.relative_to(out).as_posix(): files.sha256(path) for path in found}


def _move(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, to)


def _remove_empty(out: Path) -> None:
    """Remove the folders of a demo that hold nothing."""
    for folder in [*out.glob("checkpoints/*"), *(out / name for name in FOLDERS)]:
        with contextlib.suppress(OSError):
            folder.rmdir()


def score(out: Path, run: Run, trained: TrainResult) -> None:
    """Draw held-out prompts with the run in ``out`` and write samples.png, report.html and demo.json there."""
    import numpy as np

    from limner.data.sources import shapes
    from limner.inference.pipeline import Pipeline
    from limner.pictures.grid import grid, save_picture, to_pil
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

    sheet = grid(drawn[:SHOWN], prompts[:SHOWN], columns=8)
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
    with files.together():
        save_picture(sheet, out / "samples.png")
        files.write_text(out / "report.html", _page(out, run, result, sheet, prompts, pixels))
    result = replace(result, written=hashes(out))
    files.write_json(out / "demo.json", result.to_json())
    _summarise(out, result, prompts[0])


def _page(
    out: Path, run: Run, result: Result, sheet: Image.Image, prompts: Sequence[str], pixels: np.ndarray
) -> str:
    from limner.data.sources import shapes
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
        ("Prompts whose combinations were never trained on", report.picture(sheet)),
        ("What was right", report.table(("attribute", "share"), rows)),
    ]
    exact = [shapes.score(pixels[i : i + 1], prompts[i : i + 1])["exact"] == 1 for i in range(len(prompts))]
    if wrong := [i for i, right in enumerate(exact) if not right]:
        few = wrong[:8]
        few_wrong = grid(pixels[few], [prompts[i] for i in few], columns=8)
        caption = f"{len(wrong)} of {len(prompts)} were wrong; the first {len(few)}"
        sections.append(("What was wrong", report.picture(few_wrong, caption)))
    sections += report.training_sections(out, read_log(out), json.dumps(to_json(run), indent=2))
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
