"""How well runs trained on ``shapes`` follow prompts of combinations that they never saw, and at what cost.

    python benchmarks/prompts.py followed runs/dalle runs/masked runs/flow --record
    python benchmarks/prompts.py curve runs/dalle runs/flow --to docs/prompts.svg --record
    python benchmarks/prompts.py evaluated runs/dalle runs/flow --record

``followed`` draws n prompts with as many seeds as asked, as each run's preset draws by default. ``curve`` draws them
once by every checkpoint of a run, which --training.save-every and --training.keep leave there: the time counts the
training of what the run builds on, too. ``evaluated`` reads what `limner evaluate RUN shapes --n 1000` wrote before.
Every share has its 95% interval.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from record import record
from text import Cell, share
from torch import nn

from limner import checkpoint
from limner.core import Condition
from limner.data.sources import shapes
from limner.evaluation.real import as_bytes, as_saved
from limner.inference.pipeline import Pipeline, generate
from limner.pictures.grid import save_grid

ATTRIBUTES = ("exact", "shape", "colour", "size", "relation", "readable")
TIMED = 64  # images a run of the clock


def drawn(pipeline: Pipeline, texts: Sequence[str], first: int) -> torch.Tensor:
    """One image a text, with the seeds ``first`` and those that follow it."""
    seeds = range(first, first + len(texts))
    condition = Condition(len(texts), text=list(texts))
    return generate(pipeline.model, condition, seeds, precision=pipeline.precision)


def scored(images: torch.Tensor, texts: Sequence[str]) -> dict[str, Cell]:
    """The share of images with each attribute right, with its interval."""
    shares = shapes.score(as_bytes(as_saved(images)), texts)
    n = len(texts)
    return {name: share([i < round(shares[name] * n) for i in range(n)]) for name in ATTRIBUTES} | {"n": n}


def calls(pipeline: Pipeline, texts: Sequence[str]) -> int:
    """How often the trained network is called for a batch of images: the most calls of a block that repeats."""
    counts: dict[str, int] = {}

    def count(name: str) -> None:
        counts[name] = counts.get(name, 0) + 1

    parts = [
        (name, part)
        for name, part in pipeline.model.named_modules()
        if isinstance(part, nn.Linear) and not name.startswith(tuple(pipeline.model.frozen) or ("\0",))
    ]
    hooks = [part.register_forward_hook(lambda *_, name=name: count(name)) for name, part in parts]
    drawn(pipeline, texts, 0)
    for hook in hooks:
        hook.remove()
    return max(counts.values())


def milliseconds(pipeline: Pipeline, texts: Sequence[str], repeats: int = 3) -> float:
    """The least processor time that an image of a batch takes."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        drawn(pipeline, texts, 0)
        times.append(1e3 * (time.process_time() - start) / len(texts))
    return round(min(times), 2)


def seconds_before(pipeline: Pipeline) -> float:
    """Training of the runs that the settings name to build on; a run counts those that it trained first itself."""
    named = [getattr(pipeline.model.config, field) for field in pipeline.model.parents]
    parents = [Pipeline(run, "cpu") for run in named if run]
    return sum(float(parent.loaded.header["seconds"]) + seconds_before(parent) for parent in parents)


def followed(runs: Sequence[str], n: int, seeds: int, sheets: str) -> list[dict[str, Cell]]:
    """A row a run; with ``sheets`` a picture of 64 prompts, and one of 4 prompts with 16 images each."""
    texts = shapes.captions(shapes.scenes(n, 0, held_out=True))
    rows: list[dict[str, Cell]] = []
    for run in runs:
        pipeline = Pipeline(run, "cpu")
        images = torch.cat([drawn(pipeline, texts, n * k) for k in range(seeds)])
        header, family = pipeline.loaded.header, pipeline.loaded.run.family
        row: dict[str, Cell] = {"run": family, **scored(images, texts * seeds)}
        row["calls"], row["ms"] = calls(pipeline, texts[:TIMED]), milliseconds(pipeline, texts[:TIMED])
        rows.append(
            {**row, "seen": header["seen"], "seconds": round(header["seconds"] + seconds_before(pipeline))}
        )
        print(rows[-1], flush=True)
        if sheets:
            folder = Path(sheets)
            folder.mkdir(parents=True, exist_ok=True)
            save_grid(folder / f"{family}.png", images[:64], texts[:64])
            repeated = [text for text in texts[:4] for _ in range(16)]
            save_grid(folder / f"{family}-repeated.png", drawn(pipeline, repeated, 0), repeated, columns=16)
    return rows


