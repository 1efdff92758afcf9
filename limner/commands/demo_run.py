"""`limner demo`: from nothing to a text-to-image model of one's own in minutes, and an honest score."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from limner import checkpoint, config, families, files
from limner.config import Run
from limner.core import DataOptions
from limner.data import shapes
from limner.evaluation import report
from limner.inference.pipeline import Pipeline
from limner.pictures.grid import grid, to_pil
from limner.progress import bar
from limner.training.journal import read_log
from limner.training.run import Result, train

SIZE = 32
PROMPTS = 256
SHOWN = 32
LEFT = (  # what a demo leaves in its folder
    "checkpoints", "samples", "config.json", "log.jsonl", checkpoint.MODEL, "samples.png", "report.html", "demo.json",
)  # fmt: skip


def demo(out: Path, budget: str = "297s", seed: int = 0) -> dict[str, Any]:
    """Train on `shapes`, draw combinations that were kept out of training, score them, and show it all.

    Leaves model.safetensors, samples.png, report.html and demo.json in ``out``. An unfinished demo there is
    gone on with; a finished one is done again.
    """
    console = Console(stderr=True)
    finished = out / "demo.json"
    if finished.exists():
        for name in LEFT:  # and nothing else that lies there
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    preset = config.find_preset(families.load(families.DEFAULT), "small")
    run = Run(
        family=families.DEFAULT,
        sources=("shapes",),
        preset="small",
        size=(SIZE, SIZE),
        budget=budget,
        seed=seed,
        model=preset.model,
        training=preset.training,
        data=DataOptions(),
    )
    result = train(run, out, resume=checkpoint.exists(out))
    if result.stopped:
        return {"stopped": result.stopped}

    scenes = shapes.scenes(PROMPTS, seed=seed, held_out=True)
    prompts = [scene.caption for scene in scenes]
    pipeline = Pipeline(out)
    start = time.perf_counter()
    with bar(f"drawing {PROMPTS} held-out prompts") as watch:
        drawn = pipeline.tensors(PROMPTS, prompt=prompts, seed=seed, watch=watch)
    drawing = time.perf_counter() - start
    pixels = np.stack([np.asarray(to_pil(x)) for x in drawn])
    score = shapes.score(pixels, prompts)
    real = shapes.scenes(2000, seed=seed + 1, held_out=True)
    oracle = shapes.score(shapes.draw(real, SIZE, SIZE, seed=seed + 1), [s.caption for s in real])

    sheet = grid(drawn[:SHOWN], prompts[:SHOWN], columns=8)
    sheet.save(out / "samples.png")
    told = {
        "prompts": PROMPTS,
        "exact": score["exact"],
        "oracle_on_real": oracle["exact"],
        "train_seconds": round(result.seconds, 1),
        "images_seen": result.seen,
        "images_per_second": round(result.images_per_second, 1),
        "sampling_images_per_second": round(PROMPTS / drawing, 1),
        "peak_memory_mb": round(peak_memory() / 1e6),
        "attributes": score,
        "seed": seed,
    }
    files.write_text(out / "report.html", _page(out, run, result, told, prompts, pixels))
    files.write_json(finished, told)
    _say(console, out, told, prompts[0])
    return told


def peak_memory() -> int:
    """Bytes that this process held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _page(
    out: Path, run: Run, result: Result, told: dict[str, Any], prompts: Sequence[str], pixels: np.ndarray
) -> str:
    wrong = [
        i for i in range(len(prompts)) if shapes.score(pixels[i : i + 1], prompts[i : i + 1])["exact"] < 1
    ]
    cards = report.figures(
        {
            "held-out prompts drawn with every attribute right": f"{told['exact']:.1%}",
            "the oracle itself, on real images": f"{told['oracle_on_real']:.1%}",
            "of training": f"{told['train_seconds']:.0f} s",
            "images/s of training": f"{told['images_per_second']:,.0f}",
            "images/s of sampling": f"{told['sampling_images_per_second']:,.0f}",
            "peak memory": f"{told['peak_memory_mb']:,} MB",
        }
    )
    names = {
        "exact": "all of the below but the sizes", "shape": "both shapes", "colour": "both colours",
        "relation": "the relation", "size": "both sizes", "exact_with_size": "everything, sizes too",
        "readable": "two clean objects at all",
    }  # fmt: skip
    rows = [(text, f"{told['attributes'][name]:.1%}") for name, text in names.items()]
    sections = [
        ("The score", cards),
        ("Prompts whose combinations were never trained on", report.picture(out / "samples.png")),
        ("What was right", report.table(("attribute", "share"), rows)),
    ]
    if wrong:
        few = wrong[:8]
        sheet = grid(pixels[few], [prompts[i] for i in few], columns=8)
        caption = f"{len(wrong)} of {len(prompts)} were wrong; the first {len(few)}"
        sections.append(("What went wrong", report.picture(sheet, caption)))
    settings = json.dumps(config.to_json(run), indent=2)
    sections += report.training_sections(out, read_log(out), settings)
    lead = (
        f"A text-to-image model trained from random weights in {told['train_seconds']:.0f} s, "
        f"on {told['images_seen']:,} views of pictures that Limner drew itself."
    )
    return report.page("Limner's demo", lead, sections)


def _say(console: Console, out: Path, told: dict[str, Any], prompt: str) -> None:
    console.print(
        f"\n[bold green]{told['exact']:.1%}[/] of {told['prompts']} held-out prompts drawn with every attribute "
        f"right, after {told['train_seconds']:.0f} s of training (the oracle on real images: "
        f"{told['oracle_on_real']:.1%})."
    )
    console.print(f"Look at {out / 'samples.png'} and {out / 'report.html'}.\n\nTry next:")
    for command in (
        f'limner sample {out} --prompt "{prompt}" --n 16 --to mine.png',
        "limner data check PATH/TO/YOUR/IMAGES",
        f"limner train {families.DEFAULT} PATH/TO/YOUR/IMAGES --out runs/mine --budget 20m",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)