def curve(runs: Sequence[str], n: int, to: str) -> list[dict[str, Cell]]:
    """A row a checkpoint of each run, drawn as a plot."""
    texts = shapes.captions(shapes.scenes(n, 0, held_out=True))
    rows: list[dict[str, Cell]] = []
    for run in runs:
        before = seconds_before(Pipeline(run, "cpu"))
        for path in sorted(Path(run).glob(f"{checkpoint.CHECKPOINTS}/*"), key=lambda p: int(p.name)):
            pipeline = Pipeline(path / "model.safetensors", "cpu")
            header = pipeline.loaded.header
            if header["seen"]:
                minutes = round((header["seconds"] + before) / 60, 1)
                exact = scored(drawn(pipeline, texts, 0), texts)["exact"]
                of = {"run": pipeline.loaded.run.family, "minutes": minutes, "seen": header["seen"]}
                rows.append({**of, "exact": exact, "n": n})
                print(rows[-1], flush=True)
    if to:
        Path(to).write_text(plot(rows), "utf-8")
    return rows


def evaluated(runs: Sequence[str]) -> list[dict[str, Cell]]:
    """A row a run, from its evaluation.json: how varied its images are, and how many are copies."""
    rows: list[dict[str, Cell]] = []
    for run in runs:
        found = json.loads((Path(run) / "evaluation" / "evaluation.json").read_text("utf-8"))
        row: dict[str, Cell] = {"run": Pipeline(run, "cpu").loaded.run.family, "n": found["n"]}
        for figure in ("recall", "precision", "kid"):
            row[figure] = [round(found[figure][key], 3) for key in ("value", "low", "high")]
            row[f"{figure}_floor"] = round(found[figure]["floor"], 3)
        copies = found["copies"]
        row["copies"] = [round(100 * copies[key], 1) for key in ("value", "low", "high")]
        row["copies_expected"] = f"{100 * copies['expected_low']:.1f} to {100 * copies['expected_high']:.1f}"
        rows.append(row)
    return rows


def plot(rows: Sequence[dict[str, Cell]]) -> str:
    """An SVG of the share of exact pictures against the minutes of training."""
    width, height, left, top = 640, 360, 50, 20
    names = list(dict.fromkeys(str(row["run"]) for row in rows))
    most = max(float(str(row["minutes"])) for row in rows)
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")

    def at(minutes: float, value: float) -> str:
        return f"{left + minutes / most * (width - left - 130):.1f},{top + (1 - value) * (height - top - 40):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    ]
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for tenth in range(0, 11, 2):
        (x0, y), (x1, _) = (at(m, tenth / 10).split(",") for m in (0, most))
        parts.append(f'<path d="M{x0},{y} H{x1}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{left - 8}" y="{float(y) + 4}" font-size="12" text-anchor="end">{10 * tenth}%</text>'
        )
    for minutes in range(0, int(most) + 1, 5):
        x, y = at(minutes, 0).split(",")
        parts.append(
            f'<text x="{x}" y="{float(y) + 18}" font-size="12" text-anchor="middle">{minutes}</text>'
        )
    parts.append(f'<text x="{width / 2 - 40}" y="{height - 4}" font-size="12">minutes of training</text>')
    for i, name in enumerate(names):
        points = [
            at(float(str(row["minutes"])), row["exact"][0])  # type: ignore[index]
            for row in rows
            if row["run"] == name
        ]
        colour = colours[i % len(colours)]
        parts.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        y = top + 14 + 18 * i  # apart, since the lines may end at one point
        parts.append(f'<text x="{width - 120}" y="{y}" font-size="12" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


COLUMNS = {
    "followed": {
        "run": "family", "exact": "exact", "shape": "shape", "colour": "colour", "size": "size",
        "relation": "relation", "readable": "readable", "n": "n", "calls": "calls", "ms": "CPU ms an image",
        "seen": "images seen", "seconds": "seconds of training",
    },
    "curve": {"run": "family", "minutes": "minutes", "seen": "images seen", "exact": "exact", "n": "n"},
    "evaluated": {
        "run": "family", "n": "n", "recall": "recall", "recall_floor": "of real images", "precision": "precision",
        "precision_floor": "of real images", "kid": "KID", "kid_floor": "of real images", "copies": "copies, %",
        "copies_expected": "a perfect generator's",
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=COLUMNS)
    parser.add_argument("run", nargs="+")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--to", default="", help="curve: an .svg to write; followed: a folder for sheets")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.table == "followed":
        rows = followed(given.run, given.n, given.seeds, given.to)
    elif given.table == "evaluated":
        rows = evaluated(given.run)
        for row in rows:
            print(row)
    else:
        rows = curve(given.run, given.n, given.to)
    if given.record:
        record(f"prompts-{given.table}", COLUMNS[given.table], rows)


if __name__ == "__main__":
    main()
